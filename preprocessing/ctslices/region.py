"""Which part of the body an axial slice shows: rules on a coarse copy, in HU and square millimetres."""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from ctslices.geometry import BODY_HU, body_mask, eroded, opened, outside_air


class Region(StrEnum):
    CHEST = "chest"
    """Shows lung: one that is left is enough."""
    HEAD = "head"
    ABDOMEN = "abdomen"
    LIMB = "limb"
    NECK = "neck"
    """Neck and shoulders: above the lungs. One slice alone does not show it: `in_context` does."""
    OTHER = "other"
    """Shows no body."""


LUNG_HU = -350.0
"""Below it: lung, inflamed lung included, or gas."""
GAS_HU = -940.0
"""A piece whose inner median lies below it is gas of bowel, stomach, airway or sinuses ..."""
LARGE_MM2 = 8000.0
"""... unless it is larger than those are: then it is an inflated lung,"""
FREE_AIR_HU = -975.0
"""... if its median is not that of free air, which no lung has."""
PIECE_MM2 = 300.0
"""Smaller pieces do not count as lung."""
LUNG_MM2 = 1500.0
"""Least area of lung that makes a slice one of the chest: two tips of 3 cm across."""
BONE_HU = 300.0


def classify(coarse: NDArray[np.float32], pixel_mm: tuple[float, float]) -> Region:
    """The region of one slice, from float32 [r, c] HU with pixels of about 4 mm (`geometry.Coarse`)."""
    if lung_mm2(coarse, pixel_mm) >= LUNG_MM2:
        return Region.CHEST
    area = pixel_mm[0] * pixel_mm[1]
    body = body_mask(coarse, pixel_mm)
    body_mm2 = np.count_nonzero(body) * area
    if body_mm2 < 1000:
        return Region.OTHER
    bone = (coarse > BONE_HU) & body
    if _skull_share(coarse, bone, body) > 0.35 and body_mm2 < 50000:
        return Region.HEAD
    if body_mm2 < 30000 or _two_alike(opened(coarse > BODY_HU)):
        bony = np.count_nonzero(bone) * area > 0.15 * body_mm2
        return Region.HEAD if bony and body_mm2 > 10000 else Region.LIMB
    return Region.ABDOMEN


def in_context(regions: Sequence[Region]) -> list[Region]:
    """`regions` of a series' slices, towards the head, where what lies above the lungs is told from what lies below."""
    chest = [place for place, region in enumerate(regions) if region is Region.CHEST]
    top = chest[-1] if chest else len(regions)
    below_head = (Region.ABDOMEN, Region.LIMB)
    return [Region.NECK if k > top and region in below_head else region for k, region in enumerate(regions)]


def lung_mm2(coarse: NDArray[np.float32], pixel_mm: tuple[float, float]) -> float:
    """Area of lung inside the body, in square millimetres."""
    area = pixel_mm[0] * pixel_mm[1]
    dark = opened((coarse < LUNG_HU) & ~outside_air(coarse))
    labels, count = ndimage.label(dark)
    if not count:
        return 0.0
    sizes = np.bincount(labels.ravel(), minlength=count + 1) * area
    inner = eroded(dark)
    total = 0.0
    for number in range(1, count + 1):
        if sizes[number] < PIECE_MM2:
            continue
        piece = labels == number
        core = inner & piece
        median = float(np.median(coarse[core if core.any() else piece]))
        if median > (FREE_AIR_HU if sizes[number] > LARGE_MM2 else GAS_HU):
            total += float(sizes[number])
    return total


def _skull_share(coarse: NDArray[np.float32], bone: NDArray[np.bool_], body: NDArray[np.bool_]) -> float:
    """Share of the body that bone encloses."""
    closed = ndimage.binary_closing(np.pad(bone, 3), iterations=2)[3:-3, 3:-3]
    enclosed = ndimage.binary_fill_holes(closed) & ~bone & (coarse > BODY_HU)
    return float(np.count_nonzero(enclosed)) / max(1, int(np.count_nonzero(body)))


def _two_alike(mask: NDArray[np.bool_]) -> bool:
    """Whether the second piece has half the size of the largest or more: legs do, a body and its arms do not."""
    labels, count = ndimage.label(mask)
    if count < 2:
        return False
    sizes = np.sort(np.bincount(labels.ravel())[1:])
    return bool(2 * sizes[-2] > sizes[-1])
