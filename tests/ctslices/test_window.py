from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ctslices.window import WINDOWS, to_hu, to_unit

NAMES = sorted(WINDOWS)


@pytest.mark.parametrize("name", NAMES)
def test_every_whole_value_inside_a_window_comes_back(name: str) -> None:
    window = WINDOWS[name]
    hu = np.arange(np.ceil(window.low), np.floor(window.high) + 1).astype(np.int16)
    np.testing.assert_array_equal(to_hu(to_unit(hu, name), name), hu)


@given(name=st.sampled_from(NAMES), hu=st.integers(-32768, 32767))
def test_unit_never_leaves_its_range_and_clips_at_the_window(name: str, hu: int) -> None:
    unit = to_unit(np.int16(hu), name)
    assert unit.dtype == np.float32
    assert -1 <= unit <= 1
    window = WINDOWS[name]
    assert to_hu(unit, name) == np.clip(hu, np.ceil(window.low), np.floor(window.high))


@pytest.mark.parametrize(
    ("name", "low", "high"),
    [
        ("full", -1000, 1000),
        ("lung", -1350, 150),
        ("mediastinum", -160, 240),
        ("bone", -500, 1300),
        ("grey", 0, 255),
    ],
)
def test_windows_are_those_of_the_field(name: str, low: float, high: float) -> None:
    np.testing.assert_allclose(to_unit([low, (low + high) / 2, high], name), [-1, 0, 1], atol=1e-6)


def test_what_a_model_says_beyond_the_window_is_clipped() -> None:
    np.testing.assert_array_equal(to_hu([-7.0, 7.0], "full"), [-1000, 1000])


def test_an_unknown_window_is_named_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"one of full, lung, mediastinum, bone, grey: got 'brain'"):
        to_unit([0], "brain")
