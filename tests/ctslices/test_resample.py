"""ctslices.resample: shares along an axis, and the mean over both."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ctslices.resample import area_average, overlap, to_int16


def test_shares_of_a_known_grid() -> None:
    shares = overlap(first_mm=1.0, pitch_mm=2.0, count=3, low_mm=1.0, length_mm=6.0, size=2)
    assert np.allclose(shares.weights.toarray(), [[1 / 3, 2 / 3, 0], [0, 0, 2 / 3]])
    assert np.allclose(shares.covered, [1, 2 / 3])


def test_a_backward_axis_gives_the_same_mean() -> None:
    values = np.arange(5, dtype=np.float32)
    ahead = overlap(0.5, 1.0, 5, 0.3, 4.1, 3).weights @ values
    back = overlap(4.5, -1.0, 5, 0.3, 4.1, 3).weights @ values[::-1]
    assert np.allclose(ahead, back)


@settings(max_examples=200, deadline=None)
@given(
    first=st.floats(-500, 500),
    pitch=st.floats(0.1, 9),
    back=st.booleans(),
    count=st.integers(1, 90),
    low=st.floats(-600, 600),
    length=st.floats(1, 700),
    size=st.integers(1, 80),
)
def test_shares_are_those_of_a_running_integral(
    first: float, pitch: float, back: bool, count: int, low: float, length: float, size: int
) -> None:
    values = np.random.default_rng(count).normal(0, 1000, count)
    got = overlap(first, -pitch if back else pitch, count, low, length, size)
    start = first - (count - 1) * pitch if back else first
    edges = start - pitch / 2 + pitch * np.arange(count + 1)
    running = np.concatenate([[0], np.cumsum((values[::-1] if back else values) * pitch)])
    targets = low + length / size * np.arange(size + 1)
    wanted = np.diff(np.interp(targets, edges, running)) / (length / size)
    assert np.abs(got.weights @ values - wanted).max() < 0.02
    covered = np.diff(np.clip(targets, edges[0], edges[-1])) / (length / size)
    assert np.abs(got.covered - covered).max() < 1e-4


def test_what_lies_outside_is_air() -> None:
    plane = np.full((4, 4), 100, np.float32)
    rows, columns = overlap(0.5, 1, 4, -4, 8, 2), overlap(0.5, 1, 4, 2, 4, 2)
    assert np.allclose(area_average(plane, rows, columns), [[-1024, -1024], [100, -1024]])
    assert np.allclose(area_average(plane, rows, columns, outside=0), [[0, 0], [100, 0]])


def test_a_transposed_plane_gives_the_same() -> None:
    plane = np.random.default_rng(0).normal(size=(6, 9)).astype(np.float32)
    rows, columns = overlap(0.5, 1, 6, -1, 7, 3), overlap(0.5, 1, 9, 2, 4, 4)
    assert np.allclose(area_average(plane, rows, columns), area_average(plane.T.copy(), rows, columns, transposed=True))


def test_rounding_keeps_within_int16() -> None:
    values = np.asarray([-1024.4, -2000, 0.5, 1.5, 40000, 3071.2], np.float32)
    assert to_int16(values).tolist() == [-1024, -1024, 0, 2, 32767, 3071]
    assert to_int16(values, lowest=0).min() == 0


@pytest.mark.parametrize("size", [64, 128])
def test_a_finer_target_than_the_source_repeats_it(size: int) -> None:
    plane = np.random.default_rng(1).normal(size=(32, 32)).astype(np.float32)
    shares = overlap(0.5, 1, 32, 0, 32, size)
    assert np.allclose(area_average(plane, shares, shares), np.kron(plane, np.ones((size // 32,) * 2)), atol=1e-3)
