"""Uncompressed pixels straight from the file at the offset that the header pass remembered: no parser, no decoder."""

from __future__ import annotations

import os

import numpy as np
from numpy.typing import NDArray

from ctslices.series import StoredPixels
from ctslices.sources.dicom_file import inflate


class FileChangedError(Exception):
    """The file is shorter or longer than its header pass saw."""


def native_values(path: str, frame: int, pixels: StoredPixels) -> NDArray[np.integer]:
    """One frame of uncompressed pixels, integers [rows, columns] in native byte order.

    :raises FileChangedError: when the file's size is not the one remembered.
    """
    kind = "i" if pixels.signed else "u"
    dtype = np.dtype(f"{'>' if pixels.big_endian else '<'}{kind}{pixels.bits_allocated // 8}")
    rows, columns = pixels.shape
    count = rows * columns
    offset = pixels.offset + frame * count * dtype.itemsize
    with open(path, "rb", buffering=0) as file:
        if os.fstat(file.fileno()).st_size != pixels.file_bytes:
            raise FileChangedError
        if pixels.deflated_at is not None:
            file.seek(pixels.deflated_at)
            data = inflate(file.read())
            if data is None:
                raise FileChangedError
            values = np.frombuffer(data, dtype, count, offset).copy()
        else:
            values = np.fromfile(file, dtype, count, offset=offset)
    if values.size != count:
        raise FileChangedError
    return own_bits(values.astype(dtype.newbyteorder("="), copy=False).reshape(rows, columns), pixels.bits_stored)


def own_bits(values: NDArray[np.integer], bits_stored: int) -> NDArray[np.integer]:
    """The pixels' own bits, in place: what lies above them (old overlays, say) goes, the sign is kept (PS3.5 8.1)."""
    unused = 8 * values.dtype.itemsize - bits_stored
    if unused:
        np.left_shift(values, unused, out=values)
        np.right_shift(values, unused, out=values)
    return values
