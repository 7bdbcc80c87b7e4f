"""CT scans to 64-pixel slices in Hounsfield units: readers, judgement, one orientation, and the slice store."""

from ctslices.store import SliceStore, StoreError, write_store
from ctslices.version import VERSION as __version__

__all__ = ["SliceStore", "StoreError", "__version__", "write_store"]
