"""Where the field of view lies: one orientation for all sources, and a square centred on the body.

The field's axes are the acquired plane's own rows and columns, swapped and turned so that the patient's right is on
the image's left and anterior is up (DICOM's LPS, PS3.3 C.7.6.2.1.1). Its centre keeps its two in-plane coordinates
from plane to plane, so the stack stands on the planes' true normal: what a tilted gantry sheared is upright again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from ctslices.resample import Overlap, area_average, overlap
from ctslices.series import PlaneGeometry, PlaneRef

BODY_HU = -300.0
"""Above it: body, or something as dense. Skin, fat and muscle are; lung, foam and clothes are not."""
THIN_HU = -500.0
"""Below it: lung, foam, gas. Outside air flows through foam and clothes."""
OUTSIDE_HU = -950.0
"""Where the air around the patient starts from, at the picture's edge."""
COARSE_MM = 4.0
"""Pixels of the coarse copies on which the body is sought and the region told."""
_TABLE_MM = 32.0
"""What is thinner than this is table, not body."""

Point = tuple[float, float, float]


@dataclass(frozen=True, slots=True)
class Orientation:
    """A series' in-plane axes as the store shows them; unit vectors, float64 [3], LPS."""

    right: NDArray[np.float64]
    """Along increasing image columns: to the patient's left."""
    down: NDArray[np.float64]
    """Along increasing image rows: to posterior."""
    transposed: bool
    """Whether the source's columns run along `down`."""

    @property
    def up(self) -> NDArray[np.float64]:
        """Unit normal of the planes, towards the head."""
        return np.cross(self.right, self.down)


def orientation_of(geometry: PlaneGeometry) -> Orientation:
    """The one of the eight ways to swap and turn a plane that comes nearest to LPS."""
    row, column = (_unit(v) for v in (geometry.row_direction, geometry.column_direction))
    transposed = bool(abs(row[0]) + abs(column[1]) < abs(row[1]) + abs(column[0]))
    right, down = (column, row) if transposed else (row, column)
    return Orientation(right * _sign(right[0]), down * _sign(down[1]), transposed)


@dataclass(frozen=True, slots=True)
class Field:
    """A square field of view: `centre` is (along right, along down) in source millimetres, the same for each plane."""

    orientation: Orientation
    centre: tuple[float, float]
    side_mm: float

    def on_plane(self, plane: PlaneRef) -> tuple[Point, tuple[Point, ...]]:
        """Centre and outer corners (of row 0 column 0, then clockwise) on one plane, LPS millimetres."""
        turn, half = self.orientation, self.side_mm / 2
        depth = np.asarray(plane.origin_mm) @ turn.up
        signs = ((0, 0), (-1, -1), (1, -1), (1, 1), (-1, 1))
        points = [
            (self.centre[0] + x * half) * turn.right + (self.centre[1] + y * half) * turn.down + depth * turn.up
            for x, y in signs
        ]
        centre, *corners = ((float(p[0]), float(p[1]), float(p[2])) for p in points)
        return centre, tuple(corners)


class Cutter:
    """Averages the planes of one series over the pixels of its field; remembers the shares of the last position."""

    def __init__(self, geometry: PlaneGeometry, field: Field, size: int) -> None:
        self._geometry, self._field, self._size = geometry, field, size
        self._known: dict[str, tuple[float, Overlap]] = {}

    def cut(self, pixels: NDArray[np.float32], plane: PlaneRef) -> NDArray[np.float32]:
        """float32 [size, size] HU from float32 [rows, columns] HU of `plane`."""
        turn, geometry = self._field.orientation, self._geometry
        rows, columns = geometry.shape
        between_rows, between_columns = geometry.spacing_mm
        along_right, along_down = (rows, between_rows), (columns, between_columns)
        if not turn.transposed:
            along_right, along_down = along_down, along_right
        right = self._shares("right", turn.right, plane, *along_right)
        down = self._shares("down", turn.down, plane, *along_down)
        return area_average(pixels, down, right, turn.transposed)

    def _shares(self, name: str, axis: NDArray[np.float64], plane: PlaneRef, count: int, spacing: float) -> Overlap:
        turn, geometry = self._field.orientation, self._geometry
        start = float(np.asarray(plane.origin_mm) @ axis)
        known = self._known.get(name)
        if known is not None and known[0] == start:
            return known[1]
        along_row = (name == "right") != turn.transposed
        source = geometry.row_direction if along_row else geometry.column_direction
        pitch = spacing * _sign(float(np.asarray(source) @ axis))
        centre = self._field.centre[0 if name == "right" else 1]
        low = centre - self._field.side_mm / 2
        shares = overlap(start, pitch, count, low, self._field.side_mm, self._size)
        self._known[name] = (start, shares)
        return shares


class Coarse:
    """Makes coarse copies of a series' whole planes, in the source's own axes."""

    def __init__(self, geometry: PlaneGeometry) -> None:
        lengths = [n * s for n, s in zip(geometry.shape, geometry.spacing_mm, strict=True)]
        sizes = [min(n, max(1, round(length / COARSE_MM))) for n, length in zip(geometry.shape, lengths, strict=True)]
        self._rows, self._columns = (
            overlap(s / 2, s, n, 0.0, length, size)
            for n, s, length, size in zip(geometry.shape, geometry.spacing_mm, lengths, sizes, strict=True)
        )
        self.pixel_mm: tuple[float, float] = (lengths[0] / sizes[0], lengths[1] / sizes[1])
        """Between rows, between columns of a copy: about 4 mm, or the source's where that is more."""

    def copy(self, pixels: NDArray[np.float32]) -> NDArray[np.float32]:
        """float32 [r, c] HU: area averages over the whole plane."""
        return area_average(pixels, self._rows, self._columns)


@dataclass(frozen=True, slots=True)
class BodyBox:
    """The body's box on one plane, in the field's coordinates: millimetres along right and down."""

    centre: tuple[float, float]
    width_mm: float
    height_mm: float


def body_box(
    coarse: NDArray[np.float32],
    pixel_mm: tuple[float, float],
    geometry: PlaneGeometry,
    turn: Orientation,
    plane: PlaneRef,
) -> BodyBox | None:
    """Where the body lies on a coarse copy, the table left out; None where there is none."""
    mask = body_mask(coarse, pixel_mm)
    if not mask.any():
        return None
    ends = [np.flatnonzero(mask.any(axis=1 - axis))[[0, -1]] for axis in (0, 1)]
    low, high = (
        [
            float(end[side] + side) * mm - half / 2
            for end, mm, half in zip(ends, pixel_mm, geometry.spacing_mm, strict=True)
        ]
        for side in (0, 1)
    )
    middle = [(a + b) / 2 for a, b in zip(low, high, strict=True)]
    point = (
        np.asarray(plane.origin_mm)
        + middle[0] * _unit(geometry.column_direction)
        + middle[1] * _unit(geometry.row_direction)
    )
    extent = [b - a for a, b in zip(low, high, strict=True)]
    width, height = extent if turn.transposed else extent[::-1]
    return BodyBox((float(point @ turn.right), float(point @ turn.down)), width, height)


def body_mask(coarse: NDArray[np.float32], pixel_mm: tuple[float, float]) -> NDArray[np.bool_]:
    """bool [r, c]: the largest piece of body, its lungs and bowel filled in, without what is as thin as a table."""
    dense = coarse > BODY_HU
    piece = _largest(opened(dense))
    if not piece.any():
        piece = _largest(dense)
    # a lung that the picture's edge cuts is no hole, but it is no air around the body either
    inner = (coarse < THIN_HU) & ~outside_air(coarse)
    whole = _largest(ndimage.binary_fill_holes(piece | inner))
    kept = _largest(opened(whole, max(1, round(_TABLE_MM / 2 / max(pixel_mm)))))
    return kept if kept.any() else whole


def outside_air(coarse: NDArray[np.float32]) -> NDArray[np.bool_]:
    """bool [r, c]: air that reaches the picture's edge, with the foam and clothes in it."""
    labels, count = ndimage.label(coarse < THIN_HU)
    outside = np.zeros(count + 1, bool)
    for edge in (np.s_[0], np.s_[-1], np.s_[:, 0], np.s_[:, -1]):
        outside[labels[edge][coarse[edge] < OUTSIDE_HU]] = True
    outside[0] = False
    found: NDArray[np.bool_] = outside[labels]
    return found


def opened(mask: NDArray[np.bool_], steps: int = 1) -> NDArray[np.bool_]:
    """Binary opening of bool [r, c] with a square of 2 `steps` + 1 pixels.

    Beyond the picture's edge a body that is cut off goes on: nothing is thinned there.
    """
    mask = eroded(mask, steps)
    for axis in (0, 1):
        mask = _slid(mask, axis, steps, np.logical_or)
    return mask


def eroded(mask: NDArray[np.bool_], steps: int = 1) -> NDArray[np.bool_]:
    """The first half of `opened`."""
    for axis in (0, 1):
        mask = _slid(mask, axis, steps, np.logical_and)
    return mask


def _slid(mask: NDArray[np.bool_], axis: int, steps: int, join: np.ufunc) -> NDArray[np.bool_]:
    """Each pixel joined with its neighbours up to `steps` away along one axis; the edge's pixels go on beyond it."""
    count = mask.shape[axis]
    padded = np.pad(mask, [(steps, steps) if k == axis else (0, 0) for k in (0, 1)], mode="edge")
    parts = [padded.take(range(k, k + count), axis=axis) for k in range(2 * steps + 1)]
    joined: NDArray[np.bool_] = join.reduce(parts)
    return joined


def centre_of(boxes: Sequence[BodyBox], fallback: tuple[float, float]) -> tuple[float, float]:
    """One centre for a series: the median over its planes, which a few odd ones do not move."""
    if not boxes:
        return fallback
    middle = np.median(np.asarray([box.centre for box in boxes]), axis=0)
    return float(middle[0]), float(middle[1])


def plane_centre(geometry: PlaneGeometry, turn: Orientation, plane: PlaneRef) -> tuple[float, float]:
    """The middle of a plane in the field's coordinates."""
    (rows, columns), (between_rows, between_columns) = geometry.shape, geometry.spacing_mm
    point = (
        np.asarray(plane.origin_mm)
        + (rows - 1) / 2 * between_rows * _unit(geometry.column_direction)
        + (columns - 1) / 2 * between_columns * _unit(geometry.row_direction)
    )
    return float(point @ turn.right), float(point @ turn.down)


def _largest(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    pieces, count = ndimage.label(mask)
    if count <= 1:
        return mask
    largest: NDArray[np.bool_] = pieces == 1 + int(np.argmax(np.bincount(pieces.ravel())[1:]))
    return largest


def _unit(vector: Sequence[float]) -> NDArray[np.float64]:
    values = np.asarray(vector, np.float64)
    return values / np.linalg.norm(values)


def _sign(value: float) -> float:
    return -1.0 if value < 0 else 1.0
