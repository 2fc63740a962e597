"""The deployable folder: manifest, hashes, graphs, statistics."""

from unblemish.bundle.manifest import Manifest
from unblemish.bundle.store import Bundle, update_bundle, write_bundle

__all__ = ["Bundle", "Manifest", "update_bundle", "write_bundle"]
