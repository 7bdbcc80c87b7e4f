"""fedscan.privacy.clipping against plain numpy in float64."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedscan.privacy.clipping import TOLERANCE, ClipError, assert_clipped, clip_and_sum, clip_factors, squared_norms


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.mark.parametrize("columns", [1, 7, 4095, 4096, 4097, 1_200_000])
def test_norms_are_those_of_float64(columns: int) -> None:
    """torch's own float32 norm of 1.2 million columns may be off by more than the assertion's tolerance."""
    rows = torch.randn(3, columns, generator=torch.Generator().manual_seed(columns))
    wanted = np.linalg.norm(rows.numpy().astype(np.float64), axis=1)
    assert np.abs(squared_norms(rows).sqrt().numpy() / wanted - 1).max() < 1e-6


@given(
    norms=st.lists(st.floats(0, 1e38), min_size=1, max_size=9),
    bound=st.floats(1e-6, 1e6),
)
def test_clipped_norms_never_exceed_the_bound_and_short_ones_stay(norms: list[float], bound: float) -> None:
    factors = clip_factors(torch.tensor(norms, dtype=torch.float64), bound).tolist()
    for norm, factor in zip(norms, factors, strict=True):
        assert factor * norm <= bound * (1 + 1e-12)
        assert 0 < factor <= 1
        if norm < bound - 2e-6:
            assert factor == 1


@pytest.mark.parametrize("norm", [math.inf, math.nan])
def test_what_is_not_finite_counts_as_zero(norm: float) -> None:
    assert clip_factors(torch.tensor([norm, 1.0], dtype=torch.float64), 0.5)[0] == 0


@settings(deadline=None, max_examples=25)
@given(patients=st.integers(0, 700), columns=st.lists(st.integers(1, 900), min_size=1, max_size=4), seed=st.integers(0))
def test_the_sum_is_the_factors_times_the_rows(patients: int, columns: list[int], seed: int) -> None:
    """Over more values than are taken at once; added to what was there; norms over all parameters together."""
    generator = torch.Generator().manual_seed(seed % 2**60)
    rows = [torch.randn(patients, c, generator=generator) for c in columns]
    factors = torch.rand(patients, generator=generator, dtype=torch.float64)
    sums = [torch.ones(c, dtype=torch.float64) for c in columns]
    norms = clip_and_sum(rows, factors, sums)
    clipped = [r.numpy().astype(np.float64) * factors.numpy()[:, None] for r in rows]
    for total, part in zip(sums, clipped, strict=True):
        assert np.allclose(total.numpy(), 1 + part.sum(0), rtol=0, atol=1e-12)
    assert np.allclose(norms.numpy(), np.linalg.norm(np.concatenate(clipped, axis=1), axis=1), rtol=1e-12)


def test_rows_that_are_not_finite_add_nothing_where_the_factor_is_zero() -> None:
    rows = [torch.tensor([[1.0, 2.0], [math.nan, math.inf], [3.0, 4.0]])]
    sums = [torch.zeros(2, dtype=torch.float64)]
    norms = clip_and_sum(rows, torch.tensor([1.0, 0.0, 0.5], dtype=torch.float64), sums)
    assert sums[0].tolist() == [2.5, 4.0]
    assert norms.tolist() == pytest.approx([math.sqrt(5), 0.0, 2.5])


@pytest.mark.parametrize("norm", [0.3, 0.1 * (1 + 2 * TOLERANCE), math.nan, math.inf])
def test_a_longer_row_is_noticed_without_a_word_about_it(norm: float) -> None:
    assert_clipped(torch.tensor([0.1, 0.1 * (1 + TOLERANCE / 2), 0.0], dtype=torch.float64), 0.1)
    with pytest.raises(ClipError, match="clipping is wrong in this build") as caught:
        assert_clipped(torch.tensor([0.1, norm], dtype=torch.float64), 0.1)
    assert not any(character.isdigit() for character in str(caught.value))
