"""Do slices show a chest? Two lungs by a plain threshold, compared with what real slices measure.

The check is for slices in HU whose lower end reaches air (windows `full` and `lung`). It looks at anatomy alone and
says nothing about likeness in distribution: that is the Frechet distance's part.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

AIR_BELOW_HU = -500
"""Aerated lung and the air around the body lie below it, fat and soft tissue above."""

_TISSUE_ABOVE_HU = -300
_CENTRAL_THIRD = (0.33, 0.67)
_SLACK = 0.1
"""Share of a range's width that is added at both ends, since two halves of real slices differ by as much."""
_SOFTER = 0.75
_CROSS = ndimage.generate_binary_structure(2, 1)
_BLOCK = np.ones((2, 2), bool)


@dataclass(frozen=True, slots=True)
class Lungs:
    """What was measured in n slices; the first axis of pairs is (image's left, image's right). NaN: not found.

    area_share float64 [n, 2]: each lung's share of the picture. body_share [n]: body with lungs. offset_share [n, 2]:
    distance of the lung's middle from the body's in widths of the body. fill [n, 2]: share of its bounding box that a
    lung fills. sharpness_hu [n]: median over the lungs' border of the step within 3x3 pixels. air_share [n]: share of
    the picture below `AIR_BELOW_HU`. neck_share [n]: air in the column that parts the lungs, relative to the mean one.
    """

    area_share: NDArray[np.float64]
    body_share: NDArray[np.float64]
    offset_share: NDArray[np.float64]
    fill: NDArray[np.float64]
    sharpness_hu: NDArray[np.float64]
    air_share: NDArray[np.float64]
    neck_share: NDArray[np.float64]

    @property
    def found(self) -> NDArray[np.bool_]:
        """Slices bool [n] with a part of air on both sides of the body's middle."""
        return np.asarray(np.isfinite(self.area_share).all(axis=1), np.bool_)

    def area_mm2(self, field_mm: float) -> NDArray[np.float64]:
        """Areas float64 [n, 2] in mm^2 for slices whose side is `field_mm`."""
        return self.area_share * field_mm**2


@dataclass(frozen=True, slots=True)
class LungRange:
    """What real slices measure, as (low, high) of each quantity of `Lungs`, and their mean share of air."""

    area_share: tuple[float, float]
    body_share: tuple[float, float]
    offset_share: tuple[float, float]
    fill: tuple[float, float]
    sharpness_hu: tuple[float, float]
    neck_share: tuple[float, float]
    air_share: float
    slices: int
    """How many real slices it was learned from."""


@dataclass(frozen=True, slots=True)
class ChestCheck:
    """The verdict on a set of slices."""

    slices: int
    two_lungs_share: float
    """Share of slices in which two lungs of real area, place and sharpness were found."""
    real_two_lungs_share: float
    """The same of the real slices that the range was learned from."""
    air_share: float
    real_air_share: float

    @property
    def air_difference_points(self) -> float:
        """Difference of the shares of air in percentage points; positive: more air than real."""
        return 100.0 * (self.air_share - self.real_air_share)

    @property
    def is_chest(self) -> bool:
        """At least 90 percent with two lungs, and the share of air within 3 points of the real one."""
        return self.two_lungs_share >= 0.9 and abs(self.air_difference_points) <= 3.0


def measure(hu: NDArray[np.int16]) -> Lungs:
    """Measure slices int16 (or float) [n, s, s] in HU."""
    if hu.ndim != 3 or hu.shape[1] != hu.shape[2]:
        raise ValueError(f"slices must be [n, s, s], got {list(hu.shape)}: pass hu, without a channel axis")
    rows = [_measure_one(plane) for plane in hu]
    table = np.array(rows, np.float64).reshape(len(rows), 10)
    return Lungs(
        area_share=table[:, 0:2],
        offset_share=table[:, 2:4],
        fill=table[:, 4:6],
        body_share=table[:, 6],
        sharpness_hu=table[:, 7],
        neck_share=table[:, 8],
        air_share=table[:, 9],
    )


def _measure_one(hu: NDArray[np.int16]) -> list[float]:
    air_share = float((hu < AIR_BELOW_HU).mean())
    nothing = [np.nan] * 9 + [air_share]
    body = _body(hu)
    columns = np.flatnonzero(body.any(axis=0))
    if len(columns) < 8:
        return nothing
    air = body & (hu < AIR_BELOW_HU)
    left, width = int(columns[0]), len(columns)
    parting, neck = _parting(air, left, width)
    sides = [_largest(air, slice(0, parting)), _largest(air, slice(parting, hu.shape[1]))]
    if any(side is None for side in sides):
        return nothing
    lungs = [side for side in sides if side is not None]
    middle = left + (width - 1) / 2
    offsets = [abs(float(np.mean(np.nonzero(lung)[1])) - middle) / width for lung in lungs]
    areas = [float(lung.mean()) for lung in lungs]
    fills = [_fill(lung) for lung in lungs]
    return [*areas, *offsets, *fills, float(body.mean()), _sharpness(hu, lungs[0] | lungs[1]), neck, air_share]


def _body(hu: NDArray[np.int16]) -> NDArray[np.bool_]:
    """The largest piece of tissue, with what it encloses. Tables, thin as they are, fall off by an opening."""
    tissue = ndimage.binary_opening(hu > _TISSUE_ABOVE_HU, _BLOCK)
    labels, count = ndimage.label(tissue, _CROSS)
    if count == 0:
        return np.zeros(hu.shape, bool)
    largest = 1 + int(np.argmax(np.bincount(labels.ravel())[1:]))
    filled: NDArray[np.bool_] = ndimage.binary_fill_holes(labels == largest)
    return filled


def _parting(air: NDArray[np.bool_], left: int, width: int) -> tuple[int, float]:
    """The column of the body's middle third with the least air, and that air relative to the mean column's."""
    low, high = left + int(_CENTRAL_THIRD[0] * width), left + int(np.ceil(_CENTRAL_THIRD[1] * width))
    by_column = air.sum(axis=0)
    least = int(by_column[low:high].min())
    candidates = low + np.flatnonzero(by_column[low:high] == least)
    middle = left + (width - 1) / 2
    parting = int(candidates[np.argmin(np.abs(candidates - middle))])
    return parting, least / max(float(by_column[left : left + width].mean()), 1e-9)


def _largest(air: NDArray[np.bool_], columns: slice) -> NDArray[np.bool_] | None:
    side = np.zeros_like(air)
    side[:, columns] = air[:, columns]
    labels, count = ndimage.label(side, _CROSS)
    if count == 0:
        return None
    return np.asarray(labels == 1 + int(np.argmax(np.bincount(labels.ravel())[1:])))


def _fill(lung: NDArray[np.bool_]) -> float:
    rows, columns = np.nonzero(lung)
    return len(rows) / float((np.ptp(rows) + 1) * (np.ptp(columns) + 1))


def _sharpness(hu: NDArray[np.int16], lungs: NDArray[np.bool_]) -> float:
    border = lungs & ~ndimage.binary_erosion(lungs, _CROSS, border_value=1)
    step = ndimage.maximum_filter(hu, 3).astype(np.float64) - ndimage.minimum_filter(hu, 3)
    return float(np.median(step[border]))


def real_range(real_hu: NDArray[np.int16]) -> LungRange:
    """Learn the range from real slices int16 [n, s, s]: the percentiles 0.5 to 99.5 of each quantity, with some slack.

    A border may be a little softer than any real one (`_SOFTER`); a blur of 2 pixels lies far below that.
    Raises ValueError where fewer than half of them show two lungs.
    """
    lungs = measure(real_hu)
    found = lungs.found
    if len(found) == 0 or found.mean() < 0.5:
        raise ValueError(
            f"two lungs were found in {int(found.sum())} of {len(found)} real slices, wanted at least half: "
            "give chest slices in HU, from a store prepared with region chest"
        )
    return LungRange(
        area_share=_spread(lungs.area_share[found]),
        body_share=_spread(lungs.body_share[found]),
        offset_share=_spread(lungs.offset_share[found]),
        fill=_spread(lungs.fill[found]),
        sharpness_hu=(_SOFTER * float(np.percentile(lungs.sharpness_hu[found], 1.0)), np.inf),
        neck_share=(0.0, _spread(lungs.neck_share[found])[1]),
        air_share=float(lungs.air_share.mean()),
        slices=len(found),
    )


def _spread(values: NDArray[np.float64]) -> tuple[float, float]:
    low, high = np.percentile(values, [0.5, 99.5])
    slack = _SLACK * (high - low)
    return max(float(low - slack), 0.5 * float(low)), float(high + slack)


def check(hu: NDArray[np.int16], real: LungRange) -> NDArray[np.bool_]:
    """Slices bool [n] in which two lungs are found, and everything about them lies in the real range."""
    lungs = measure(hu)
    good = lungs.found
    for value, (low, high) in (
        (lungs.area_share, real.area_share),
        (lungs.body_share, real.body_share),
        (lungs.offset_share, real.offset_share),
        (lungs.fill, real.fill),
        (lungs.sharpness_hu, real.sharpness_hu),
        (lungs.neck_share, real.neck_share),
    ):
        inside = (value >= low) & (value <= high)
        good = good & (inside if inside.ndim == 1 else inside.all(axis=1))
    return good


def chest_check(hu: NDArray[np.int16], real_hu: NDArray[np.int16]) -> ChestCheck:
    """Judge slices int16 [n, s, s] against real ones int16 [m, s, s]."""
    if hu.shape[1:] != real_hu.shape[1:]:
        raise ValueError(f"slices must have the real ones' size {list(real_hu.shape[1:])}, got {list(hu.shape[1:])}")
    real = real_range(real_hu)
    return ChestCheck(
        slices=len(hu),
        two_lungs_share=float(check(hu, real).mean()),
        real_two_lungs_share=float(check(real_hu, real).mean()),
        air_share=float((hu < AIR_BELOW_HU).mean()),
        real_air_share=real.air_share,
    )
