"""From updates to the next global weights, against plain numpy; and what is too large beside the others."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedscan.aggregation_plan import AggregationPlan
from fedscan.training.aggregation import combine, too_large, trimmed
from fedscan.training.weights import Weights, digest

MEAN = AggregationPlan()


def some(seed: int, scale: float = 1.0) -> Weights:
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(shape, generator=generator) * scale for name, shape in (("a", (3, 2)), ("b", (4,)))}


def combined(plan: AggregationPlan, start: Weights, updates: dict[str, Weights], shares: dict[str, float]) -> Weights:
    return combine(plan, start, shares, lambda site, name: updates[site][name])


def test_the_mean_is_that_of_plain_numpy_in_float64() -> None:
    start = some(0)
    updates = {f"site-{k}": some(k + 1, scale=10.0**-k) for k in range(5)}
    shares = {site: float(k + 1) ** 3 for k, site in enumerate(updates)}
    result = combined(MEAN, start, updates, shares)
    total = math.fsum(shares.values())
    for name, tensor in result.items():
        mean = sum(shares[s] * updates[s][name].numpy().astype(np.float64) for s in sorted(updates)) / total
        np.testing.assert_array_equal(
            tensor.numpy(), (start[name].numpy().astype(np.float64) + mean).astype(np.float32)
        )
        assert tensor.dtype == torch.float32


@pytest.mark.parametrize("method", ["mean", "trimmed_mean", "median"])
def test_the_result_does_not_depend_on_who_answered_first(method: str) -> None:
    plan = AggregationPlan.model_validate({"method": method, "trim_share": 0.25})
    updates = {site: some(k, 1e3**k) for k, site in enumerate("badc")}
    found = {
        digest(combined(plan, some(0), updates, dict.fromkeys(order, 1.0))) for order in itertools.permutations(updates)
    }
    assert len(found) == 1


def test_float32_sums_would_not_do() -> None:
    parts = {"a": 1e8, "b": 1.0, "c": -1e8}
    updates = {site: {"a": torch.tensor([value])} for site, value in parts.items()}
    result = combined(MEAN, {"a": torch.zeros(1)}, updates, dict.fromkeys(parts, 1.0))
    assert float(result["a"]) == pytest.approx(1 / 3)


@pytest.mark.parametrize(
    "shares", [{}, {"a": 0.0}, {"a": -1.0}, {"a": math.nan}, {"a": math.inf}, {"a": 1.0, "b": -0.5}]
)
def test_no_mean_without_weights_that_it_can_have(shares: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=r"contributions|weight"):
        combined(MEAN, some(0), dict.fromkeys(shares, some(1)), shares)


@given(values=st.lists(st.floats(-100, 100, width=32), min_size=1, max_size=9), share=st.floats(0.0, 0.49))
def test_trimmed_mean_and_median_are_those_of_numpy(values: list[float], share: float) -> None:
    updates = {f"s{k}": {"a": torch.tensor([value])} for k, value in enumerate(values)}
    shares = dict.fromkeys(updates, 1.0)
    median = combined(AggregationPlan(method="median"), {"a": torch.zeros(1)}, updates, shares)
    assert float(median["a"]) == pytest.approx(float(np.median(values)), abs=1e-4)
    plan = AggregationPlan(method="trimmed_mean", trim_share=share)
    cut = trimmed(plan, len(values))
    assert cut <= share * len(values) + 1e-6
    wanted = np.sort(values)[cut : len(values) - cut].mean()
    assert float(combined(plan, {"a": torch.zeros(1)}, updates, shares)["a"]) == pytest.approx(wanted, abs=1e-4)


@pytest.mark.parametrize("method", ["trimmed_mean", "median"])
@pytest.mark.parametrize("poison", [1e6, -1e6])
def test_one_poisoned_site_of_five_moves_no_value_beyond_the_others(method: str, poison: float) -> None:
    plan = AggregationPlan.model_validate({"method": method})
    updates = {f"s{k}": some(k) for k in range(4)} | {"bad": some(9, poison)}
    result = combined(
        plan, {name: torch.zeros_like(t) for name, t in some(0).items()}, updates, dict.fromkeys(updates, 1.0)
    )
    for name, tensor in result.items():
        honest = torch.stack([updates[f"s{k}"][name] for k in range(4)])
        assert bool((tensor >= honest.min(0).values).all())
        assert bool((tensor <= honest.max(0).values).all())


def test_a_norm_is_too_large_beside_the_median_from_three_answers_on() -> None:
    norms = {"a": 1.0, "b": 1.1, "c": 100.0}
    assert set(too_large(MEAN, norms)) == {"c"}
    assert too_large(MEAN, {"a": 1.0, "c": 100.0}) == {}
    assert too_large(AggregationPlan(max_norm_over_median=None), norms) == {}
    assert too_large(MEAN, {"a": 0.0, "b": 0.0, "c": 1.0}) == {}, "beside nothing everything is large"
    assert too_large(MEAN, {"a": 1.0, "b": 1.0, "c": 10.0}) == {}
