"""The shape of one phantom patient's chest as functions of position, in millimetres.

Axes are DICOM's: x to the patient's left, y to the back, z to the head; z = 0 is the bottom of the lungs' recesses, the
origin of x and y the middle of the rib cage. Sizes are those of textbook anatomy for an adult, varied by patient.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from ctslices.phantom_fields import Array, capsule, ellipsoid, smooth_max, smooth_min, step


@dataclass(frozen=True, slots=True)
class Habitus:
    """One patient's build. Lengths in millimetres, attenuation in HU."""

    half_width_mm: float = 132.0
    half_depth_mm: float = 96.0
    lung_height_mm: float = 245.0
    fat_mm: float = 16.0
    heart_scale: float = 1.0
    dome_mm: float = 75.0
    breast_mm: float = 0.0
    lung_hu: float = -865.0
    blood_hu: float = 42.0
    bone_scale: float = 1.0
    stomach_gas_mm: float = 30.0
    arch_shift_mm: float = 0.0


class Anatomy:
    """Fields of the large structures of one patient: body, rib cage, mediastinum, diaphragm, lungs."""

    def __init__(self, habitus: Habitus):
        self.habitus = habitus

    def _cage_axes(self, z: float) -> tuple[float, float, float]:
        h = self.habitus
        u = z / h.lung_height_mm
        shrink = max(1.0 - max(0.0, (u - 0.35) / 0.69) ** 2.6, 0.03) ** 0.5
        wide = h.half_width_mm * shrink * (1.0 - 0.05 * step(-u, -0.25, 0.2))
        deep = h.half_depth_mm * (1.0 - 0.13 * step(u, 0.35, 0.8)) * (0.35 + 0.65 * shrink)
        return wide, deep, 4.0 + 16.0 * step(u, 0.45, 1.05)

    def cage(self, x: Array, y: Array, z: float) -> Array:
        """Inner surface of the rib cage: an egg that is wider at the back and closes towards the apex."""
        wide, deep, shift = self._cage_axes(z)
        ys = (y - shift) / deep
        xs = x / (wide * (1.0 + 0.08 * np.clip(ys, -1.2, 1.0)))
        x2, y2 = xs * xs, ys * ys
        norm = 0.55 * np.sqrt(x2 + y2) + 0.45 * np.sqrt(np.sqrt(x2 * x2 + y2 * y2))
        reach = np.hypot(x, y - shift)
        return np.asarray(reach * (1.0 - 1.0 / np.maximum(norm, 0.05)), np.float32)

    def body(self, x: Array, y: Array, z: float) -> Array:
        """The skin: rib cage, muscle and fat; shoulders above, breasts in front."""
        h = self.habitus
        u = z / h.lung_height_mm
        shoulders = step(u, 0.62, 1.02)
        wide = h.half_width_mm + 27.0 + h.fat_mm + 42.0 * shoulders
        deep = h.half_depth_mm + 26.0 + 0.85 * h.fat_mm - 12.0 * shoulders
        xs, ys = x / wide, (y - 8.0 - 8.0 * shoulders) / deep
        x2, y2 = xs * xs, ys * ys
        norm = 0.6 * np.sqrt(x2 + y2) + 0.4 * np.sqrt(np.sqrt(x2 * x2 + y2 * y2))
        field: Array = np.asarray(np.hypot(x, y) * (1.0 - 1.0 / np.maximum(norm, 0.05)), np.float32)
        furrow = np.exp(-np.square(x / 17.0)) * (y > 0)
        field += (5.0 * furrow).astype(np.float32)
        if h.breast_mm > 0:
            field = smooth_min(field, self.breast(x, y, z), 26.0)
        return field

    def breast(self, x: Array, y: Array, z: float) -> Array:
        """Both breasts, lying slightly to the sides as on a table."""
        h = self.habitus
        centre_y = -(h.half_depth_mm + 12.0 + 0.85 * h.fat_mm)
        radii = (70.0, 12.0 + 0.75 * h.breast_mm, 64.0)
        return ellipsoid(np.abs(x), y, z, (76.0, centre_y, 0.36 * h.lung_height_mm), radii)

    def dome_height(self, x: Array, y: Array) -> Array:
        """Height of the diaphragm float32: right dome (x < 0) above the left one, falling to the recesses."""
        h = self.habitus
        left = x > 0
        peak = np.where(left, 0.80 * h.dome_mm, h.dome_mm)
        across = (np.abs(x) - 60.0) / (0.54 * h.half_width_mm)
        along = (y + 26.0) / (1.12 * h.half_depth_mm)
        across = np.where(np.abs(x) < 60.0, 0.45 * across, across)
        return (peak - h.dome_mm * 1.08 * (across * across + along * along) + 4.0).astype(np.float32)

    def below_diaphragm(self, x: Array, y: Array, z: float) -> Array:
        """Negative below the diaphragm's dome."""
        return (np.float32(z) - self.dome_height(x, y)) * np.float32(0.62)

    def heart(self, x: Array, y: Array, z: float, grow_mm: float = 0.0) -> Array:
        """The heart: an ellipsoid that points to the left and front."""
        h = self.habitus
        c, s = 0.84, 0.54
        dx, dy = x - 20.0, y + 30.0
        along, across = c * dx - s * dy, s * dx + c * dy
        scale = h.heart_scale
        radii = (61.0 * scale + grow_mm, 46.0 * scale + grow_mm, 54.0 * scale + grow_mm)
        return ellipsoid(along, across, z, (0.0, 0.0, 0.39 * h.lung_height_mm), radii)

    def spine_y(self, z: float) -> float:
        """Where the middle of the vertebral bodies lies: the thoracic spine curves backwards."""
        u = z / self.habitus.lung_height_mm
        bow = 10.0 * math.sin(math.pi * min(max(u, 0.0), 1.0))
        return 0.60 * self.habitus.half_depth_mm + bow - 6.0 * step(u, 0.7, 1.1)

    def aorta_centre(self, z: float) -> tuple[float, float]:
        """Centre of the descending aorta, beside and before the spine."""
        low = 1.0 - step(z / self.habitus.lung_height_mm, -0.1, 0.45)
        return 25.0 - 14.0 * low, self.spine_y(z) - 18.0 - 8.0 * low

    def mediastinum(self, x: Array, y: Array, z: float) -> Array:
        """All that lies between the lungs, as one shape that flows together."""
        h = self.habitus
        u = z / h.lung_height_mm
        spine = self.spine_y(z)
        field = self.heart(x, y, z, grow_mm=5.0)
        great = (0.0, -14.0, 0.66 * h.lung_height_mm)
        field = smooth_min(field, ellipsoid(x, y, z, great, (34.0, 45.0, 62.0)), 14.0)
        top = step(u, 0.72, 0.9)
        upper = ellipsoid(x, y, 0.0, (0.0, 2.0, 0.0), (27.0 + 8.0 * step(u, 0.85, 1.0), 38.0, 1.0))
        field = smooth_min(field, upper + np.float32(40.0 * (1.0 - top)), 12.0)
        ax, ay = self.aorta_centre(z)
        aorta = np.hypot(x - ax, y - ay).astype(np.float32) - np.float32(14.5 - 25.0 * step(u, 0.78, 0.95))
        field = smooth_min(field, aorta, 8.0)
        field = smooth_min(field, ellipsoid(x, y, 0.0, (0.0, spine + 6.0, 0.0), (20.0, 25.0, 1.0)), 10.0)
        middle = ellipsoid(x, y, 0.0, (4.0, spine - 26.0, 0.0), (15.0, 24.0, 1.0))
        field = smooth_min(field, middle, 10.0)
        junction = np.abs(x - 2.0 * np.sin(y * 0.03) - 4.0).astype(np.float32) - np.float32(
            4.5 + 3.0 * step(-u, -0.5, 0)
        )
        field = smooth_min(field, junction, 9.0)
        return self._with_hila(field, x, y, z)

    def _with_hila(self, field: Array, x: Array, y: Array, z: float) -> Array:
        height = self.habitus.lung_height_mm
        for side, at in ((-1.0, 0.52), (1.0, 0.56)):
            hilum = ellipsoid(x, y, z, (side * 36.0, 6.0, at * height), (17.0, 15.0, 26.0))
            field = smooth_min(field, hilum, 10.0)
        return field

    def lungs(self, x: Array, y: Array, z: float, cage: Array | None = None) -> Array:
        """Both lungs, negative inside: the cage without mediastinum and what is below the diaphragm."""
        cage = self.cage(x, y, z) if cage is None else cage
        field = smooth_max(cage + np.float32(1.5), -self.mediastinum(x, y, z), 9.0)
        field = smooth_max(field, -self.below_diaphragm(x, y, z), 8.0)
        top = np.float32((z - self.habitus.lung_height_mm) * 0.8)
        return np.maximum(field, top)

    def arch(self, x: Array, y: Array) -> Array:
        """The aortic arch in its plane, from the front right to the back left."""
        shift = self.habitus.arch_shift_mm
        return capsule(x, y, (-12.0 + shift, -26.0), (21.0 + shift, 22.0), 12.5)
