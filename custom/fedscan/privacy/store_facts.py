"""What the judge knows of a store. Patients by pseudonym; stays at the site."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from fedscan.privacy_plan import Unit


@dataclass(frozen=True)
class StoreFacts:
    """Of one slice store, as it lies on the disk now."""

    unit: Unit
    trained: frozenset[str]
    """Pseudonyms in the train split: whom a round concerns."""
    held_out: frozenset[str]
    """Pseudonyms in the holdout: in the store, never trained on."""
    units: int
    """How many patients are trained on; of pictures, how many images."""

    @classmethod
    def of(cls, unit: Unit, patients: Iterable[tuple[str, str, int]]) -> StoreFacts:
        """From (pseudonym, side `train` or `holdout`, slices) of each patient, as the store's manifest has them."""
        rows = list(patients)
        trained = [(name, slices) for name, side, slices in rows if side == "train"]
        return cls(
            unit=unit,
            trained=frozenset(name for name, _ in trained),
            held_out=frozenset(name for name, side, _ in rows if side != "train"),
            units=len(trained) if unit == "patient" else sum(slices for _, slices in trained),
        )

    @property
    def everybody(self) -> frozenset[str]:
        """All pseudonyms in the store."""
        return self.trained | self.held_out
