"""Branching vessels and airways of the lungs: a tree grown from each hilum, drawn slice by slice as round stamps."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ctslices.phantom_anatomy import Anatomy
from ctslices.phantom_fields import Array


@dataclass(frozen=True, slots=True)
class Vessels:
    """Points on the centre lines, ordered by z: float32 [n, 3] in mm, and their radii float32 [n] in mm."""

    points_mm: Array
    radius_mm: Array


def grow(rng: np.random.Generator, anatomy: Anatomy, ends: int = 240) -> Vessels:
    """Grow one tree a lung to about `ends` places inside it; radii follow Murray's law (exponent 2.6)."""
    points, radii = [], []
    for side, level in ((-1.0, 0.53), (1.0, 0.56)):
        root = np.array([side * 30.0, 4.0, level * anatomy.habitus.lung_height_mm])
        targets = _places(rng, anatomy, side, ends)
        line, radius = _tree(rng, root, targets)
        points.append(line)
        radii.append(radius)
    all_points, all_radii = np.concatenate(points), np.concatenate(radii)
    order = np.argsort(all_points[:, 2], kind="stable")
    return Vessels(all_points[order].astype(np.float32), all_radii[order].astype(np.float32))


def _places(rng: np.random.Generator, anatomy: Anatomy, side: float, count: int) -> NDArray[np.float64]:
    h = anatomy.habitus
    found = []
    for z in rng.uniform(4.0, h.lung_height_mm * 0.985, 24):
        x = side * rng.uniform(6.0, h.half_width_mm, 80)
        y = rng.uniform(-h.half_depth_mm, h.half_depth_mm + 10.0, 80)
        inside = anatomy.lungs(x.astype(np.float32), y.astype(np.float32), float(z)) < -4.0
        found.append(np.stack([x[inside], y[inside], np.full(inside.sum(), z)], axis=1))
    places = np.concatenate(found)
    return places[rng.permutation(len(places))[:count]]


def _tree(
    rng: np.random.Generator, root: NDArray[np.float64], targets: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    targets = targets[np.argsort(np.linalg.norm(targets - root, axis=1))]
    nodes = np.empty((len(targets) + 1, 3))
    nodes[0] = root
    path = np.zeros(len(nodes))
    parent = np.zeros(len(nodes), int)
    for i, target in enumerate(targets, start=1):
        reach = np.linalg.norm(nodes[:i] - target, axis=1)
        parent[i] = int(np.argmin(reach + 0.45 * path[:i]))
        nodes[i] = target
        path[i] = path[parent[i]] + reach[parent[i]]
    leaves = np.ones(len(nodes))
    for i in range(len(nodes) - 1, 0, -1):
        leaves[parent[i]] += leaves[i] if leaves[i] > 1 else 1.0
    radius = 0.85 * leaves ** (1 / 2.6)
    return _lines(rng, nodes, parent, np.minimum(radius, 6.0))


def _lines(
    rng: np.random.Generator, nodes: NDArray[np.float64], parent: NDArray[np.int64], radius: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Points about every 1.2 mm along bowed edges."""
    start, end = nodes[parent[1:]], nodes[1:]
    length = np.linalg.norm(end - start, axis=1)
    counts = np.maximum((length / 1.2).astype(int), 2)
    edge = np.repeat(np.arange(len(counts)), counts)
    t = (np.arange(len(edge)) - np.repeat(np.cumsum(counts) - counts, counts)) / np.repeat(counts - 1, counts)
    bow = rng.normal(0.0, 0.09, (len(counts), 3)) * length[:, None]
    points = start[edge] + (end - start)[edge] * t[:, None] + bow[edge] * (4 * t * (1 - t))[:, None]
    upstream = np.minimum(radius[parent[1:]], radius[1:] * 1.5)
    return points, upstream[edge] * (1 - t) + radius[1:][edge] * t


def draw(vessels: Vessels, x_mm: Array, y_mm: Array, z_mm: float, thickness_mm: float) -> Array:
    """Share of each pixel filled by vessels, float32 [rows, cols] in [0, 1]; thick slices show thin vessels fainter."""
    share = np.zeros((len(y_mm), len(x_mm)), np.float32)
    slab = 0.5 * thickness_mm + 6.5
    low, high = np.searchsorted(vessels.points_mm[:, 2], [z_mm - slab, z_mm + slab])
    points, radius = vessels.points_mm[low:high], vessels.radius_mm[low:high]
    depth = np.maximum(np.abs(points[:, 2] - np.float32(z_mm)) - np.float32(0.5 * thickness_mm), 0.0)
    seen = depth < radius
    points, section = points[seen], np.sqrt(np.square(radius[seen]) - np.square(depth[seen]))
    fade = np.minimum(2.2 * section / max(thickness_mm, 1.0), 1.0).astype(np.float32)
    for small, large in ((0.0, 1.6), (1.6, 3.2), (3.2, 9.0)):
        some = (section >= small) & (section < large)
        _stamp(share, (points[some], section[some], fade[some]), (x_mm, y_mm), large)
    return share


def _stamp(share: Array, discs: tuple[Array, Array, Array], axes: tuple[Array, Array], widest_mm: float) -> None:
    points, radius, fade = discs
    x_mm, y_mm = axes
    pixel_mm = float(x_mm[1] - x_mm[0])
    half = int(np.ceil((min(widest_mm, 6.5) + 0.5 * pixel_mm) / pixel_mm))
    column = np.rint((points[:, 0] - x_mm[0]) / pixel_mm).astype(np.int64)
    row = np.rint((points[:, 1] - y_mm[0]) / pixel_mm).astype(np.int64)
    rows, columns = share.shape
    within = (column >= half) & (column < columns - half) & (row >= half) & (row < rows - half)
    if not within.any():
        return
    points, radius, fade, column, row = points[within], radius[within], fade[within], column[within], row[within]
    offset = np.arange(-half, half + 1)
    dx = (x_mm[column] - points[:, 0])[:, None] + offset * np.float32(pixel_mm)
    dy = (y_mm[row] - points[:, 1])[:, None] + offset * np.float32(pixel_mm)
    distance = np.sqrt(np.square(dy)[:, :, None] + np.square(dx)[:, None, :])
    # A vessel thinner than a pixel fills it in part only.
    filled = np.clip(
        0.5 + (radius[:, None, None] - distance) / pixel_mm, 0, np.minimum(1.0, 2 * radius / pixel_mm)[:, None, None]
    )
    index = (row[:, None] + offset)[:, :, None] * columns + (column[:, None] + offset)[:, None, :]
    np.maximum.at(share.reshape(-1), index.reshape(-1), (filled * fade[:, None, None]).astype(np.float32).reshape(-1))
