"""What every part of a manifest is: checked, frozen, without unknown fields."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

Positive = Annotated[float, Field(gt=0)]


class Record(BaseModel):
    """One record."""

    model_config = ConfigDict(extra="forbid", frozen=True)
