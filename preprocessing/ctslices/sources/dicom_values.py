"""Values of DICOM elements as Python values, strictly: what is not exactly of the wanted form is None.

The few elements that decide HU and geometry are converted here from their bytes and not by pydicom, because its
lenient conversions (and the warnings that quote the value) cost twice the time of reading and would turn damage into
numbers. PS3.5 section 6.2 defines the forms.
"""

from __future__ import annotations

import math
import re
import struct
from collections.abc import Mapping
from functools import cache
from typing import Any

from pydicom.charset import convert_encodings, decode_bytes
from pydicom.datadict import dictionary_VR
from pydicom.dataelem import RawDataElement

_DECIMAL = re.compile(rb"[ ]*[-+]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][-+]?[0-9]+)?[ \0]*")
_TEXT_DELIMITERS = {0x0A, 0x0C, 0x0D}
"""Characters that reset the script (PS3.5 section 6.1.2.5.3): line feed, form feed, carriage return."""
_SHORT = {2: ("H", "h"), 4: ("I", "i")}


def raw_bytes(elements: Mapping[int, Any], tag: int) -> bytes | None:
    """The element's value as stored; None where it is absent, empty, not a plain value, or not of its own VR."""
    element = elements.get(tag)
    if not isinstance(element, RawDataElement) or not isinstance(element.value, bytes):
        return None
    return element.value if element.VR in _own_vr(tag) else None


def malformed(elements: Mapping[int, Any], tag: int) -> bool:
    """Whether the element is there with a value that cannot be its own."""
    element = elements.get(tag)
    return isinstance(element, RawDataElement) and bool(element.value) and raw_bytes(elements, tag) is None


@cache
def _own_vr(tag: int) -> frozenset[str | None]:
    """VRs that an element may have in a file: the dictionary's, none (implicit) or UN (PS3.5 section 6.2.2)."""
    return frozenset({None, "UN", *dictionary_VR(tag).split(" or ")})


def text(elements: Mapping[int, Any], tag: int) -> str:
    """A code string, UID or short text without padding; "" where absent. Not for values in a national script."""
    value = raw_bytes(elements, tag)
    return "" if value is None else value.decode("latin-1").strip(" \0")


def texts(elements: Mapping[int, Any], tag: int) -> tuple[str, ...]:
    """A text of several values; () where absent."""
    value = text(elements, tag)
    return tuple(part.strip(" \0") for part in value.split("\\")) if value else ()


def national_text(elements: Mapping[int, Any], tag: int) -> str:
    """A text of one value in the data set's own character set (0008,0005); "" where absent or empty."""
    value = raw_bytes(elements, tag)
    if value is None:
        return ""
    if value.isascii() and b"\x1b" not in value:
        return value.decode("ascii").strip(" \0")
    encodings = convert_encodings([part or "ISO_IR 6" for part in texts(elements, 0x00080005)] or "ISO_IR 6")
    return decode_bytes(value, encodings, _TEXT_DELIMITERS).strip(" \0")


def decimals(elements: Mapping[int, Any], tag: int, count: int) -> tuple[float, ...] | None:
    """Exactly `count` finite numbers of a decimal string (VR DS), else None."""
    value = raw_bytes(elements, tag)
    if value is None:
        return None
    parts = value.split(b"\\")
    if len(parts) != count or not all(_DECIMAL.fullmatch(part) for part in parts):
        return None
    numbers = tuple(float(part.strip(b" \0")) for part in parts)
    return numbers if all(math.isfinite(number) for number in numbers) else None


def decimal(elements: Mapping[int, Any], tag: int) -> float | None:
    """One finite number of a decimal string, else None."""
    numbers = decimals(elements, tag, 1)
    return None if numbers is None else numbers[0]


def integer(elements: Mapping[int, Any], tag: int, *, signed: bool = False) -> int | None:
    """One binary number of 16 or 32 bits (VR US, SS, UL, SL), else None."""
    element = elements.get(tag)
    value = raw_bytes(elements, tag)
    if value is None or len(value) not in _SHORT:
        return None
    order = "<" if element.is_little_endian else ">"  # type: ignore[union-attr]
    number: int = struct.unpack(order + _SHORT[len(value)][signed], value)[0]
    return number


def integer_string(elements: Mapping[int, Any], tag: int) -> int | None:
    """One whole number of an integer string (VR IS), else None."""
    value = raw_bytes(elements, tag)
    if value is None or not re.fullmatch(rb"[ ]*[-+]?[0-9]{1,12}[ \0]*", value):
        return None
    return int(value.strip(b" \0"))


def floating(elements: Mapping[int, Any], tag: int) -> float | None:
    """One finite number in binary (VR FD, FL), else None."""
    element = elements.get(tag)
    value = raw_bytes(elements, tag)
    if value is None or len(value) not in {4, 8}:
        return None
    order = "<" if element.is_little_endian else ">"  # type: ignore[union-attr]
    number: float = struct.unpack(order + ("d" if len(value) == 8 else "f"), value)[0]
    return number if math.isfinite(number) else None
