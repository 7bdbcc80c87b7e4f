"""One frame of any transfer syntax to stored values. Runs in a decoder process: what it calls may die."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom import dcmread
from pydicom.pixels.decoders.base import get_decoder
from pydicom.uid import UID, RLELossless

from ctslices.native import FileChangedError, native_values
from ctslices.quiet import quiet
from ctslices.reject import Reason
from ctslices.series import StoredPixels
from ctslices.sources.dicom_file import PARSE_ERRORS

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
    decoder = get_decoder(UID(pixels.transfer_syntax))
    # pydicom's own RLE decoder is plain Python; everywhere else the first of its plugins that takes the frame decodes.
    quick = (
        "pylibjpeg" if pixels.transfer_syntax == str(RLELossless) and "pylibjpeg" in decoder.available_plugins else ""
    )
    values: NDArray[np.integer] = decoder.as_array(dataset, index=frame, raw=True, decoding_plugin=quick)[0]
    return values


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
    if int(dataset.get("NumberOfFrames") or 1) > 1:
        _multiframe[key] = dataset
    return dataset
