"""Pixels of chosen planes, in HU. One bad file costs its own planes and nothing else."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from ctslices.hounsfield import to_hu
from ctslices.isolate import decode_apart
from ctslices.native import FileChangedError, native_values
from ctslices.reject import Reason, Rejected
from ctslices.series import PlaneRef, Series, SourceKind

TIMEOUT_S = 60.0
"""For one frame: the slowest decoder needs under a second."""


def planes(
    series: Series, indices: Sequence[int], isolate: bool = False, timeout_s: float = TIMEOUT_S
) -> Iterator[NDArray[np.float32] | Rejected]:
    """The planes at `indices` of `series.planes`, in that order: HU float32 [rows, columns], or why one failed.

    One item an index, always. Compressed DICOM is decoded by native libraries in a child process, so that damage that
    kills or hangs them costs the one plane (DECODER_CRASHED, DECODER_TIMEOUT after `timeout_s` seconds); `isolate`
    sends uncompressed planes there too. Air rules of `hounsfield.to_hu` are applied. Pictures are grey values 0 to
    255 instead of HU.
    """
    if series.kind is not SourceKind.DICOM:
        yield from _other_planes(series, indices)
        return
    for index in indices:
        plane = series.planes[index]
        stored = stored_values(plane, isolate, timeout_s)
        if isinstance(stored, Rejected):
            yield stored
        else:
            assert plane.stored is not None
            yield to_hu(stored, plane.slope, plane.intercept, plane.stored.padding)


def stored_values(
    plane: PlaneRef, isolate: bool = False, timeout_s: float = TIMEOUT_S
) -> NDArray[np.integer] | Rejected:
    """One DICOM plane as stored, integers [rows, columns] without the bits that are not the pixels'."""
    pixels = plane.stored
    if pixels is None:
        raise ValueError("got a plane without StoredPixels, want one of a DICOM series from sources.dicom.read")
    if pixels.encapsulated or isolate:
        return decode_apart(plane, timeout_s)
    try:
        return native_values(plane.path, plane.frame, pixels)
    except FileChangedError:
        return Rejected(plane.relative_path, Reason.TRUNCATED, "the file is not as long as when its header was read")
    except OSError:
        return Rejected(plane.relative_path, Reason.UNREADABLE, "the file cannot be read")


def _other_planes(series: Series, indices: Sequence[int]) -> Iterator[NDArray[np.float32] | Rejected]:
    from ctslices.sources import nifti, nrrd, pictures

    readers = {
        SourceKind.NIFTI: nifti.read_planes,
        SourceKind.NRRD: nrrd.read_planes,
        SourceKind.PICTURES: pictures.read_planes,
    }
    yield from readers[series.kind](series, indices)
