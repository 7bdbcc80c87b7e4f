"""One store dealt out to several sites, for studies of a federation on data that lie in one place."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ctslices.shards import in_a_store
from ctslices.store import SliceStore
from ctslices.subset import write_subset


class DealError(ValueError):
    """A store cannot be dealt as asked: got, wanted, cure."""


def deal(store: SliceStore, out: Path, sites: int, seed: int = 0) -> list[Path]:
    """Deals whole patients (pictures: blocks of consecutive numbers) round robin to `out`/site-01, site-02, ...

    Their order is drawn by `seed`, each label dealt by itself, so that sites have like sizes and like shares. A
    patient's side of the split stays what it is in `store`. Returns the stores' paths; raises DealError, OSError, and
    then leaves none of them.
    """
    patients = len(store.manifest.patients)
    if not 1 <= sites <= patients:
        raise DealError(f"sites must lie in 1..{patients}, the store's patients (or blocks): got {sites}")
    if in_a_store(out.resolve()):
        raise DealError("the output folder lies in a store, and would go when that is made anew: choose another")
    paths = [out / f"site-{site + 1:02d}" for site in range(sites)]
    if there := [path.name for path in paths if path.exists()]:
        raise DealError(f"{there[0]} exists already in the output folder: choose another, nothing was overwritten")
    owner = _owners(store, sites, seed)
    try:
        for site, path in enumerate(paths):
            path.mkdir(mode=0o700, parents=True)
            write_subset(
                store,
                np.flatnonzero(owner == site),
                path,
                dropped_by_region={},
                rejected={},
                notes=(*store.manifest.notes, "dealt out of a larger store for a study"),
            )
    except BaseException:
        for path in paths:
            shutil.rmtree(path, ignore_errors=True)
        raise
    return paths


def _owners(store: SliceStore, sites: int, seed: int) -> NDArray[np.int64]:
    """int64 [patients]: the site of each."""
    rng = np.random.default_rng(seed)
    patients = len(store.manifest.patients)
    first = np.full(patients, -1)
    first[store.patient[::-1]] = store.label[::-1]
    owner = np.empty(patients, np.int64)
    next_site = 0
    for split in ("train", "holdout"):
        for label in np.unique(first):
            side = np.array([p.split == split for p in store.manifest.patients])
            group = rng.permutation(np.flatnonzero(side & (first == label)))
            owner[group] = (next_site + np.arange(len(group))) % sites
            next_site = (next_site + len(group)) % sites
    return owner
