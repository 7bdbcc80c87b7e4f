"""A store made of some patients of another, slice for slice."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ctslices.files import write_whole
from ctslices.manifest import SHARD_SLICES, Manifest, ShardRecord
from ctslices.shards import Columns, shard_name, write_shard
from ctslices.store import MANIFEST, SliceStore, manifest_bytes, value_range


def write_subset(store: SliceStore, patients: NDArray[np.int64], path: Path, **fields: Any) -> Manifest:
    """Writes the patients at index `patients` of `store` (ascending) to the folder `path`, which is there and empty.

    Order, labels and sides of the split stay as they are. `fields` replace fields of the manifest. Memory holds one
    shard at a time.
    """
    chosen = np.flatnonzero(np.isin(store.patient, patients))
    series = np.unique(store.series[chosen])
    new_patient = np.full(len(store.manifest.patients), -1, np.int32)
    new_patient[patients] = np.arange(len(patients))
    new_series = np.full(len(store.manifest.series), -1, np.int32)
    new_series[series] = np.arange(len(series))
    shards = []
    bounds: list[NDArray[np.int16]] = []
    for number, start in enumerate(range(0, len(chosen), SHARD_SLICES)):
        part = chosen[start : start + SHARD_SLICES]
        columns = Columns(
            patient=new_patient[store.patient[part]],
            series=new_series[store.series[part]],
            position_mm=store.position_mm[part],
            label=store.label[part],
        )
        pixels = store.hu[part]
        bounds.append(np.array(value_range([pixels]), np.int16))
        digest = write_shard(path / shard_name(number), store.size, columns, [pixels])
        shards.append(ShardRecord(file=shard_name(number), slices=len(part), sha256=digest))
    whole = store.manifest
    manifest = whole.model_copy(
        update={
            "slices": len(chosen),
            "value_range": value_range(bounds),
            "patients": tuple(whole.patients[p] for p in patients),
            "series": tuple(
                whole.series[s].model_copy(update={"patient": int(new_patient[whole.series[s].patient])})
                for s in series
            ),
            "shards": tuple(shards),
            **fields,
        }
    )
    manifest = Manifest.model_validate(manifest.model_dump())
    # The manifest comes last: without it a folder is no store.
    write_whole(path / MANIFEST, manifest_bytes(manifest), mode=0o600)
    return manifest
