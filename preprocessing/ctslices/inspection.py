"""What is in a store, in counts."""

from __future__ import annotations

import re
from collections import Counter
from typing import Any

import numpy as np

from ctslices.report import split_counts, store_notes
from ctslices.store import SliceStore


def inspect_store(store: SliceStore) -> dict[str, Any]:
    """Counts, ranges, scanners, labels by split, rejections and notes of an opened (so: checked) store; for JSON."""
    manifest = store.manifest
    same = ("size", "field_mm", "every_mm", "region", "unit", "values", "kinds", "slices", "value_range", "rejected")
    kept = {name: getattr(manifest, name) for name in (*same, "dropped_by_region", "options")}
    return kept | {
        "patients": len(manifest.patients),
        "series": len(manifest.series),
        "by_split": split_counts(manifest),
        "labels": _labels(store),
        "scanners": _scanners(store),
        "series_notes": _notes(store),
        "notes": [*manifest.notes, *store_notes(manifest)],
        "share_of_air": _share_of_air(store),
        "format_version": manifest.format_version,
        "ctslices_version": manifest.ctslices_version,
    }


def _labels(store: SliceStore) -> dict[str, dict[str, int]]:
    if not store.labels:
        return {}
    sides = {side: Counter(store.label[store.indices(side)].tolist()) for side in ("train", "holdout")}
    names = dict(enumerate(store.labels)) | {-1: "(none)"}
    counted = {name: {side: counts[index] for side, counts in sides.items()} for index, name in names.items()}
    return {name: counts for name, counts in counted.items() if name != "(none)" or any(counts.values())}


def _scanners(store: SliceStore) -> list[dict[str, Any]]:
    """One row for each manufacturer, kernel, voltage, pixel spacing and thickness, most slices first."""
    series: Counter[tuple[Any, ...]] = Counter()
    slices: Counter[tuple[Any, ...]] = Counter()
    for record in store.manifest.series:
        spacing = None if record.spacing_mm is None else " x ".join(f"{s:.3g}" for s in record.spacing_mm)
        key = (record.manufacturer, record.kernel, record.kvp, spacing, record.thickness_mm)
        series[key] += 1
        slices[key] += record.slices
    names = ("manufacturer", "kernel", "kvp", "spacing_mm", "thickness_mm")
    order = sorted(slices, key=lambda key: (-slices[key], str(key)))
    return [dict(zip(names, k, strict=True)) | {"series": series[k], "slices": slices[k]} for k in order]


def _notes(store: SliceStore) -> dict[str, int]:
    """Series by note; numbers are left out, so that like notes count together."""
    notes = Counter(
        note
        for record in store.manifest.series
        for note in {re.sub(r"-?\d+(\.\d+)?", "N", note) for note in record.notes}
    )
    return dict(sorted(notes.items()))


def _share_of_air(store: SliceStore, below_hu: int = -900) -> float | None:
    """Fraction of pixels below -900 HU over up to 512 slices spread over the store; None for grey values."""
    if store.manifest.values == "grey" or not len(store):
        return None
    chosen = np.unique(np.linspace(0, len(store) - 1, min(512, len(store))).astype(np.int64))
    return round(float((store.hu[chosen] < below_hu).mean()), 4)
