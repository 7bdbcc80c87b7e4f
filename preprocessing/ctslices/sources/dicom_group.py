"""Frames of one SeriesInstanceUID made into stacks of parallel planes: duplicates out, stacks apart, gaps noted."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ctslices.reject import Reason
from ctslices.sources.dicom_file import Refusal
from ctslices.sources.dicom_header import Frame, Header

SAME_PLACE_MM = 0.01
"""Planes closer than this along the normal are at the same position."""
SAME_DIRECTION = 2e-3
"""Largest difference of a direction cosine within a stack: scanners round them differently from slice to slice."""


@dataclass(frozen=True, slots=True)
class Plane:
    """One frame of one file."""

    header: Header
    frame: Frame


@dataclass(frozen=True, slots=True)
class Stack:
    """Parallel planes of one shape and spacing at different positions, ordered along the normal."""

    planes: tuple[Plane, ...]
    positions_mm: tuple[float, ...]
    part: int
    """0, 1, ... among the stacks of one SeriesInstanceUID."""


@dataclass(frozen=True, slots=True)
class Steps:
    """The distances between neighbours along the normal."""

    nominal_mm: float | None
    gaps: tuple[tuple[float, float], ...]
    irregular: bool


def without_duplicates(headers: Iterable[Header]) -> tuple[list[Header], list[tuple[Header, Refusal]]]:
    """The first file, by path, of each SOPInstanceUID; copies in other folders are refused."""
    kept: dict[str, Header] = {}
    refused = []
    for header in sorted(headers, key=lambda header: header.path):
        if header.sop_instance in kept:
            refused.append((header, Refusal(Reason.DUPLICATE_INSTANCE)))
        else:
            kept[header.sop_instance] = header
    return list(kept.values()), refused


def stacks_of(headers: Sequence[Header]) -> tuple[list[Stack], list[tuple[Header, Refusal]]]:
    """The stacks among the files of one SeriesInstanceUID and patient, and the planes left over at taken positions."""
    planes = [Plane(header, frame) for header in headers for frame in header.frames]
    stacks: list[Stack] = []
    refused: list[tuple[Header, Refusal]] = []
    for group in _parallel(planes):
        for part in _time_points(group):
            ordered, positions, left_over = _ordered(part)
            refused += [
                (plane.header, Refusal(Reason.DUPLICATE_INSTANCE, "a second image at the same position"))
                for plane in left_over
            ]
            stacks.append(Stack(tuple(ordered), tuple(positions), len(stacks)))
    return stacks, refused


def steps_of(positions_mm: Sequence[float]) -> Steps:
    """The nominal step (median), where slices are missing (position before the gap, width), and whether irregular.

    A step near a whole multiple (two or more) of the nominal one is a gap; any other that differs from it by more than
    5% (at least 0.05 mm) makes the spacing irregular.
    """
    if len(positions_mm) < 2:
        return Steps(None, (), False)
    steps = np.diff(np.asarray(positions_mm, float))
    nominal = float(np.median(steps))
    tolerance = max(0.05, 0.05 * nominal)
    times = np.maximum(np.rint(steps / nominal), 1)
    fits = np.abs(steps - times * nominal) <= tolerance
    is_gap = fits & (times >= 2)
    gaps = tuple((float(positions_mm[at]), float(steps[at])) for at in np.flatnonzero(is_gap).tolist())
    return Steps(nominal, gaps, bool((~fits).any()))


def normal_of(frame: Frame) -> NDArray[np.float64]:
    """Unit normal float64 [3] of a frame whose geometry has been judged."""
    assert frame.orientation is not None
    row, column = np.asarray(frame.orientation[:3], float), np.asarray(frame.orientation[3:], float)
    normal: NDArray[np.float64] = np.cross(row, column)
    return normal / np.linalg.norm(normal)


def _parallel(planes: Sequence[Plane]) -> list[list[Plane]]:
    """Planes grouped by shape, spacing, kernel and (within a tolerance) orientation, in order of first appearance."""
    groups: list[tuple[tuple[object, ...], tuple[float, ...], list[Plane]]] = []
    for plane in planes:
        stored, spacing, orientation = plane.header.stored, plane.frame.spacing_mm, plane.frame.orientation
        assert stored is not None
        assert spacing is not None
        assert orientation is not None
        key = (stored.shape, tuple(round(value, 4) for value in spacing), plane.header.kernel)
        for known, direction, group in groups:
            near = max(abs(a - b) for a, b in zip(direction, orientation, strict=True)) <= SAME_DIRECTION
            if known == key and near:
                group.append(plane)
                break
        else:
            groups.append((key, orientation, [plane]))
    return [group for _, _, group in groups]


def _time_points(planes: list[Plane]) -> list[list[Plane]]:
    """Planes that repeat positions, parted by the first attribute (or all of them) that tells the repeats apart."""
    if not _repeats(planes):
        return [planes]
    marks: list[dict[object, list[Plane]]] = []
    for at in range(len(planes[0].frame.stack)):
        marks.append(_parted((plane.frame.stack[at], plane) for plane in planes))
    marks.append(_parted(((plane.frame.image_type, plane.frame.stack), plane) for plane in planes))
    for parts in marks:
        if len(parts) > 1 and not any(_repeats(part) for part in parts.values()):
            return list(parts.values())
    return [planes]


def _parted(marked: Iterable[tuple[object, Plane]]) -> dict[object, list[Plane]]:
    parts: dict[object, list[Plane]] = defaultdict(list)
    for mark, plane in marked:
        parts[mark].append(plane)
    return parts


def _repeats(planes: Sequence[Plane]) -> bool:
    positions = np.sort(_positions(planes))
    return bool((np.diff(positions) < SAME_PLACE_MM).any())


def _positions(planes: Sequence[Plane]) -> NDArray[np.float64]:
    normal = normal_of(planes[0].frame)
    return np.array([plane.frame.position_mm for plane in planes], float) @ normal


def _ordered(planes: Sequence[Plane]) -> tuple[list[Plane], list[float], list[Plane]]:
    """Planes along the normal, one a position (the first by instance number, then path), and the others."""
    positions = _positions(planes)
    order = sorted(
        range(len(planes)),
        key=lambda at: (positions[at], planes[at].header.instance_number, planes[at].header.path, at),
    )
    kept: list[int] = []
    left_over = []
    for at in order:
        if kept and positions[at] - positions[kept[-1]] < SAME_PLACE_MM:
            left_over.append(planes[at])
        else:
            kept.append(at)
    return [planes[at] for at in kept], [float(positions[at]) for at in kept], left_over
