"""Disease in phantom lungs: ground-glass opacities, consolidation, nodules, effusion."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from ctslices.phantom_anatomy import Anatomy
from ctslices.phantom_fields import Array, soft

Kind = Literal["ground-glass", "consolidation", "nodules", "effusion"]


@dataclass(frozen=True, slots=True)
class Disease:
    """Where a patient's lungs are changed: foci float32 [n, 3] in mm, their radii [n], and the fluid's depth."""

    kind: Kind
    foci_mm: Array
    radius_mm: Array
    fluid_mm: float = 0.0
    fluid_side: float = 1.0

    def shade(self, lung: Array, at: tuple[Array, Array, float], coarse: Array, fine: Array) -> Array:
        """Changed lung HU float32 [rows, cols] at the places `at` = (x, y, z) in mm."""
        x, y, z = at
        ragged = np.maximum(1.0 + 0.35 * coarse + 0.12 * fine, 0.3)
        weight = np.zeros_like(lung)
        reach = 1.7 * self.radius_mm
        for (fx, fy, fz), r, near in zip(self.foci_mm, self.radius_mm, reach, strict=True):
            if abs(z - fz) > near:
                continue
            d2 = (np.square(x - fx) + np.square(y - fy) + np.float32((z - fz) ** 2)) / np.float32(r * r)
            if self.kind == "nodules":
                weight = np.maximum(weight, np.clip((1.0 - np.sqrt(d2)) * np.float32(r) / 1.6 + 0.5, 0, 1))
            else:
                weight += np.exp(-np.square(d2 * ragged))
        if self.kind == "nodules":
            return np.asarray(lung + weight * (35.0 - lung), np.float32)
        # Opacities thin out in patches, and dense ones show a mesh of thicker septa.
        patchy = np.clip(weight * (1.0 + 0.35 * coarse) + 0.10 * fine * (weight > 0.15), 0.0, 1.0)
        if self.kind == "ground-glass":
            target = -470.0 + 70.0 * coarse + 90.0 * np.clip(fine, 0, 2)
            return np.asarray(lung + np.clip(1.5 * patchy, 0, 0.95) * np.maximum(target - lung, 0.0), np.float32)
        target = np.where(weight > 0.55, 22.0 + 8.0 * fine, -330.0 + 80.0 * coarse)
        return np.asarray(lung + np.clip(2.0 * patchy, 0, 1.0) * np.maximum(target - lung, 0.0), np.float32)

    def fluid(self, x: Array, y: Array, z: float, half_depth_mm: float, edge_mm: float) -> Array:
        """Share filled by pleural fluid: a layer along the back, thinner towards the head."""
        depth = self.fluid_mm * max(0.0, 1.0 - z / 190.0)
        level = half_depth_mm + 2.0 - depth - 0.0035 * np.square(np.abs(x) - 60.0)
        return soft((level - y).astype(np.float32), edge_mm) * (x * self.fluid_side > 0)


def draw_disease(rng: np.random.Generator, anatomy: Anatomy, kind: Kind) -> Disease:
    """Draw the foci of a disease inside the lungs of `anatomy`; opacities prefer the periphery and the back."""
    counts = {"ground-glass": (9, 20), "consolidation": (5, 10), "nodules": (5, 14), "effusion": (2, 5)}
    sizes = {
        "ground-glass": (17.0, 36.0),
        "consolidation": (15.0, 30.0),
        "nodules": (4.0, 12.0),
        "effusion": (14.0, 24.0),
    }
    places = _places(rng, anatomy, int(rng.integers(*counts[kind])), peripheral=kind != "nodules")
    radius = rng.uniform(*sizes[kind], len(places)).astype(np.float32)
    shown: Kind = "consolidation" if kind == "effusion" else kind
    fluid = float(rng.uniform(28.0, 60.0)) if kind == "effusion" else 0.0
    return Disease(shown, places, radius, fluid, float(rng.choice([-1.0, 1.0])))


def _places(rng: np.random.Generator, anatomy: Anatomy, count: int, peripheral: bool) -> NDArray[np.float32]:
    h = anatomy.habitus
    found: list[tuple[float, float, float]] = []
    for _ in range(4000):
        if len(found) == count:
            break
        z = float(rng.uniform(0.12, 0.88) * h.lung_height_mm)
        x, y = rng.uniform(-h.half_width_mm, h.half_width_mm), rng.uniform(-h.half_depth_mm, h.half_depth_mm + 6.0)
        at = np.full((1, 1), x, np.float32), np.full((1, 1), y, np.float32)
        depth = -float(anatomy.lungs(*at, z)[0, 0])
        if depth < 2.0:
            continue
        outside = not peripheral or (depth < 18.0 and rng.random() < 0.35 + 0.65 * (y > 10.0))
        if outside:
            found.append((x, y, z))
    return np.array(found, np.float32).reshape(-1, 3)
