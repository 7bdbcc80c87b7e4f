"""What NIfTI and NRRD share: from an array's affine to parallel planes, whatever the order and sense of its axes."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ctslices.reject import Reason, Rejected
from ctslices.series import AIR_HU, PlaneGeometry, PlaneRef, Series, SourceKind

MAX_TILT_DEGREES = 30.0
"""Steepest angle between a plane's normal and the patient's long axis."""
CACHED_BYTES = 256 * 2**20
"""A volume that must be unpacked as a whole is kept in memory up to this size, one for each process."""
MAX_EDGE = 2**15 - 1
"""Most voxels along an axis (what NIfTI-1 can say): a header of a few bytes must not claim all memory."""
MAX_PLANE_EDGE = 2**13
_ORTHOGONAL = 1e-3


class HeaderError(ValueError):
    """A volume's header says no: the reason, and words for people."""

    def __init__(self, reason: Reason, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason


@dataclass(frozen=True, slots=True)
class Axes:
    """Which array axis is which: plane [i] of an array `a` is `a.transpose(stack, rows, columns)[i]`."""

    stack: int
    rows: int
    columns: int


def axes_of(affine_lps: NDArray[np.float64]) -> Axes:
    """The axes of an array with this affine (float64 [4, 4], index to LPS mm): the stack is nearest to patient z.

    Of the two others the lower one runs along the rows, because volumes of both formats store it fastest.
    """
    directions = affine_lps[:3, :3] / np.linalg.norm(affine_lps[:3, :3], axis=0)
    stack = int(np.argmax(np.abs(directions[2])))
    columns, rows = (axis for axis in range(3) if axis != stack)
    return Axes(stack, rows, columns)


def series_of(
    path: Path, relative: str, kind: SourceKind, affine_lps: NDArray[np.float64], shape: tuple[int, int, int]
) -> Series:
    """The planes of one volume, ascending along their true normal; HeaderError when they are not axial."""
    if not np.isfinite(affine_lps).all() or np.linalg.norm(affine_lps[:3, :3], axis=0).min() < 1e-3:
        raise HeaderError(Reason.NO_GEOMETRY, "the axes have no length: write the affine in millimetres")
    if abs(np.linalg.det(affine_lps[:3, :3])) < 1e-6:
        raise HeaderError(Reason.NO_GEOMETRY, "two axes point the same way: write the affine anew")
    axes = axes_of(affine_lps)
    if max(shape) > MAX_EDGE or max(shape[axes.rows], shape[axes.columns]) > MAX_PLANE_EDGE:
        raise HeaderError(Reason.UNREADABLE, "the header tells of a volume larger than any scan")
    step, column_step, row_step = (affine_lps[:3, k] for k in (axes.stack, axes.rows, axes.columns))
    spacing = (float(np.linalg.norm(column_step)), float(np.linalg.norm(row_step)))
    along_row, along_column = row_step / spacing[1], column_step / spacing[0]
    if abs(along_row @ along_column) > _ORTHOGONAL:
        raise HeaderError(Reason.NO_GEOMETRY, "rows and columns do not stand at right angles: resample the volume")
    normal = np.cross(along_row, along_column)
    normal /= np.linalg.norm(normal)
    tilt = float(np.degrees(np.arccos(min(1.0, abs(float(normal[2]))))))
    if tilt > MAX_TILT_DEGREES:
        raise HeaderError(Reason.NOT_AXIAL, f"planes are {tilt:.0f} degrees off axial, wanted at most 30")
    origins = affine_lps[:3, 3] + np.arange(shape[axes.stack])[:, None] * step
    planes = [
        PlaneRef(str(path), index, float(origin @ normal), (float(origin[0]), float(origin[1]), float(origin[2])))
        for index, origin in enumerate(origins)
    ]
    planes = [replace(plane, relative_path=relative) for plane in planes]
    geometry = PlaneGeometry(
        _triple(along_row), _triple(along_column), spacing, (shape[axes.rows], shape[axes.columns])
    )
    return Series(
        kind=kind,
        raw_patient=None,
        raw_series=relative,
        relative_paths=(relative,),
        planes=tuple(sorted(planes, key=lambda plane: plane.position_mm)),
        geometry=geometry,
        spacing_between_mm=abs(float(step @ normal)) if len(planes) > 1 else None,
        tilt_degrees=tilt if tilt > 0.1 else 0.0,
    )


def _triple(vector: NDArray[np.float64]) -> tuple[float, float, float]:
    return (float(vector[0]), float(vector[1]), float(vector[2]))


def refusal(relative: str, error: HeaderError) -> Rejected:
    """The record of a refused volume."""
    return Rejected(relative, error.reason, str(error))


def as_hu(plane: NDArray[np.generic]) -> NDArray[np.float32]:
    """float32 [rows, columns], C order, from a plane in array order [columns, rows] (`axes_of`).

    NaN is padding, and nothing is below -1024 HU.
    """
    hu = np.ascontiguousarray(np.asarray(plane, dtype=np.float32).T)
    if np.isnan(hu.min(initial=0)):
        hu = np.where(np.isnan(hu), np.float32(AIR_HU), hu)
    floored: NDArray[np.float32] = np.maximum(hu, np.float32(AIR_HU))
    return floored


def broken_at_decoding(plane: PlaneRef, error: Exception) -> Rejected:
    """The record of a volume whose pixels cannot be unpacked; the error's own text is never taken over."""
    if isinstance(error, EOFError):
        return Rejected(plane.relative_path, Reason.TRUNCATED, "the pixels end too early")
    return Rejected(plane.relative_path, Reason.UNDECODABLE, "the pixels cannot be unpacked")


def changed(plane: PlaneRef) -> Rejected:
    """The record of a volume that is another one than when its header was read."""
    return Rejected(plane.relative_path, Reason.UNDECODABLE, "the file is not the one whose header was read")
