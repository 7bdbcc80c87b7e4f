"""One DICOM file's elements up to its pixel data, and where the pixel data lie. Nothing is decoded or judged here."""

from __future__ import annotations

import os
import stat
import struct
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO

from pydicom.errors import BytesLengthException, InvalidDicomError
from pydicom.filereader import read_dataset
from pydicom.tag import BaseTag
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ImplicitVRLittleEndian,
)

from ctslices.reject import Reason
from ctslices.sources import dicom_tags as tags
from ctslices.sources.dicom_values import integer, text

HEAD_BYTES = 1 << 15
"""What is read at first; longer headers are read from the whole file."""
INFLATED_LIMIT_BYTES = 1 << 30
"""More than this out of one deflated file is an attack or damage."""
UNDEFINED_LENGTH = 0xFFFFFFFF

_PIXEL_TAGS = frozenset({tags.FLOAT_PIXELS, tags.DOUBLE_PIXELS, tags.PIXELS})
_LONG_VR = frozenset({"OB", "OD", "OF", "OL", "OV", "OW", "SQ", "SV", "UC", "UN", "UR", "UT", "UV"})
PARSE_ERRORS = (
    BytesLengthException,
    InvalidDicomError,
    OSError,
    EOFError,
    ValueError,
    TypeError,
    LookupError,
    AttributeError,
    NotImplementedError,
    OverflowError,
    RecursionError,
    MemoryError,
    struct.error,
    zlib.error,
)
"""What pydicom raises on damaged bytes."""


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why one file is not taken; becomes `Rejected` with the file's path."""

    reason: Reason
    detail: str = ""


@dataclass(frozen=True, slots=True)
class PixelElement:
    """The element that holds the pixels: its tag, VR (None: implicit), length and its value's offset."""

    tag: int
    vr: str | None
    length: int
    offset: int


@dataclass(frozen=True, slots=True)
class Parsed:
    """A file's elements before the pixels, by tag."""

    elements: Mapping[int, Any]
    dataset: Any
    transfer_syntax: str
    big_endian: bool
    pixels: PixelElement | None
    data_bytes: int
    """Size of what `PixelElement.offset` counts in: the file, or the inflated data set."""
    deflated_at: int | None
    """Where in the file the deflated data set begins; None where nothing is deflated."""
    file_bytes: int
    cut: bool
    """The data do not end where the last element does: something is missing."""


def looks_like_dicom(head: bytes) -> bool:
    """Whether a file's first bytes (132 or more) are a DICOM file's, with or without preamble (PS3.10 section 7.1)."""
    if head[128:132] == b"DICM":
        return True
    if len(head) < 8:
        return False
    group, element = struct.unpack("<HH", head[:4])
    if (group, element & 0xFF) == (0x0800, 0):
        return head[4:6].isalpha() and head[4:6].isupper()  # big endian, which is explicit always
    if group not in {0x0002, 0x0008} or element > 0x0100:
        return False
    explicit = head[4:6].isalpha() and head[4:6].isupper()
    return explicit or struct.unpack("<I", head[4:8])[0] < 256


def parse(path: Path) -> Parsed | Refusal:
    """Read a file's elements up to its pixel data, with one read of 32 KiB where that is enough.

    Damage becomes a Refusal and never an exception.
    """
    try:
        found = os.stat(path)
        if not stat.S_ISREG(found.st_mode):
            return Refusal(Reason.NOT_AN_IMAGE, "not a regular file")
        file_bytes = found.st_size
        with open(path, "rb", buffering=0) as file:
            head = file.read(HEAD_BYTES)
            if not looks_like_dicom(head):
                return Refusal(Reason.NOT_AN_IMAGE, "not a DICOM file")
            if len(head) < file_bytes:
                parsed = _attempt(BytesIO(head), file_bytes)
                if isinstance(parsed, Parsed) and parsed.pixels is not None:
                    return parsed
            file.seek(0)
            with open(path, "rb") as buffered:
                return _attempt(buffered, file_bytes)
    except OSError:
        return Refusal(Reason.UNREADABLE, "the file cannot be read")


def _attempt(file: BinaryIO, file_bytes: int) -> Parsed | Refusal:
    try:
        return _parse(file, file_bytes)
    except PARSE_ERRORS:
        return Refusal(Reason.UNREADABLE, "the header is damaged")


def _parse(file: BinaryIO, file_bytes: int) -> Parsed | Refusal:
    preamble = file.read(132)
    file.seek(132 if preamble[128:] == b"DICM" else 0)
    meta: dict[int, Any] = {}
    if _peek(file)[:2] == b"\2\0":
        meta.update(read_dataset(file, False, True, stop_when=_beyond_meta).items())
    syntax = text(meta, tags.TRANSFER_SYNTAX)
    length_is_bad = tags.META_LENGTH in meta and integer(meta, tags.META_LENGTH) is None
    if length_is_bad or (tags.TRANSFER_SYNTAX in meta and not syntax):
        return Refusal(Reason.UNREADABLE, "the file meta information is damaged")
    implicit, big_endian = _encoding(syntax, _peek(file))
    if syntax == DeflatedExplicitVRLittleEndian:
        start = file.tell()
        inflated = inflate(file.read())
        if inflated is None:
            return Refusal(Reason.UNREADABLE, "the deflated data set is damaged or larger than 1 GiB")
        parsed = _elements(BytesIO(inflated), syntax, False, False, len(inflated))
        return replace(parsed, file_bytes=file_bytes, deflated_at=start)
    return _elements(file, syntax, implicit, big_endian, file_bytes)


def _elements(file: BinaryIO, syntax: str, implicit: bool, big_endian: bool, data_bytes: int) -> Parsed:
    found: list[tuple[int, str | None, int]] = []
    end = [0]

    def at_pixels(tag: BaseTag, vr: str | None, length: int) -> bool:
        if tag in _PIXEL_TAGS:
            found[:] = [(int(tag), vr, length)]
            return True
        end[0] = file.tell() + length if length != UNDEFINED_LENGTH else data_bytes
        return False

    dataset = read_dataset(file, implicit, not big_endian, stop_when=at_pixels, specific_tags=list(tags.WANTED))
    elements: dict[int, Any] = {int(tag): element for tag, element in dataset.items()}
    pixels = None
    if found:
        tag, vr, length = found[0]
        pixels = PixelElement(tag, vr, length, file.tell() + (12 if vr in _LONG_VR else 8))
    cut = pixels is None and end[0] != data_bytes
    return Parsed(elements, dataset, syntax, big_endian, pixels, data_bytes, None, data_bytes, cut)


def _beyond_meta(tag: BaseTag, vr: str | None, length: int) -> bool:
    return tag >> 16 != 2


def _peek(file: BinaryIO) -> bytes:
    start = file.tell()
    first = file.read(6)
    file.seek(start)
    return first


def _encoding(syntax: str, first: bytes) -> tuple[bool, bool]:
    """(implicit VR, big endian) of the data set; guessed from its first six bytes where no syntax is named."""
    if syntax == ImplicitVRLittleEndian:
        return True, False
    if syntax:
        return False, syntax == ExplicitVRBigEndian
    explicit = first[4:6].isalpha() and first[4:6].isupper()
    # A group number below 256 stored big endian reads as 256 or more.
    return not explicit, explicit and int.from_bytes(first[:2], "little") >= 1024


def inflate(deflated: bytes) -> bytes | None:
    """A deflated data set (PS3.5 section A.5); None where it is damaged or beyond 1 GiB."""
    inflater = zlib.decompressobj(-zlib.MAX_WBITS)
    try:
        data = inflater.decompress(deflated, INFLATED_LIMIT_BYTES)
    except zlib.error:
        return None
    return data if inflater.eof else None
