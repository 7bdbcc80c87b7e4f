"""How a file stores its pixels (PS3.3 C.7.6.3), checked against what the file really holds, before any is decoded."""

from __future__ import annotations

import os
import struct
from pathlib import Path

from pydicom.uid import (
    HTJ2K,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    HTJ2KLossless,
    HTJ2KLosslessRPCL,
    ImplicitVRLittleEndian,
    JPEG2000TransferSyntaxes,
    JPEGLSTransferSyntaxes,
    JPEGTransferSyntaxes,
    RLETransferSyntaxes,
)

from ctslices.reject import Reason
from ctslices.series import StoredPixels
from ctslices.sources import dicom_tags as tags
from ctslices.sources.dicom_file import UNDEFINED_LENGTH, Parsed, PixelElement, Refusal
from ctslices.sources.dicom_values import integer, text

MAX_EDGE = 4096
"""CT matrices end at 2048; more rows or columns than this are damage, and would only cost memory."""
MIN_EDGE = 16

NATIVE_SYNTAXES = frozenset(
    {ImplicitVRLittleEndian, ExplicitVRLittleEndian, ExplicitVRBigEndian, DeflatedExplicitVRLittleEndian}
)
ENCAPSULATED_SYNTAXES = frozenset(
    [
        *JPEGTransferSyntaxes,
        *JPEGLSTransferSyntaxes,
        *JPEG2000TransferSyntaxes,
        *RLETransferSyntaxes,
        HTJ2K,
        HTJ2KLossless,
        HTJ2KLosslessRPCL,
    ]
)


def stored_pixels(path: Path, parsed: Parsed, frames: int) -> StoredPixels | Refusal:
    """The layout of `frames` frames, or why they cannot be read as one grey value a pixel."""
    element = parsed.pixels
    if element is None:
        # A CT image without even its size was cut exactly between two elements.
        if parsed.cut or tags.ROWS not in parsed.elements:
            return Refusal(Reason.TRUNCATED, "the file ends within its header")
        return Refusal(Reason.NO_PIXEL_DATA)
    refusal = _unusual(parsed, element)
    if refusal is not None:
        return refusal
    elements = parsed.elements
    rows, columns = integer(elements, tags.ROWS), integer(elements, tags.COLUMNS)
    allocated, stored = integer(elements, tags.BITS_ALLOCATED), integer(elements, tags.BITS_STORED)
    representation = integer(elements, tags.PIXEL_REPRESENTATION)
    if rows is None or columns is None or allocated is None or stored is None or representation is None:
        return Refusal(Reason.UNDECODABLE, "rows, columns, bits or pixel representation are missing")
    if not (MIN_EDGE <= rows <= MAX_EDGE and MIN_EDGE <= columns <= MAX_EDGE):
        return Refusal(Reason.UNDECODABLE, f"got {rows} x {columns} pixels, want {MIN_EDGE} to {MAX_EDGE} each way")
    if allocated not in {8, 16, 32} or not 2 <= stored <= allocated or representation not in {0, 1}:
        return Refusal(Reason.UNDECODABLE, f"got {stored} of {allocated} bits, want 2 to 8, 16 or 32")
    if integer(elements, tags.HIGH_BIT) not in {None, stored - 1}:
        return Refusal(Reason.UNDECODABLE, "the high bit is not the highest of the bits stored")
    encapsulated = parsed.transfer_syntax in ENCAPSULATED_SYNTAXES
    pixels = StoredPixels(
        transfer_syntax=str(parsed.transfer_syntax or _guessed_syntax(parsed)),
        shape=(rows, columns),
        bits_allocated=allocated,
        bits_stored=stored,
        signed=representation == 1,
        offset=0 if encapsulated else element.offset,
        big_endian=parsed.big_endian,
        encapsulated=encapsulated,
        deflated_at=parsed.deflated_at,
        padding=_padding(parsed, stored, representation == 1),
        file_bytes=parsed.file_bytes,
    )
    refusal = _items(path, element) if encapsulated else _native(parsed, element, pixels, frames)
    return refusal or pixels


def _unusual(parsed: Parsed, element: PixelElement) -> Refusal | None:
    if element.tag != tags.PIXELS:
        return Refusal(Reason.UNDECODABLE, "floating-point pixel data")
    if element.vr not in {None, "OB", "OW", "UN"}:
        return Refusal(Reason.UNDECODABLE, "the pixel data element has a wrong VR")
    samples = integer(parsed.elements, tags.SAMPLES_PER_PIXEL)
    photometric = text(parsed.elements, tags.PHOTOMETRIC)
    if samples != 1 or photometric not in {"MONOCHROME1", "MONOCHROME2"}:
        return Refusal(Reason.NOT_HU, "a colour image")
    if parsed.transfer_syntax and parsed.transfer_syntax not in NATIVE_SYNTAXES | ENCAPSULATED_SYNTAXES:
        return Refusal(Reason.UNDECODABLE, "an unknown transfer syntax")
    return None


def _guessed_syntax(parsed: Parsed) -> str:
    if parsed.big_endian:
        return str(ExplicitVRBigEndian)
    implicit = parsed.pixels is not None and parsed.pixels.vr is None
    return str(ImplicitVRLittleEndian if implicit else ExplicitVRLittleEndian)


def _native(parsed: Parsed, element: PixelElement, pixels: StoredPixels, frames: int) -> Refusal | None:
    row_bytes = pixels.shape[1] * pixels.bits_allocated // 8
    wanted = row_bytes * pixels.shape[0] * frames
    if element.length == UNDEFINED_LENGTH:
        return Refusal(Reason.UNDECODABLE, "encapsulated pixels in a syntax that has none")
    if element.length < wanted or element.offset + wanted > parsed.data_bytes:
        held = min(element.length, max(parsed.data_bytes - element.offset, 0))
        return Refusal(Reason.TRUNCATED, f"got {held} bytes of pixels, want {wanted}")
    if element.length - wanted >= row_bytes:
        # A row or more too much: the header's rows and columns are not those of the pixels.
        return Refusal(Reason.UNDECODABLE, f"got {element.length} bytes of pixels, want {wanted}")
    if pixels.big_endian and pixels.bits_allocated == 8:
        return Refusal(Reason.UNDECODABLE, "8-bit pixels in big-endian words")
    return None


def _items(path: Path, element: PixelElement) -> Refusal | None:
    """Walk over the fragments (PS3.5 section A.4) up to the sequence delimiter; pydicom checks their content."""
    if element.length != UNDEFINED_LENGTH:
        return Refusal(Reason.UNDECODABLE, "compressed pixels that are not encapsulated")
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        file.seek(element.offset)
        while len(item := file.read(8)) == 8:
            group, number, length = struct.unpack("<HHI", item)
            if (group, number) == (0xFFFE, 0xE0DD):
                return None
            if (group, number) != (0xFFFE, 0xE000) or length == UNDEFINED_LENGTH:
                return Refusal(Reason.UNDECODABLE, "the pixel data's fragments are damaged")
            if file.seek(length, os.SEEK_CUR) > size:
                break
    return Refusal(Reason.TRUNCATED, "the file ends within its compressed pixels")


def _padding(parsed: Parsed, bits: int, signed: bool) -> tuple[int, int] | None:
    """Pixel Padding Value and Range Limit as stored values: their VR may be US or SS whatever the pixels' sign."""
    value = integer(parsed.elements, tags.PIXEL_PADDING)
    if value is None:
        return None
    limit = integer(parsed.elements, tags.PIXEL_PADDING_LIMIT)
    ends = [_as_signed(number, 32 if bits > 16 else 16) if signed else number for number in (value, limit or value)]
    if limit == 0:
        ends[1] = 0
    return min(ends), max(ends)


def _as_signed(number: int, bits: int) -> int:
    return number - (1 << bits) if number >= 1 << (bits - 1) else number
