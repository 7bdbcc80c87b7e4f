"""One frame of any transfer syntax to stored values. Runs in a decoder process: what it calls may die."""

from __future__ import annotations

import os
import struct
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom import dcmread
from pydicom.encaps import get_frame
from pydicom.pixels.decoders.base import get_decoder
from pydicom.uid import (
    HTJ2K,
    UID,
    HTJ2KLossless,
    HTJ2KLosslessRPCL,
    JPEG2000TransferSyntaxes,
    RLELossless,
)

from ctslices.native import FileChangedError, native_values
from ctslices.quiet import quiet
from ctslices.reject import Reason
from ctslices.series import StoredPixels
from ctslices.sources.dicom_file import PARSE_ERRORS

_JPEG_2000 = frozenset(map(str, (*JPEG2000TransferSyntaxes, HTJ2K, HTJ2KLossless, HTJ2KLosslessRPCL)))
_SOC_SIZ = b"\xff\x4f\xff\x51"
_CODEC_ERRORS = (*PARSE_ERRORS, RuntimeError, SystemError, AssertionError)


class UndecodableError(Exception):
    """No decoder takes a frame, or what comes out is not what the header says."""

    def __init__(self, reason: Reason, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason
        self.detail = detail


def decode_frame(path: str, frame: int, pixels: StoredPixels) -> NDArray[np.integer]:
    """The frame's stored values, integers [rows, columns].

    :raises UndecodableError: when no decoder takes it, or what comes out is not what the header says.
    """
    try:
        if not pixels.encapsulated:
            return native_values(path, frame, pixels)
        with quiet():
            values = _decoded(path, frame, pixels)
    except FileChangedError:
        raise UndecodableError(Reason.TRUNCATED, "the file is not as long as when its header was read") from None
    except _CODEC_ERRORS:
        raise UndecodableError(Reason.UNDECODABLE, "no decoder reads its pixels") from None
    if values.shape != pixels.shape or values.dtype.kind not in "iu":
        raise UndecodableError(Reason.UNDECODABLE, "the pixels are not of the size that the header says")
    return values


def _decoded(path: str, frame: int, pixels: StoredPixels) -> NDArray[np.integer]:
    dataset = _dataset(path, pixels)
    if pixels.transfer_syntax in _JPEG_2000:
        _check_codestream(get_frame(dataset.PixelData, frame, number_of_frames=_frames(dataset)), pixels)
    decoder = get_decoder(UID(pixels.transfer_syntax))
    # pydicom's own RLE decoder is plain Python; everywhere else the first of its plugins that takes the frame decodes.
    quick = (
        "pylibjpeg" if pixels.transfer_syntax == str(RLELossless) and "pylibjpeg" in decoder.available_plugins else ""
    )
    values: NDArray[np.integer] = decoder.as_array(dataset, index=frame, raw=True, decoding_plugin=quick)[0]
    return values


def _frames(dataset: Any) -> int:
    return int(dataset.get("NumberOfFrames") or 1)


def _check_codestream(frame: bytes, pixels: StoredPixels) -> None:
    """A JPEG 2000 frame says its own size and sign (ISO/IEC 15444-1, A.5.1 SIZ): against the header, before decoding.

    A stream that claims a giant picture would take the memory for it. One without a sign under a header with a sign is
    two's complement in all of its bits, which is common; with fewer bits, or the other way round, nobody can tell the
    values.
    """
    at = frame[:1024].find(_SOC_SIZ)
    if at < 0 or len(frame) < at + 43:
        return
    right, bottom, left, top = struct.unpack_from(">4I", frame, at + 8)
    if (bottom - top, right - left) != pixels.shape:
        raise UndecodableError(Reason.UNDECODABLE, "the pixels are not of the size that the header says")
    signed, bits = frame[at + 42] >> 7 == 1, (frame[at + 42] & 0x7F) + 1
    if signed != pixels.signed and (signed or bits < pixels.bits_stored):
        raise UndecodableError(Reason.UNDECODABLE, "the pixels' sign is not the one that the header says")


_multiframe: dict[tuple[str, int, int], Any] = {}
"""The one multi-frame file whose frames are being asked for, by path, size and time."""


def _dataset(path: str, pixels: StoredPixels) -> Any:
    found = os.stat(path)
    if found.st_size != pixels.file_bytes:
        raise FileChangedError
    key = (path, found.st_size, found.st_mtime_ns)
    if key in _multiframe:
        return _multiframe[key]
    dataset = dcmread(path, force=True)
    _multiframe.clear()
    if _frames(dataset) > 1:
        _multiframe[key] = dataset
    return dataset
