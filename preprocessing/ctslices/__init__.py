"""CT scans to 64-pixel slices in Hounsfield units: readers, judgement, one orientation, and the slice store."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ctslices.version import VERSION as __version__

if TYPE_CHECKING:
    from ctslices.store import SliceStore, StoreError, write_store

__all__ = ["SliceStore", "StoreError", "__version__", "write_store"]


def __getattr__(name: str) -> Any:
    """The store on first use: the command line imports this package for its help, which must come at once."""
    if name in ("SliceStore", "StoreError", "write_store"):
        from ctslices import store

        return getattr(store, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
