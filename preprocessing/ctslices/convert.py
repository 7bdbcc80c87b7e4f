"""One series to slices of the store, without a trace of where it came from: pure, and run in worker processes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from ctslices.options import Options
from ctslices.reject import Rejected
from ctslices.series import Series

Point = tuple[float, float, float]


@dataclass(frozen=True, slots=True)
class Converted:
    """What one series became. k slices, ascending along the normal; k may be 0."""

    hu: NDArray[np.int16]
    """int16 [k, size, size]: HU, or grey values 0..255 where `values` is grey."""
    values: Literal["hu", "grey"]
    position_mm: NDArray[np.float32]
    """float32 [k], along the series' normal; pictures: their running number."""
    planes: tuple[int, ...]
    """[k], index of each slice into `Series.planes`."""
    dropped_by_region: dict[str, int]
    """Slices not kept, by what they show: head, abdomen, limb, other."""
    centre_mm: Point | None = None
    """Centre of the field on the first kept slice, source LPS millimetres; None for pictures and where k is 0."""
    corners_mm: tuple[Point, ...] = ()
    """Outer corners of that field: of row 0 column 0, then clockwise on the image."""
    notes: tuple[str, ...] = ()
    """For the manifest: free of identifiers, dates, UIDs and paths."""
    rejected: tuple[Rejected, ...] = ()
    """Files refused at decoding, suspected burned-in text, or the whole series (not HU)."""
    quarantined: tuple[int, ...] = ()
    """Indices into `Series.planes` of the planes that the screen for burned-in text suspects; `picture` shows them."""
    labels: tuple[str, ...] = ()
    """[k], of pictures: the name of each one's class folder; () for everything else."""


def convert(series: Series, options: Options, isolate: bool = False) -> Converted:
    """The slices of `series` that `options` asks for, plane by plane: memory does not grow with the series.

    `isolate` decodes in a child process, so that a native decoder that dies costs one file and not this process.
    Files that cannot be decoded are in `rejected`; OSError when a file is gone.
    """
    raise NotImplementedError


def picture(series: Series, plane: int) -> NDArray[np.uint8]:
    """uint8 [rows, columns], HU -1000..1000 as 0..255: one source plane for a person to look at, as acquired."""
    raise NotImplementedError
