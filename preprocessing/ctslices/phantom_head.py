"""A head phantom: skull, brain, ventricles, air of the sinuses. It has no lung, and belongs in no chest model."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ctslices.phantom_fields import Array, SmoothField, ellipsoid, paint, soft


def head_slices(
    rng: np.random.Generator, matrix: int, field_mm: float, heights_mm: NDArray[np.float64], noise_hu: float = 4.0
) -> NDArray[np.int16]:
    """Axial slices hu int16 [n, matrix, matrix]; height 0 is the skull's base, the crown lies near 120 mm."""
    axis = ((np.arange(matrix) - (matrix - 1) / 2) * (field_mm / matrix)).astype(np.float32)
    folds = SmoothField(rng, 13.0)
    size = float(rng.normal(1.0, 0.04))
    out = np.empty((len(heights_mm), matrix, matrix), np.int16)
    for i, z in enumerate(heights_mm):
        hu = _slice(axis / np.float32(size), float(z), folds, field_mm / matrix)
        out[i] = np.rint(hu + noise_hu * rng.standard_normal(hu.shape, dtype=np.float32)).astype(np.int16)
    return out


def _slice(axis: Array, z: float, folds: SmoothField, edge: float) -> Array:
    x, y = axis[None, :], axis[:, None]
    texture = folds.plane(axis, axis, z)
    hu = np.full((len(axis), len(axis)), -1000.0, np.float32)
    skull = ellipsoid(x, y, z, (0.0, 0.0, 36.0), (72.0, 92.0, 86.0))
    rest = np.maximum(np.abs(np.hypot(x, y + 20.0) - 124.0) - 1.5, 70.0 - y).astype(np.float32)
    paint(hu, soft(rest, edge), -150.0)
    paint(hu, soft(skull - 6.0, edge), 35.0)
    paint(hu, soft(skull, edge), 950.0)
    brain = skull + 6.5
    grey = np.clip(texture, -1.0, 1.0) * soft(np.abs(brain + 9.0) - 9.0, 4.0)
    paint(hu, soft(brain, edge), 31.0 + 6.0 * grey)
    for side in (-1.0, 1.0):
        paint(hu, soft(ellipsoid(x - side * 12.0, y, z, (0.0, -6.0, 52.0), (6.0, 30.0, 16.0)), edge), 6.0)
    if z < 24.0:
        _base(hu, x, y, texture, z, edge)
    return hu


def _base(hu: Array, x: Array, y: Array, texture: Array, z: float, edge: float) -> None:
    """Petrous bones, the air of the nose and of the mastoids, the eyes."""
    for side in (-1.0, 1.0):
        petrous = ellipsoid(x, y, z, (side * 38.0, 18.0, 6.0), (26.0, 11.0, 16.0))
        paint(hu, soft(petrous, edge), 800.0 + 120.0 * texture)
        paint(hu, soft(np.hypot(x - side * 52.0, y - 26.0) - 4.0 - texture, edge), -700.0)
        paint(hu, soft(ellipsoid(x, y, z, (side * 32.0, -74.0, 4.0), (13.0, 13.0, 13.0)), edge), 12.0)
    paint(hu, soft(np.maximum(np.abs(x) - 11.0, np.abs(y + 58.0) - 22.0), edge), -950.0)
    paint(hu, soft(np.abs(x) - 1.0 + 40.0 * (np.abs(y + 58.0) > 22.0), edge), 250.0)
