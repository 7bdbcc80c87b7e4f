"""Rescaling to HU, and the sign of values that were stretched in each slice."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from ctslices.hounsfield import RescaledCheck, to_hu


@pytest.mark.parametrize(
    ("stored", "slope", "intercept", "padding", "expected"),
    [
        ([0, 1024, 4095], 1, -1024, None, [-1024, 0, 3071]),
        ([-3024, -1000, 40], 1, 0, None, [-1024, -1000, 40]),  # GE's circle, intercept 0
        ([-2000, 0, 65], 1, -1024, (-2000, -2000), [-1024, -1024, -959]),  # GE's padding
        ([0, 5, 3000], 2, -1000, None, [-1000, -990, 5000]),  # nothing is clipped above
        ([10, 20, 30], 1, 0, (20, 20), [10, -1024, 30]),  # padding that looks like tissue
        ([10, 20, 30], 1, 0, (10, 20), [-1024, -1024, 30]),  # a range of it
        ([10, 20, 2000], -1, 500, None, [490, 480, -1024]),
        ([100, 101, 102], 0.5, 0.25, None, [50.25, 50.75, 51.25]),
    ],
)
def test_known_values(
    stored: list[int],
    slope: float,
    intercept: float,
    padding: tuple[int, int] | None,
    expected: list[float],
) -> None:
    hu = to_hu(np.array([stored], np.int16), slope, intercept, padding)
    assert hu.dtype == np.float32
    assert hu.tolist() == [expected]


@given(
    stored=st.lists(st.integers(-(2**31), 2**31 - 1), min_size=1, max_size=20),
    slope=st.floats(0.01, 10),
    intercept=st.floats(-5000, 5000),
)
def test_wide_integers_lose_no_more_than_float32_does(stored: list[int], slope: float, intercept: float) -> None:
    hu = to_hu(np.array([stored], np.int32), slope, intercept)
    exact = np.maximum(np.array(stored, np.float64) * slope + intercept, -1024)
    assert np.allclose(hu[0], exact, rtol=1e-6, atol=1e-3)


def _verdict(planes: list[NDArray[np.float32]], slopes: list[float] | None = None) -> bool:
    check = RescaledCheck()
    for at, plane in enumerate(planes):
        check.add(plane, slopes[at] if slopes else 1.0)
    return check.stretched


def test_a_real_chest_is_hu(real_chest: NDArray[np.int16]) -> None:
    assert not _verdict([plane.astype(np.float32) for plane in real_chest])


def test_slices_stretched_to_one_range_are_not(real_chest: NDArray[np.int16]) -> None:
    planes = [plane.astype(np.float32) for plane in real_chest]
    stretched = [np.rint((p - p.min()) / (p.max() - p.min()) * 4095 - 1024).astype(np.float32) for p in planes]
    assert _verdict(stretched)
    assert not _verdict(stretched[:4]), "four slices prove nothing"


def test_stored_values_stretched_by_a_slope_of_each_slice_are_not(real_chest: NDArray[np.int16]) -> None:
    planes = [plane.astype(np.float32) + 1024 for plane in real_chest]
    slopes = [float(plane.max()) / 4095 for plane in planes]
    assert _verdict(planes, slopes)


def test_metal_at_the_scanners_ceiling_in_each_slice_is_hu(real_chest: NDArray[np.int16]) -> None:
    planes = [plane.astype(np.float32) for plane in real_chest]
    for plane in planes:
        plane[60:70, 60:70] = 3071
    assert not _verdict(planes)


def test_flat_planes_do_not_break_it() -> None:
    assert _verdict([np.full((32, 32), -1024, np.float32)] * 6) in {True, False}
