"""What a run of `prepare` tells: counts alone, fit for any eye at the site."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass, field
from typing import Any

from ctslices.manifest import Manifest


@dataclass(frozen=True, slots=True)
class PrepareReport:
    """The outcome of one `prepare`. No identifier and no path is in it."""

    slices: int
    patients: int
    series: int
    unit: str
    by_split: dict[str, dict[str, int]]
    """split: {"patients": n, "slices": n}"""
    labels: dict[str, int]
    """label: slices; "(none)" for slices without one where others have one."""
    rejected: dict[str, int]
    dropped_by_region: dict[str, int]
    quarantined: int
    unmatched: dict[str, list[int]] = field(default_factory=dict)
    """option: numbers of the rows that matched nothing."""
    notes: tuple[str, ...] = ()
    unchanged: bool = False
    """The store was whole and made from the same export with the same options: nothing was done."""

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def split_counts(manifest: Manifest) -> dict[str, dict[str, int]]:
    """Patients and slices on each side of the split."""
    return {
        side: {
            "patients": sum(p.split == side for p in manifest.patients),
            "slices": sum(p.slices for p in manifest.patients if p.split == side),
        }
        for side in ("train", "holdout")
    }


def label_counts(names: tuple[str, ...], label: Any) -> dict[str, int]:
    """Slices by label; {} where the store has no labels. `label` int [n]."""
    if not names:
        return {}
    counts = Counter(int(value) for value in label)
    named = {name: counts[index] for index, name in enumerate(names)}
    return named | ({"(none)": counts[-1]} if counts[-1] else {})


def store_notes(manifest: Manifest) -> tuple[str, ...]:
    """What a reader of the store must know, and what to do about it."""
    sides = split_counts(manifest)
    notes = []
    if manifest.unit == "image" and manifest.slices:
        notes.append("no patients are known: slices of one person may be on both sides of the split")
    if manifest.values == "grey" and manifest.labels:
        notes.append(
            "the label names are the pictures' folder names, as they are: no folder may be named after a person"
        )
    for side in ("train", "holdout"):
        if manifest.slices and manifest.holdout > 0 and not sides[side]["patients"]:
            other = "another --split-seed" if side == "train" else "a larger --holdout or another --split-seed"
            notes.append(f"the split left nobody in {side}: choose {other}, or add patients")
    return tuple(notes)
