"""What the judge must know of a slice store, from its manifest alone: no pixel is read."""

from __future__ import annotations

from pathlib import Path

from ctslices.store import StoreError, read_manifest
from fedscan.privacy.policy import Unreadable
from fedscan.privacy.store_facts import StoreFacts


def store_facts(store: Path) -> StoreFacts | Unreadable:
    """Unit and pseudonyms of the store as it lies on the disk now; why not, where it is no whole store."""
    try:
        manifest = read_manifest(store)
    except StoreError as error:
        return Unreadable((f"store: {error}",))
    except OSError as error:
        return Unreadable((f"store: it cannot be read: {error.strerror}",))
    return StoreFacts.of(manifest.unit, ((p.id, p.split, p.slices) for p in manifest.patients))
