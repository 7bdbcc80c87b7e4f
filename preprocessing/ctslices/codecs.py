"""One frame of any transfer syntax to stored values. Runs in a decoder process: what it calls may die."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom import dcmread
from pydicom.pixels.decoders.base import get_decoder
from pydicom.uid import UID

from ctslices.native import FileChangedError, native_values
from ctslices.quiet import quiet
from ctslices.reject import Reason
from ctslices.series import StoredPixels
from ctslices.sources.dicom_file import PARSE_ERRORS

_BY_PREFERENCE = ("pylibjpeg", "gdcm", "pillow", "pydicom")
"""Decoders in the order of trial: the first that takes a frame decodes it."""
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
    dataset = _dataset(path, pixels.file_bytes)
    decoder = get_decoder(UID(pixels.transfer_syntax))
    error: Exception = NotImplementedError()
    for plugin in _BY_PREFERENCE:
        if plugin not in decoder.available_plugins:
            continue
        try:
            values: NDArray[np.integer] = decoder.as_array(dataset, index=frame, raw=True, decoding_plugin=plugin)[0]
        except _CODEC_ERRORS as caught:
            error = caught
            continue
        return values
    raise error


@lru_cache(maxsize=1)
def _dataset(path: str, file_bytes: int) -> Any:
    """The file whose frames come one after the other."""
    return dcmread(path, force=True)
