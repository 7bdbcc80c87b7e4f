"""Values of elements: exactly of their form, or None."""

from __future__ import annotations

import struct

import pytest
from pydicom.dataelem import RawDataElement
from pydicom.tag import BaseTag

from ctslices.sources import dicom_tags as tags
from ctslices.sources.dicom_values import (
    decimal,
    decimals,
    floating,
    integer,
    integer_string,
    malformed,
    national_text,
    text,
    texts,
)


def elements(tag: int, value: bytes, vr: str | None, little: bool = True) -> dict[int, RawDataElement]:
    return {tag: RawDataElement(BaseTag(tag), vr, len(value), value, 0, vr is None, little)}


@pytest.mark.parametrize(("stored", "number"), [(b"1", 1.0), (b" -1024.0 ", -1024.0), (b"1E-3\0", 0.001), (b".5", 0.5)])
def test_decimals_of_the_standards_form(stored: bytes, number: float) -> None:
    for vr in ("DS", "UN", None):
        assert decimal(elements(tags.RESCALE_SLOPE, stored, vr), tags.RESCALE_SLOPE) == number


@pytest.mark.parametrize(
    "stored", [b"", b"nan", b"inf", b"1_0", b"0x1", b"1,5", b"1\\1", b"--1", b"1e999", b"1 2", b"\xb2"]
)
def test_damaged_decimals_are_none(stored: bytes) -> None:
    assert decimal(elements(tags.RESCALE_SLOPE, stored, "DS"), tags.RESCALE_SLOPE) is None


def test_a_value_of_another_vr_is_none() -> None:
    wrong = elements(tags.RESCALE_SLOPE, b"1 ", "US")
    assert decimal(wrong, tags.RESCALE_SLOPE) is None
    assert malformed(wrong, tags.RESCALE_SLOPE)
    assert not malformed(elements(tags.RESCALE_SLOPE, b"", "US"), tags.RESCALE_SLOPE)
    assert not malformed({}, tags.RESCALE_SLOPE)


def test_as_many_numbers_as_wanted() -> None:
    spacing = elements(tags.PIXEL_SPACING, b"0.5\\0.7 ", "DS")
    assert decimals(spacing, tags.PIXEL_SPACING, 2) == (0.5, 0.7)
    assert decimals(spacing, tags.PIXEL_SPACING, 3) is None


@pytest.mark.parametrize("little", [True, False])
def test_binary_numbers_in_both_orders(little: bool) -> None:
    order = "<" if little else ">"
    assert integer(elements(tags.ROWS, struct.pack(order + "H", 513), "US", little), tags.ROWS) == 513
    assert integer(elements(tags.ROWS, struct.pack(order + "HH", 1, 2)[:3], "US", little), tags.ROWS) is None
    assert floating(elements(tags.KVP, struct.pack(order + "d", 120.5), "DS", little), tags.KVP) == 120.5
    assert floating(elements(tags.KVP, struct.pack(order + "d", float("nan")), "DS", little), tags.KVP) is None


def test_integer_strings() -> None:
    assert integer_string(elements(tags.NUMBER_OF_FRAMES, b"12 ", "IS"), tags.NUMBER_OF_FRAMES) == 12
    assert integer_string(elements(tags.NUMBER_OF_FRAMES, b"1.0", "IS"), tags.NUMBER_OF_FRAMES) is None


def test_texts() -> None:
    assert texts(elements(tags.IMAGE_TYPE, b"ORIGINAL\\PRIMARY ", "CS"), tags.IMAGE_TYPE) == ("ORIGINAL", "PRIMARY")
    assert texts({}, tags.IMAGE_TYPE) == ()
    assert text(elements(tags.SERIES, b"1.2\0", "UI"), tags.SERIES) == "1.2"


def test_a_patient_in_the_files_own_character_set() -> None:
    found = elements(tags.PATIENT_ID, "Müller ".encode("latin-1"), "LO")
    found |= elements(tags.CHARACTER_SET, b"ISO_IR 100", "CS")
    assert national_text(found, tags.PATIENT_ID) == "Müller"
