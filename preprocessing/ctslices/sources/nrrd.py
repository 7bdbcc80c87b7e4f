"""NRRD volumes: attached (.nrrd) and detached (.nhdr). Key/value pairs and `content` are never looked at."""

from __future__ import annotations

import io
import re
import zlib
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import nrrd
import numpy as np
from numpy.typing import NDArray

from ctslices.quiet import quiet
from ctslices.reject import Reason, Rejected
from ctslices.series import Series, SourceKind
from ctslices.sources.volume import (
    HeaderError,
    as_hu,
    axes_of,
    broken_at_decoding,
    changed,
    refusal,
    series_of,
)

_TO_LPS = {
    "left-posterior-superior": (1.0, 1.0, 1.0),
    "lps": (1.0, 1.0, 1.0),
    "right-anterior-superior": (-1.0, -1.0, 1.0),
    "ras": (-1.0, -1.0, 1.0),
    "left-anterior-superior": (1.0, -1.0, 1.0),
    "las": (1.0, -1.0, 1.0),
}
"""The spaces that know a patient. `scanner-xyz` and `3D-right-handed` do not: which side is left cannot be told."""
_MM_PER = {"mm": 1.0, "millimeter": 1.0, "millimetre": 1.0, "cm": 10.0, "m": 1000.0, "um": 0.001, "": 1.0}
_BROKEN = (
    nrrd.NRRDError,
    EOFError,
    zlib.error,
    ValueError,
    OverflowError,
    KeyError,
    TypeError,
    IndexError,
    AttributeError,
    StopIteration,
    MemoryError,
)
_HEADER_BYTES = 1 << 20
_MOST_SKIPPED_LINES = 1000
_WIDEST = 2**31


def looks_like(head: bytes) -> bool:
    """Whether a file's first bytes are those of an NRRD header."""
    return head.startswith(b"NRRD000")


def read(path: Path, relative: str, export: Path) -> Series | Rejected:
    """The series in one NRRD file, from its header alone; its patient is None."""
    try:
        header = _header(path)
        shape = _shape(header)
        _check_type(header)
        _check_data_file(header, path, export)
        return series_of(path, relative, SourceKind.NRRD, _affine_lps(header), shape)
    except HeaderError as error:
        return refusal(relative, error)
    except (*_BROKEN, OSError):
        return Rejected(relative, Reason.UNREADABLE, "the NRRD header cannot be read")


def _header(path: Path) -> Mapping[str, Any]:
    """The header's fields. It ends with an empty line, or with a detached header's file, within the first MiB."""
    with path.open("rb") as file:
        head = file.read(_HEADER_BYTES)
    if len(head) == _HEADER_BYTES and not re.search(rb"\n\r?\n", head):
        raise ValueError("a header without end")
    with quiet():
        header: Mapping[str, Any] = nrrd.read_header(io.BytesIO(head))
    return header


def data_file(path: Path) -> Path | None:
    """The file with a detached header's pixels; None where they are attached or cannot be told."""
    try:
        header = _header(path)
    except (*_BROKEN, OSError):
        return None
    name = _data_name(header)
    return None if name is None else path.parent / name


def read_planes(series: Series, indices: Sequence[int]) -> Iterator[NDArray[np.float32] | Rejected]:
    """float32 [rows, columns] HU of the planes at `indices` of `series.planes`, or why one cannot be had."""
    ref, geometry = series.planes[0], series.geometry
    assert geometry is not None
    try:
        values, affine = _unpacked(ref.path)
    except (*_BROKEN, OSError) as error:
        yield from [broken_at_decoding(ref, error)] * len(indices)
        return
    axes = axes_of(affine)
    for index in indices:
        where: list[Any] = [slice(None)] * 3
        where[axes.stack] = series.planes[index].frame
        if series.planes[index].frame >= values.shape[axes.stack]:
            yield changed(series.planes[index])
            continue
        plane = as_hu(values[tuple(where)])
        yield plane if plane.shape == geometry.shape else changed(series.planes[index])


@lru_cache(maxsize=1)
def _unpacked(path: str) -> tuple[NDArray[Any], NDArray[np.float64]]:
    """The last volume read, [i, j, k] as stored, with its affine: pynrrd unpacks whole volumes only."""
    with quiet():
        values, header = nrrd.read(path, index_order="F")
    if values.shape[:3] != _shape(header):
        raise ValueError("the volume is smaller than its header says")
    return values.reshape(values.shape[:3], order="F"), _affine_lps(header)


def _shape(header: Mapping[str, Any]) -> tuple[int, int, int]:
    sizes = [int(n) for n in header["sizes"]]
    if len(sizes) < 3 or any(n != 1 for n in sizes[3:]):
        raise HeaderError(Reason.NO_GEOMETRY, f"got {len(sizes)} dimensions, wanted a volume of 3: split it by time")
    kinds = header.get("kinds")
    if kinds is not None and any(kind not in ("domain", "space", "none", "???") for kind in kinds[:3]):
        raise HeaderError(Reason.NOT_HU, "an axis holds colours or components, wanted one number for each point")
    if min(sizes) < 1 or np.prod([float(n) for n in sizes]) > _WIDEST:
        raise HeaderError(Reason.NO_PIXEL_DATA, "the volume is empty, or larger than any scan")
    return sizes[0], sizes[1], sizes[2]


def _check_type(header: Mapping[str, Any]) -> None:
    kind = str(header["type"])
    if kind in ("block", "signed char", "int8", "int8_t", "uchar", "unsigned char", "uint8", "uint8_t"):
        raise HeaderError(Reason.NOT_HU, "pixels have 8 bits, wanted Hounsfield units")


def _affine_lps(header: Mapping[str, Any]) -> NDArray[np.float64]:
    signs = _TO_LPS.get(str(header.get("space", "")).lower())
    if signs is None or "space directions" not in header or "space origin" not in header:
        raise HeaderError(
            Reason.NO_GEOMETRY,
            "wanted space (LPS, RAS or LAS), space directions and space origin: nobody can tell left from right",
        )
    units = {str(unit).strip('"').lower() for unit in header.get("space units", [""])}
    if len(units) != 1 or not units <= _MM_PER.keys():
        raise HeaderError(Reason.NO_GEOMETRY, "the axes' units differ or are not known, wanted mm")
    affine = np.eye(4)
    affine[:3, :3] = np.asarray(header["space directions"], np.float64)[:3].T
    affine[:3, 3] = np.asarray(header["space origin"], np.float64)
    affine[:3] *= np.asarray(signs)[:, None] * _MM_PER[units.pop()]
    return affine


def _data_name(header: Mapping[str, Any]) -> str | None:
    name = header.get("data file", header.get("datafile"))
    return None if name is None else str(name).strip()


def _check_data_file(header: Mapping[str, Any], path: Path, export: Path) -> None:
    if not 0 <= int(header.get("line skip", header.get("lineskip", 0))) <= _MOST_SKIPPED_LINES:
        raise HeaderError(Reason.UNREADABLE, "the pixels begin after more lines than any header has")
    name = _data_name(header)
    if name is None:
        return
    if name.upper().startswith("LIST") or "%" in name:
        raise HeaderError(Reason.UNREADABLE, "pixels are spread over many files: write them into one")
    target = path.parent / name
    if not target.resolve().is_relative_to(export.resolve()):
        raise HeaderError(Reason.UNREADABLE, "the file with the pixels lies outside the export")
    if not target.is_file():
        raise HeaderError(Reason.NO_PIXEL_DATA, "the file with the pixels is not there")
