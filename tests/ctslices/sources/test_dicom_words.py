"""Manufacturer and kernel as closed vocabularies."""

from __future__ import annotations

import pytest

from ctslices.sources.dicom_words import UNKNOWN_SHARPNESS, kernel_word, manufacturer_word, sharpness


@pytest.mark.parametrize(
    ("raw", "word"),
    [
        ("SIEMENS", "Siemens"),
        ("Siemens Healthineers", "Siemens"),
        ("GE MEDICAL SYSTEMS", "GE"),
        ("Philips", "Philips"),
        ("TOSHIBA_MEC", "Canon"),
        ("Gerda Muster", "other"),
        ("", ""),
    ],
)
def test_manufacturers(raw: str, word: str) -> None:
    assert manufacturer_word(raw) == word


@pytest.mark.parametrize(
    ("raw", "word"),
    [
        ("B40f", "B40f"),
        ("Br38f\\3", "Br38f"),
        ("STANDARD", "STANDARD"),
        ("FC17", "FC17"),
        ("UB", "UB"),
        ("B19f", "B19f"),
        ("", ""),
        ("MUSTERMANN", "other"),
        ("19560709", "other"),
        ("B40f Anna", "other"),
        ("HDBONEPLUS", "HDBONEPLUS"),
        ("HDSMITH", "other"),
        ("Ann63doe", "other"),
        ("BODY_SOFT_ANNA", "other"),
    ],
)
def test_kernels(raw: str, word: str) -> None:
    assert kernel_word(raw) == word


@pytest.mark.parametrize(
    "rising", [("B19f", "B40f", "B70f"), ("Br38f", "Br59f"), ("SOFT", "STANDARD", "LUNG"), ("FC08", "FC51"), ("B", "L")]
)
def test_sharper_kernels_rank_higher(rising: tuple[str, ...]) -> None:
    ranks = [sharpness(kernel) for kernel in rising]
    assert ranks == sorted(set(ranks))
    assert sharpness("something else") == UNKNOWN_SHARPNESS
