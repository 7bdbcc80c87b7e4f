"""What a site asks of an intake, in one frozen and picklable object: worker processes get it whole."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

PICTURES_PER_BLOCK = 25
"""Consecutive running numbers of pictures that stay together in splits and dealing: neighbours are slices of one
patient (of the SARS-CoV-2 set's pictures, 66 % have their nearest neighbour within 5 numbers)."""


@dataclass(frozen=True, slots=True)
class Options:
    """How scans are read, chosen and cut. ValueError when a number cannot be meant; it says what was wanted."""

    field_mm: float = 360.0
    """Side of the square field of view, in source millimetres."""
    size: int = 64
    """Side of a slice in pixels."""
    every_mm: float | None = 5.0
    """Step along the normal between kept slices; None keeps every slice."""
    region: Literal["chest", "any"] = "chest"
    """`chest` keeps the slices that show lung."""
    kernel: str | None = None
    """Of series of one acquisition, the one with this convolution kernel is taken; None: the smoothest known."""
    min_slices: int = 5
    """Series with fewer source slices are refused."""
    allow_burned_in: bool = False
    """Take images that are marked as carrying burned-in text, and do not screen the pixels for it."""
    released: frozenset[tuple[str, int]] = frozenset()
    """(path relative to the export, frame) of planes that a person of the site has looked at and found free of text:
    the screen does not hold them back again."""
    not_scans: frozenset[str] = frozenset()
    """Absolute paths within the export that are the site's own tables (labels.csv, ...): neither read nor reported."""

    def __post_init__(self) -> None:
        if not 10 <= self.field_mm <= 2000:
            raise ValueError(f"field_mm must lie in 10..2000 mm: got {self.field_mm}; 360 fits most chests")
        if not 8 <= self.size <= 1024:
            raise ValueError(f"size must lie in 8..1024 pixels: got {self.size}; 64 is the default")
        if self.every_mm is not None and not 0 < self.every_mm <= 1000:
            raise ValueError(f"every_mm must lie above 0, up to 1000 mm: got {self.every_mm}; None keeps every slice")
        if self.region not in ("chest", "any"):
            raise ValueError(f"region must be 'chest' or 'any': got {self.region!r}")
        if self.min_slices < 1:
            raise ValueError(f"min_slices must be at least 1: got {self.min_slices}")
