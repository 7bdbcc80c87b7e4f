"""Stored values to Hounsfield units, and the sign that a series' values were never HU."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ctslices.series import AIR_HU


def to_hu(
    stored: NDArray[np.integer], slope: float, intercept: float, padding: tuple[int, int] | None = None
) -> NDArray[np.float32]:
    """HU float32 [rows, columns] = slope * stored + intercept (PS3.3 C.11.1.1.2), of integer [rows, columns].

    Stored values within `padding` (lowest, highest, inclusive) and everything below -1024 HU (makers fill the corners
    outside the reconstruction circle with -2000, -2048, -3024, ...) become -1024; nothing is clipped above. Whether
    the picture is MONOCHROME1 or MONOCHROME2 changes its display and not its HU.
    """
    hu: NDArray[np.floating] = stored.astype(np.float64 if stored.dtype.itemsize > 2 else np.float32)
    if slope != 1.0:
        np.multiply(hu, slope, out=hu)
    if intercept != 0.0:
        np.add(hu, intercept, out=hu)
    if hu.min() < AIR_HU:
        # Eight times as fast as numpy's maximum in the usual case, in which nothing lies below.
        np.copyto(hu, AIR_HU, where=hu < AIR_HU)
    if padding is not None and max(slope * end + intercept for end in padding) > AIR_HU:
        low, high = padding
        hu[stored == low if low == high else (stored >= low) & (stored <= high)] = AIR_HU
    return hu.astype(np.float32, copy=False)


class RescaledCheck:
    """Watches the planes of one series for values that were stretched to one range in each slice.

    Pictures that were turned into "CT" (or scans normalised slice by slice) reach the same maximum in each slice; in a
    real scan the maximum moves with the bones. A scanner's own ceiling (metal, 3071 HU) lies high and is reached in
    many pixels of a slice, a stretched maximum in one or a few.
    """

    MIN_PLANES = 5
    METAL_HU = 2000.0
    """No scanner's ceiling lies lower."""

    def __init__(self) -> None:
        self._planes = 0
        self._maxima: set[float] = set()
        self._stored_maxima: set[float] = set()
        self._slopes: set[float] = set()
        self._lone = 0

    def add(self, hu: NDArray[np.float32], slope: float = 1.0, intercept: float = 0.0) -> None:
        """Take note of one plane: HU float32 [rows, columns], and the rescale it was made with."""
        highest = float(hu.max())
        self._planes += 1
        self._maxima.add(highest)
        self._stored_maxima.add(round((highest - intercept) / slope, 3))
        self._slopes.add(slope)
        if len(self._maxima) == 1 or len(self._stored_maxima) == 1:
            self._lone += int(np.count_nonzero(hu == highest)) <= max(8, hu.size // 20_000)

    @property
    def stretched(self) -> bool:
        """Whether all planes so far (at least 5) share one maximum that looks stretched: the series is not HU."""
        if self._planes < self.MIN_PLANES:
            return False
        if len(self._maxima) == 1:
            return self._lone > self._planes // 2 or max(self._maxima) < self.METAL_HU
        return len(self._stored_maxima) == 1 and len(self._slopes) > 1
