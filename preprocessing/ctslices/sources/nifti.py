"""NIfTI-1 and NIfTI-2 volumes in one file (.nii, .nii.gz). The header's texts (description, names) are never read."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from nibabel.filebasedimages import ImageFileError
from nibabel.nifti1 import Nifti1Extensions, Nifti1Header
from nibabel.nifti2 import Nifti2Header
from nibabel.spatialimages import HeaderDataError
from nibabel.wrapstruct import WrapStructError
from numpy.typing import NDArray

from ctslices.quiet import quiet
from ctslices.reject import Reason, Rejected
from ctslices.series import Series, SourceKind
from ctslices.sources.volume import (
    CACHED_BYTES,
    Axes,
    HeaderError,
    as_hu,
    axes_of,
    broken_at_decoding,
    changed,
    refusal,
    series_of,
)

_RAS_TO_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])
_MM_PER = {"mm": 1.0, "meter": 1000.0, "micron": 0.001, "unknown": 1.0}
"""NIfTI-1, field xyzt_units; where it is unset, millimetres are the custom."""


class _NoExtensions(Nifti1Extensions):
    """Extensions (a whole DICOM header, say) are passed over: free text, of any size that a header claims."""

    @classmethod
    def from_fileobj(cls, fileobj: Any, size: int, byteswap: bool) -> Any:
        """Nothing, whatever is there."""
        return cls()


class _Header1(Nifti1Header):
    exts_klass = _NoExtensions


class _Header2(Nifti2Header):
    exts_klass = _NoExtensions


class _Image1(nib.Nifti1Image):
    header_class = _Header1


class _Image2(nib.Nifti2Image):
    header_class = _Header2


_BROKEN = (
    ImageFileError,
    HeaderDataError,
    WrapStructError,
    EOFError,
    zlib.error,
    ValueError,
    OverflowError,
    KeyError,
    TypeError,
    AttributeError,
    MemoryError,
)


def looks_like(head: bytes) -> bool:
    """Whether a file's first 352 bytes (unpacked) are a NIfTI header of a single file."""
    return head[344:348] == b"n+1\0" or head[4:8] == b"n+2\0"


def read(path: Path, relative: str) -> Series | Rejected:
    """The series in one NIfTI file, from its header alone; its patient is None."""
    try:
        with quiet():
            image = _load(path)
            affine, shape = _affine_lps(image), _shape(image)
            _check_values(image)
        _check_length(path, image)
        return series_of(path, relative, SourceKind.NIFTI, affine, shape)
    except HeaderError as error:
        return refusal(relative, error)
    except (*_BROKEN, OSError):
        return Rejected(relative, Reason.UNREADABLE, "the NIfTI header cannot be read")


def read_planes(series: Series, indices: Sequence[int]) -> Iterator[NDArray[np.float32] | Rejected]:
    """float32 [rows, columns] HU of the planes at `indices` of `series.planes`, or why one cannot be had."""
    ref = series.planes[0]
    try:
        with quiet():
            image = _load(Path(ref.path))
            axes = axes_of(_affine_lps(image))
            stored = _unpacked(ref.path) if _must_unpack(ref.path, image) else None
    except (*_BROKEN, OSError) as error:
        yield from [broken_at_decoding(ref, error)] * len(indices)
        return
    for index in indices:
        yield _plane(image.dataobj, stored, axes, series, index)


def _plane(
    proxy: Any, stored: NDArray[Any] | None, axes: Axes, series: Series, index: int
) -> NDArray[np.float32] | Rejected:
    assert series.geometry is not None
    where: list[Any] = [slice(None)] * 3 + [0] * (len(proxy.shape) - 3)
    where[axes.stack] = series.planes[index].frame
    try:
        with quiet():
            if stored is None:
                values = np.asarray(proxy[tuple(where)])
            else:
                values = stored[tuple(where)] * float(proxy.slope) + float(proxy.inter)
        plane = as_hu(values)
    except (*_BROKEN, OSError, IndexError) as error:
        return broken_at_decoding(series.planes[index], error)
    return plane if plane.shape == series.geometry.shape else changed(series.planes[index])


def _load(path: Path) -> Any:
    head = _head(path)
    kind: Any = _Image2 if head[4:8] == b"n+2\0" else _Image1
    # by file map, because `from_filename` refuses names that do not end in .nii or .nii.gz
    holder = nib.FileHolder(filename=str(path))
    return kind.from_file_map({"header": holder, "image": holder}, mmap=False, keep_file_open=True)


def _head(path: Path) -> bytes:
    with path.open("rb") as plain:
        packed = plain.read(2) == b"\x1f\x8b"
    with gzip.open(path) if packed else path.open("rb") as file:
        return file.read(352)


def _must_unpack(path: str, image: Any) -> bool:
    return path.lower().endswith(".gz") and int(np.prod(image.shape)) * image.get_data_dtype().itemsize <= CACHED_BYTES


@lru_cache(maxsize=1)
def _unpacked(path: str) -> NDArray[Any]:
    """The whole volume in its stored type, unscaled, unpacked once for all calls."""
    array: NDArray[Any] = _load(Path(path)).dataobj.get_unscaled()
    return array


def _shape(image: Any) -> tuple[int, int, int]:
    shape = tuple(int(n) for n in image.shape)
    if len(shape) < 3 or any(n != 1 for n in shape[3:]):
        raise HeaderError(Reason.NO_GEOMETRY, f"got {len(shape)} dimensions, wanted a volume of 3: split it by time")
    if min(shape) < 1:
        raise HeaderError(Reason.NO_PIXEL_DATA, "the volume is empty")
    return shape[0], shape[1], shape[2]


def _affine_lps(image: Any) -> NDArray[np.float64]:
    header = image.header
    if int(header["sform_code"]) <= 0 and int(header["qform_code"]) <= 0:
        raise HeaderError(Reason.NO_GEOMETRY, "no sform and no qform: nobody can tell left from right")
    scale = _MM_PER[header.get_xyzt_units()[0]]
    affine: NDArray[np.float64] = _RAS_TO_LPS @ np.asarray(image.affine, np.float64)
    affine[:3] *= scale
    return affine


def _check_values(image: Any) -> None:
    kind = image.get_data_dtype()
    if kind.fields is not None or kind.kind not in "iuf":
        raise HeaderError(Reason.NOT_HU, "pixels are colours or complex numbers, wanted one real number each")
    if kind.itemsize == 1 and image.dataobj.slope == 1 and image.dataobj.inter == 0:
        raise HeaderError(Reason.NOT_HU, "pixels have 8 bits and no scaling, wanted Hounsfield units")


def _check_length(path: Path, image: Any) -> None:
    """An uncompressed file's length can be told from its header; a compressed one shows it when it is unpacked."""
    if path.suffix.lower() == ".gz":
        return
    wanted = int(image.dataobj.offset) + int(np.prod(image.shape)) * image.get_data_dtype().itemsize
    if path.stat().st_size < wanted:
        raise HeaderError(Reason.TRUNCATED, "the file is shorter than its header says")
