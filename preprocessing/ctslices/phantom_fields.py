"""Small implicit geometry for phantoms: soft edges, smooth unions, ellipsoids, smooth random fields.

Lengths are millimetres. A field is negative inside a shape and grows by about one a millimetre outwards; arrays
broadcast, dtype float32.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]


def soft(distance: Array, edge_mm: float) -> Array:
    """Share of a pixel inside a shape, float32 in [0, 1]: a linear ramp `edge_mm` wide over its border."""
    return np.asarray(np.clip(0.5 - distance * np.float32(1.0 / edge_mm), 0.0, 1.0), np.float32)


def paint(hu: Array, share: Array, value: Array | float) -> None:
    """Lay `value` [HU] over `hu` in place, weighted by `share`."""
    hu += share * (value - hu)


def smooth_max(a: Array, b: Array, radius_mm: float) -> Array:
    """Maximum with its crease rounded over `radius_mm`: an intersection of shapes without sharp corners."""
    h = np.maximum(radius_mm - np.abs(a - b), 0.0)
    return np.asarray(np.maximum(a, b) + h * h * np.float32(0.25 / radius_mm), np.float32)


def smooth_min(a: Array, b: Array, radius_mm: float) -> Array:
    """Minimum with its crease rounded: a union of shapes that flow into each other."""
    return -smooth_max(-a, -b, radius_mm)


def ellipsoid(
    x: Array, y: Array, z: Array | float, centre: tuple[float, float, float], radii: tuple[float, float, float]
) -> Array:
    """Field of an ellipsoid; to first order the distance in millimetres near its border."""
    sx, sy = (x - np.float32(centre[0])) / np.float32(radii[0]), (y - np.float32(centre[1])) / np.float32(radii[1])
    sz = np.asarray((z - centre[2]) / radii[2], np.float32)
    field = (np.sqrt(sx * sx + sy * sy + sz * sz) - np.float32(1.0)) * np.float32(min(radii[:2]))
    return np.asarray(field, np.float32)


def capsule(x: Array, y: Array, start: tuple[float, float], end: tuple[float, float], radius_mm: float) -> Array:
    """Field of a straight tube of one radius from `start` to `end` within the plane."""
    dx, dy = end[0] - start[0], end[1] - start[1]
    along = ((x - start[0]) * dx + (y - start[1]) * dy) / (dx * dx + dy * dy)
    along = np.clip(along, 0.0, 1.0)
    return np.hypot(x - start[0] - along * dx, y - start[1] - along * dy).astype(np.float32) - np.float32(radius_mm)


def step(value: float, low: float, high: float) -> float:
    """Smooth step from 0 at `low` to 1 at `high`."""
    t = min(max((value - low) / (high - low), 0.0), 1.0)
    return t * t * (3.0 - 2.0 * t)


class SmoothField:
    """A random smooth function of (x, y, z), mean 0 and deviation near 1, fixed for a patient.

    Values on a coarse lattice of `period_mm`, joined by cosine weights; `plane` evaluates one axial plane by two small
    matrix products.
    """

    def __init__(self, rng: np.random.Generator, period_mm: float, extent_mm: float = 520.0, height_mm: float = 420.0):
        self._period = period_mm
        self._extent = extent_mm
        side, high = int(extent_mm / period_mm) + 3, int(height_mm / period_mm) + 3
        self._lattice = rng.standard_normal((high, side, side), dtype=np.float32) * np.float32(1.6)
        self._weights: dict[bytes, Array] = {}

    def plane(self, x_mm: Array, y_mm: Array, z_mm: float) -> Array:
        """Values float32 [rows, cols] on the plane z of an axis-aligned grid: x_mm [cols], y_mm [rows]."""
        level = min(max(z_mm / self._period + 1.0, 0.0), self._lattice.shape[0] - 1.001)
        low = int(level)
        share = np.float32(step(level - low, 0.0, 1.0))
        values = self._lattice[low] * (1 - share) + self._lattice[low + 1] * share
        return np.asarray(self._matrix(y_mm) @ values @ self._matrix(x_mm).T, np.float32)

    def _matrix(self, axis_mm: Array) -> Array:
        key = axis_mm.tobytes()
        if key not in self._weights:
            side = self._lattice.shape[1]
            at = np.clip((axis_mm + self._extent / 2) / self._period, 0, side - 1.001)
            low = at.astype(int)
            share = at - low
            share = share * share * (3 - 2 * share)
            matrix = np.zeros((len(axis_mm), side), np.float32)
            rows = np.arange(len(axis_mm))
            matrix[rows, low] = 1 - share
            matrix[rows, low + 1] = share
            self._weights[key] = matrix
        return self._weights[key]
