"""What to inspect: files, folders and videos, each frame under a name of its own."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from time import perf_counter

from unblemish.errors import SourceError
from unblemish.images import Image, is_video, list_images, read_image, video_frames


@dataclass(frozen=True)
class Source:
    """A file to inspect.

    Args:
        path: the file.
        name: unique in the batch, without suffix; the stem of what is written, '/' parts folders.
        category: name of the file's folder, e.g. 'good' or 'scratch'.
        frame: number of the frame in a video, from 0; None for images.
    """

    path: Path
    name: str
    category: str
    frame: int | None = None

    @property
    def label(self) -> str:
        """The path, with '#<frame>' behind it for a frame of a video."""
        return str(self.path) if self.frame is None else f"{self.path}#{self.frame}"


@dataclass(frozen=True)
class Frame:
    """One frame as read, or why it could not be; `decode_ms` is the time that took."""

    source: Source
    image: Image | None
    error: SourceError | None
    decode_ms: float


def list_sources(paths: Sequence[Path], *, leave_out: Path | None = None) -> list[Source]:
    """List every file of `paths`, folders at any depth, without what lies under `leave_out`.

    A named file that does not exist is listed too: reading it states the error, no more.
    Raises: SourceError where a folder holds no image.
    """
    found: list[Source] = []
    for given in paths:
        files = list_images(given) if given.is_dir() else [given]
        for path in files:
            if leave_out is not None and _is_under(path, leave_out):
                continue
            inside = path.relative_to(given) if given.is_dir() else Path(path.name)
            category = path.absolute().parent.name
            found.append(Source(path, inside.with_suffix("").as_posix(), category))
    if not found:
        raise SourceError(f"nothing to inspect outside {leave_out}. Choose another --out.")
    return _with_unique_names(found)


def read_frames(sources: Sequence[Source]) -> Iterator[Frame]:
    """Read the frames of every source in order; a frame that cannot be read carries its error."""
    for source in sources:
        frames = _video(source) if is_video(source.path) else _still(source)
        while True:
            started = perf_counter()
            try:
                where, image = next(frames)
            except StopIteration:
                break
            except SourceError as error:
                yield Frame(source, None, error, 1e3 * (perf_counter() - started))
                break
            yield Frame(where, image, None, 1e3 * (perf_counter() - started))


def _still(source: Source) -> Iterator[tuple[Source, Image]]:
    yield source, read_image(source.path)


def _video(source: Source) -> Iterator[tuple[Source, Image]]:
    for number, image in enumerate(video_frames(source.path)):
        yield replace(source, name=f"{source.name}/{number:06d}", frame=number), image


def _with_unique_names(sources: list[Source]) -> list[Source]:
    """Tell apart equal names by folder ('hole/1'), else suffix ('1.jpg'), else number ('1-2')."""
    sources = _renamed(sources, lambda source: f"{source.category}/{source.name}")
    sources = _renamed(sources, lambda source: source.name + source.path.suffix)
    taken: set[str] = set()
    unique = []
    for source in sources:
        stem = source.name
        name, number = stem, 1
        while name in taken:
            number += 1
            name = f"{stem}-{number}"
        taken.add(name)
        unique.append(replace(source, name=name))
    return unique


def _renamed(sources: list[Source], rename: Callable[[Source], str]) -> list[Source]:
    """Rename the sources of each name that several have, where that tells any of them apart."""
    same: dict[str, list[str]] = {}
    for source in sources:
        same.setdefault(source.name, []).append(rename(source))
    helps = {name for name, others in same.items() if len(set(others)) > 1}
    return [
        replace(source, name=rename(source)) if source.name in helps else source
        for source in sources
    ]


def _is_under(path: Path, folder: Path) -> bool:
    return folder.resolve() in path.resolve().parents
