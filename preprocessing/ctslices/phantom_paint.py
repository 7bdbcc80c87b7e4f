"""One axial slice of a phantom patient, in HU: organs painted over one another from the skin inwards."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import numpy as np

from ctslices.phantom_anatomy import Anatomy
from ctslices.phantom_disease import Disease
from ctslices.phantom_fields import Array, SmoothField, capsule, ellipsoid, paint, smooth_min, soft, step
from ctslices.phantom_vessels import Vessels, draw


@dataclass(frozen=True, slots=True)
class Texture:
    """Smooth random fields of one patient: warp of the shapes, streaks of fat, mottling of lung and organs."""

    warp_x: SmoothField
    warp_y: SmoothField
    coarse: SmoothField
    fine: SmoothField

    @classmethod
    def draw(cls, rng: np.random.Generator) -> Texture:
        """Draw a patient's fields."""
        return cls(SmoothField(rng, 62.0), SmoothField(rng, 62.0), SmoothField(rng, 30.0), SmoothField(rng, 11.0))


@dataclass(frozen=True, slots=True)
class Plane:
    """The grid of one slice: axes float32 [cols], [rows] in mm about the patient's middle; height and thickness."""

    x_mm: Array
    y_mm: Array
    z_mm: float
    thickness_mm: float
    rotation: float = 0.0

    @property
    def pixel_mm(self) -> float:
        """Distance of neighbouring columns."""
        return float(self.x_mm[1] - self.x_mm[0])


class Painter:
    """Paints slices of one patient."""

    def __init__(self, anatomy: Anatomy, texture: Texture, vessels: Vessels, disease: Disease | None):
        self.anatomy = anatomy
        self.texture = texture
        self.vessels = vessels
        self.disease = disease

    def slice(self, plane: Plane) -> Array:
        """HU float32 [rows, cols] without noise; air around the body is -1000."""
        z, t = plane.z_mm, self.texture
        shift_x = 3.5 * t.warp_x.plane(plane.x_mm, plane.y_mm, z)
        shift_y = 3.0 * t.warp_y.plane(plane.x_mm, plane.y_mm, z)
        cos, sin = np.float32(np.cos(plane.rotation)), np.float32(np.sin(plane.rotation))
        x = (cos * plane.x_mm[None, :] + sin * plane.y_mm[:, None] + shift_x).astype(np.float32)
        y = (cos * plane.y_mm[:, None] - sin * plane.x_mm[None, :] + shift_y).astype(np.float32)
        coarse = t.coarse.plane(plane.x_mm, plane.y_mm, z)
        fine = t.fine.plane(plane.x_mm, plane.y_mm, z)
        sketch = _Sketch(self, plane, (x, y), (coarse, fine))
        sketch.table()
        sketch.wall()
        sketch.below_the_diaphragm()
        sketch.part(100.0, -125.0, 105.0).mediastinum()
        sketch.lungs()
        sketch.part(75.0, -40.0, 60.0).airways()
        sketch.ribs()
        sketch.part(70.0, 0.0, 160.0).spine()
        sketch.other_bones()
        return sketch.hu


class _Sketch:
    """A slice being painted."""

    def __init__(self, painter: Painter, plane: Plane, at: tuple[Array, Array], mottle: tuple[Array, Array]):
        x, y = at
        self.a = painter.anatomy
        self.h = painter.anatomy.habitus
        self.painter = painter
        self.plane = plane
        self.x, self.y, self.z = x, y, plane.z_mm
        self.u = plane.z_mm / self.h.lung_height_mm
        self.coarse, self.fine = mottle
        self.edge = plane.pixel_mm
        self.hu = np.full(x.shape, -1000.0, np.float32)
        self.cage = self.a.cage(x, y, self.z)
        self.skin = self.a.body(x, y, self.z)
        reach = np.hypot(x, y) + np.float32(1.0)
        self.sideways, self.backwards = x / reach, y / reach

    def part(self, half_width_mm: float, front_mm: float, back_mm: float) -> _Sketch:
        """The middle of this slice alone, painted in place: small organs need no whole plane."""
        columns = slice(*np.searchsorted(self.plane.x_mm, [-half_width_mm, half_width_mm]))
        rows = slice(*np.searchsorted(self.plane.y_mm, [front_mm, back_mm]))
        some = copy.copy(self)
        for name in ("hu", "x", "y", "cage", "skin", "coarse", "fine", "sideways", "backwards"):
            setattr(some, name, getattr(self, name)[rows, columns])
        return some

    def table(self) -> None:
        """The table: a thin curved shell with foam in it, under the back. It does not turn with the patient."""
        x, y = self.plane.x_mm[None, :], self.plane.y_mm[:, None]
        rest = self.h.half_depth_mm + 37.0 + 0.85 * self.h.fat_mm
        below = (y - rest + np.square(x) * np.float32(1 / 1500)).astype(np.float32)
        shell = np.maximum(np.abs(below - 12.0) - 12.0, np.abs(x) - 205.0)
        paint(self.hu, soft(shell, self.edge), -930.0)
        paint(self.hu, soft(np.abs(shell) - 1.2, self.edge), -180.0)

    def wall(self) -> None:
        """Skin, fat, muscle with planes of fat in it, and whatever lies in the cage before the organs: fat."""
        h = self.h
        paint(self.hu, soft(self.skin, self.edge), -105.0 + 6.0 * self.fine)
        if h.breast_mm > 0:
            gland = self.a.breast(self.x, self.y + 6.0, self.z) + 14.0 + 7.0 * self.coarse
            share = soft(gland, 6.0) * soft(self.skin + 8.0, self.edge)
            paint(self.hu, 0.75 * share, 15.0 + 25.0 * self.fine)
        paint(self.hu, soft(np.abs(self.skin + 1.0) - 1.0, self.edge), 5.0)
        thick = h.fat_mm * (0.72 + 0.30 * np.abs(self.sideways) - 0.25 * self.backwards) + 2.5 * self.coarse
        thick = thick * (1.0 - 0.45 * np.exp(-np.square(self.x / 28.0)))
        deep = self.skin + np.maximum(thick, 3.0)
        muscle = soft(deep, self.edge)
        planes = np.abs(self.cage - 15.0 - 5.0 * self.coarse - 6.0 * np.abs(self.sideways))
        streaks = np.exp(-np.square(planes / 1.8)) * (np.abs(self.x) > 24.0) * (0.45 + 0.5 * step(self.u, 0.2, 0.7))
        streaks = np.maximum(streaks, 0.8 * np.exp(-np.square(self.coarse / 0.07)) * (self.cage > 16.0))
        paint(self.hu, muscle, (54.0 + 7.0 * self.fine) * (1.0 - streaks) - 95.0 * streaks)
        paint(self.hu, soft(self.cage + 0.5, self.edge), -96.0 + 5.0 * self.fine)

    def below_the_diaphragm(self) -> None:
        """Liver on the right, spleen and a stomach with a bubble of gas on the left, some fat between."""
        if self.z > 1.2 * self.h.dome_mm:
            return
        below = self.a.below_diaphragm(self.x, self.y, self.z)
        inside = np.maximum(self.cage + 1.0, below)
        shown = soft(inside, self.edge)
        paint(self.hu, shown, -92.0 + 6.0 * self.fine)
        contrast = 0.35 * (self.h.blood_hu - 42.0)
        right = ellipsoid(self.x, self.y, self.z, (-52.0, -6.0, 12.0), (98.0, 86.0, 74.0))
        liver = smooth_min(right, ellipsoid(self.x, self.y, self.z, (20.0, -48.0, 22.0), (62.0, 34.0, 48.0)), 12.0)
        paint(self.hu, soft(liver, self.edge) * shown, 58.0 + contrast + 5.0 * self.fine)
        spleen = ellipsoid(self.x, self.y, self.z, (96.0, 46.0, 5.0), (30.0, 44.0, 52.0))
        paint(self.hu, soft(spleen, self.edge) * shown, 52.0 + contrast + 4.0 * self.fine)
        stomach = ellipsoid(self.x, self.y, self.z, (62.0, -10.0, 8.0), (44.0, 46.0, 50.0))
        paint(self.hu, soft(stomach, self.edge) * shown, 28.0 + 8.0 * self.fine)
        gas = np.maximum(stomach + 4.0, self.y + 34.0 - self.h.stomach_gas_mm)
        paint(self.hu, soft(gas, self.edge) * shown, -980.0)

    def mediastinum(self) -> None:
        """Heart, great vessels, oesophagus and fat between them."""
        h, x, y, z, u = self.h, self.x, self.y, self.z, self.u
        blood = h.blood_hu
        heart = self.a.heart(x, y, z)
        above = soft(-self.a.below_diaphragm(x, y, z), self.edge) * soft(self.cage, self.edge)
        share = soft(heart, self.edge) * above
        paint(self.hu, share, 44.0 + 0.25 * (blood - 42.0) + 3.0 * self.fine)
        if blood > 60.0:
            dx, dy = x - 20.0, y + 30.0
            for along, across in ((26.0, 13.0), (-26.0, -4.0), (4.0, -24.0)):
                chamber = ellipsoid(dx, dy, z, (along, across, 0.39 * h.lung_height_mm), (26.0, 19.0, 40.0))
                paint(self.hu, 0.75 * soft(chamber, 7.0) * share, blood)
        ax, ay = self.a.aorta_centre(z)
        if u < 0.80:
            self._tube(ax, ay, 12.0, blood)
        self._tube(4.0, self.a.spine_y(z) - 24.0 - 3.0 * step(u, 0.4, 0.8), 6.5, 36.0)
        if 0.47 < u < 0.80:
            self._tube(-12.0 + h.arch_shift_mm, -28.0, 16.0 - 3.0 * step(u, 0.6, 0.78), blood)
        if 0.50 < u < 0.96:
            self._tube(-29.0, -20.0 + 8.0 * step(u, 0.75, 0.95), 8.5, blood + 0.3 * (blood - 42.0))
        if 0.48 < u < 0.62:
            self._tube(17.0, -36.0, 14.0, blood)
        self._arteries(blood)
        if 0.76 < u < 0.835:
            paint(self.hu, soft(self.a.arch(x, y), self.edge), blood)
        if u >= 0.82:
            for cx, cy, r in ((-20.0, -16.0, 6.0), (6.0, -12.0, 4.5), (18.0, 2.0, 5.0), (14.0, -28.0, 6.5)):
                self._tube(cx * (1 + 0.5 * step(u, 0.85, 1.1)), cy, r, blood)

    def _arteries(self, blood: float) -> None:
        if 0.545 < self.u < 0.60:
            paint(self.hu, soft(capsule(self.x, self.y, (15.0, -28.0), (-40.0, -4.0), 10.0), self.edge), blood)
        if 0.58 < self.u < 0.65:
            paint(self.hu, soft(capsule(self.x, self.y, (17.0, -30.0), (42.0, 6.0), 9.5), self.edge), blood)

    def _tube(self, cx: float, cy: float, radius: float, value: float) -> None:
        field = np.hypot(self.x - np.float32(cx), self.y - np.float32(cy)) - np.float32(radius)
        paint(self.hu, soft(field, self.edge), value)

    def lungs(self) -> None:
        """Aerated lung, denser where it hangs, with vessels and disease in it; fluid behind it."""
        if self.u > 1.02 or self.u < -0.05:
            return
        field = self.a.lungs(self.x, self.y, self.z, self.cage)
        share = soft(field, self.edge)
        if not (share > 0).any():
            return
        lung = self.h.lung_hu + np.float32(0.45) * self.y + 12.0 * self.coarse + 14.0 * self.fine
        plane = self.plane
        vessel = draw(self.painter.vessels, plane.x_mm, plane.y_mm, plane.z_mm, plane.thickness_mm)
        lung += vessel * (self.h.blood_hu - 10.0 - lung)
        fissure = self.y - 22.0 + 0.9 * (self.z - 0.55 * self.h.lung_height_mm) + 0.12 * np.abs(self.x)
        lung += 90.0 * np.exp(-np.square(fissure / 1.6)) * (np.abs(self.x) > 20.0)
        disease = self.painter.disease
        if disease is not None:
            lung = disease.shade(lung, (self.x, self.y, self.z), self.coarse, self.fine)
        paint(self.hu, share, lung)
        if disease is not None and disease.fluid_mm > 0:
            paint(self.hu, share * disease.fluid(self.x, self.y, self.z, self.h.half_depth_mm, self.edge), 12.0)

    def airways(self) -> None:
        """Trachea, carina and the main bronchi, with their walls."""
        u, edge = self.u, self.edge
        if u > 0.66:
            self._airway(np.hypot(self.x - 1.0, (self.y - 6.0) * 0.94).astype(np.float32) - 8.5, edge)
        elif u > 0.40:
            apart = 8.0 + 150.0 * (0.66 - u)
            radius = 7.4 - 11.0 * (0.66 - u)
            for side in (-1.0, 1.0):
                wide = np.hypot((self.x - side * apart) * 0.72, self.y - 7.0 - 40.0 * (0.66 - u)).astype(np.float32)
                self._airway(wide - radius, edge)

    def _airway(self, field: Array, edge: float) -> None:
        paint(self.hu, soft(field - 1.5, edge), 20.0)
        paint(self.hu, soft(field, edge), -985.0)

    def ribs(self) -> None:
        """Ribs fall from the back to the front, so that a slice cuts several of them aslant; cartilage in front."""
        ring = self.cage - np.float32(6.0)
        phase = (self.z + 42.0 * (1.0 - self.backwards)) / 25.0
        dz = (phase - np.floor(phase) - 0.5) * 25.0
        e = np.sqrt(np.square(dz / 6.3) + np.square(ring / 4.6))
        field = (e - 1.0) * 4.6
        away = (np.abs(self.x) > 27.0) | (self.y < 0)
        front = np.clip((-self.backwards - 0.70) / 0.08, 0, 1) * np.float32(1.0 - step(self.u, 0.7, 0.85))
        scale = self.h.bone_scale
        cortex = (690.0 * scale) * (1 - front) + 95.0 * front
        marrow = (190.0 * scale) * (1 - front) + 85.0 * front
        share = soft(field, self.edge) * away * soft(self.skin + 4.0, self.edge)
        paint(self.hu, share, cortex)
        paint(self.hu, soft(field + 1.7, self.edge) * away, marrow)

    def spine(self) -> None:
        """Vertebral body or disc, canal, arch, transverse and spinous processes."""
        x, cy, edge, scale = self.x, self.a.spine_y(self.z), self.edge, self.h.bone_scale
        phase = (self.z / 23.0) % 1.0
        disc = step(abs(phase - 0.5), 0.36, 0.44)
        widen = 1.0 + 0.12 * (1.0 - step(self.u, -0.1, 0.6))
        y = self.y - np.float32(cy)
        body = np.maximum(ellipsoid(x, y, 0.0, (0.0, 0.0, 0.0), (18.0 * widen, 15.0 * widen, 1.0)), y - 12.5)
        process = (1.0 - disc) * step(0.35 - abs(phase - 0.55), 0.0, 0.1)
        arch = np.abs(np.hypot(x, (y - 21.0) * 1.05).astype(np.float32) - 11.0) - 2.6
        arch = np.maximum(arch, 11.0 - y)
        spinous = np.maximum(np.abs(x) - 3.2, np.abs(y - 39.0) - 10.0)
        wings = capsule(np.abs(x), y, (11.0, 17.0), (34.0, 26.0), 4.5) + np.float32(9.0 * (1.0 - process))
        back = smooth_min(smooth_min(arch, spinous, 4.0), wings, 4.0)
        paint(self.hu, soft(back, edge), 560.0 * scale)
        paint(self.hu, soft(back + 2.2, edge), 260.0 * scale)
        paint(self.hu, soft(body, edge), 520.0 * scale * (1 - disc) + 95.0 * disc)
        marrow = (175.0 * scale + 22.0 * self.fine) * (1 - disc) + 85.0 * disc
        paint(self.hu, soft(body + 2.0, edge), marrow)
        canal = np.hypot(x, (y - 21.0) * 1.05).astype(np.float32) - 8.3
        paint(self.hu, soft(canal, edge), 25.0)

    def other_bones(self) -> None:
        """Sternum in front, shoulder blades behind, collar bones above."""
        x, y, u, edge, scale = self.x, self.y, self.u, self.edge, self.h.bone_scale
        if 0.28 < u < 1.0:
            wide = 16.0 + 12.0 * step(u, 0.72, 0.86)
            front = -0.5 * (self.h.half_depth_mm * 2 + 13.0) * (1.0 - 0.10 * step(u, 0.35, 0.8))
            front += 30.0 * step(u, 0.62, 1.05)
            bowed = np.abs(y - np.float32(front) - np.float32(0.004) * x * x) - np.float32(5.5)
            sternum: Array = np.maximum(np.abs(x) - np.float32(wide), bowed)
            paint(self.hu, soft(sternum, edge), 430.0 * scale)
            paint(self.hu, soft(sternum + 1.8, edge), 130.0 * scale)
        if u > 0.42:
            self._blades()
        if 0.9 < u < 1.08:
            bone = capsule(np.abs(x), y, (22.0, -58.0), (110.0 - 200.0 * (1.05 - u), -30.0), 6.0)
            paint(self.hu, soft(bone, edge), 600.0 * scale)
            paint(self.hu, soft(bone + 2.4, edge), 240.0 * scale)

    def _blades(self) -> None:
        grow = step(self.u, 0.42, 0.75)
        w, d = self.h.half_width_mm, self.h.half_depth_mm
        start = (w * 0.62, d * 0.98)
        end = (w * (0.70 + 0.36 * grow), d * (0.90 - 0.52 * grow))
        blade = capsule(np.abs(self.x), self.y, start, end, 2.6 + 1.2 * grow)
        inside = soft(self.skin + 6.0, self.edge) * soft(6.0 - self.cage, self.edge)
        paint(self.hu, soft(blade, self.edge) * inside, 560.0 * self.h.bone_scale)
