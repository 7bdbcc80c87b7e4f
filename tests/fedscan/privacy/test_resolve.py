"""A target epsilon becomes a noise multiplier for the worst site; declared sizes become sampling."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from pydantic import ValidationError

from fedscan.plan import Plan
from fedscan.privacy.accounting import epsilon
from fedscan.privacy.event import run_event
from fedscan.privacy.resolve import ResolveError, declare, resolve


@pytest.fixture
def raw() -> dict[str, Any]:
    """As a template is."""
    return {
        "weighting": "uniform",
        "rounds": 20,
        "training": {"local_steps": 10},
        "privacy": {"target_epsilon": 8.0, "delta": 1e-5, "from_scratch": True},
    }


def spent(raw: dict[str, Any], site: str) -> float:
    plan = Plan.model_validate(raw)
    assert plan.privacy is not None
    return epsilon([run_event(plan, site)], plan.privacy.delta)


def test_noise_is_found_for_the_site_that_samples_most(raw: dict[str, Any]) -> None:
    declare(raw, {"a": 1000, "b": 300})
    raw["privacy"]["sites"]["b"] = {"sample_rate": 0.5, "expected_patients_per_step": 150}
    resolve(raw)
    assert 7.95 < spent(raw, "b") <= 8.0
    assert spent(raw, "a") < 6.0
    noise = raw["privacy"]["noise_multiplier"]
    assert float(f"{noise:.4g}") == noise


def test_it_is_over_all_planned_rounds(raw: dict[str, Any]) -> None:
    declare(raw, {"a": 1000})
    longer = copy.deepcopy(raw)
    del longer["rounds"]  # the plan's default
    longer["training"]["local_steps"] = 80
    for one in (raw, longer):
        resolve(one)
        assert 7.95 < spent(one, "a") <= 8.0
    assert longer["privacy"]["noise_multiplier"] > 1.5 * raw["privacy"]["noise_multiplier"]


def test_a_loss_is_paid_out_of_the_same_target(raw: dict[str, Any]) -> None:
    declare(raw, {"a": 1000})
    alone = copy.deepcopy(raw)
    raw["privacy"]["loss"] = {"noise_multiplier": 10.0}
    for one in (raw, alone):
        resolve(one)
        assert 7.95 < spent(one, "a") <= 8.0
    assert 1.005 < raw["privacy"]["noise_multiplier"] / alone["privacy"]["noise_multiplier"] < 1.05


def test_a_loss_that_alone_spends_the_target_is_refused(raw: dict[str, Any]) -> None:
    declare(raw, {"a": 1000})
    raw["privacy"]["loss"] = {"noise_multiplier": 1.0}
    with pytest.raises(ResolveError, match="alone spends target_epsilon"):
        resolve(raw)


def test_a_noise_that_is_there_stays(raw: dict[str, Any]) -> None:
    declare(raw, {"a": 1000})
    raw["privacy"]["noise_multiplier"] = 1.5
    resolve(raw)
    assert raw["privacy"]["noise_multiplier"] == 1.5


@pytest.mark.parametrize("privacy", [{}, {"privacy": None}, {"privacy": "on"}])
def test_without_privacy_nothing_is_done(privacy: dict[str, Any]) -> None:
    raw = {"rounds": 3} | privacy
    before = copy.deepcopy(raw)
    resolve(raw)
    assert raw == before


@pytest.mark.parametrize("sites", [None, {}])
def test_without_sizes_it_says_how_to_give_them(raw: dict[str, Any], sites: object) -> None:
    raw["privacy"]["sites"] = sites
    with pytest.raises(ResolveError, match="--patients a=500,b=300"):
        resolve(raw)


def test_neither_noise_nor_target_is_an_error(raw: dict[str, Any]) -> None:
    declare(raw, {"a": 1000})
    raw["privacy"]["target_epsilon"] = None
    with pytest.raises(ResolveError, match="set one"):
        resolve(raw)


def test_an_epsilon_that_cannot_be_had_is_said_to_be(raw: dict[str, Any]) -> None:
    declare(raw, {"a": 1000})
    raw["privacy"] |= {"target_epsilon": 1e-8, "delta": 1e-11}
    with pytest.raises(ResolveError, match=r"target_epsilon=1e-08.*fewer steps"):
        resolve(raw)
    assert "noise_multiplier" not in raw["privacy"]


@pytest.mark.parametrize(
    "change",
    [
        {"privacy": {"target_epsilon": "8"}},
        {"privacy": {"target_epsilon": float("nan")}},
        {"privacy": {"delta": 0.5}},
        {"privacy": {"surprise": 1}},
        {"privacy": {"sites": {"a": {"sample_rate": 2.0, "expected_patients_per_step": 4}}}},
        {"training": {"local_epochs": 2}},
        {"rounds": -1},
    ],
)
def test_what_is_wrong_otherwise_is_the_plans_to_say(raw: dict[str, Any], change: dict[str, Any]) -> None:
    declare(raw, {"a": 1000})
    for part, value in change.items():
        raw[part] = raw[part] | value if part == "privacy" else value
    with pytest.raises(ValidationError):
        resolve(raw)
    assert "noise_multiplier" not in raw["privacy"]


def test_sizes_become_sampling_with_the_rate_of_the_site_the_command_or_the_default(raw: dict[str, Any]) -> None:
    raw["privacy"]["sites"] = {"a": {"sample_rate": 0.1}, "gone": {"sample_rate": 0.1}}
    other = copy.deepcopy(raw)
    declare(raw, {"a": 500, "b": 301})
    assert raw["privacy"]["sites"] == {
        "a": {"sample_rate": 0.1, "expected_patients_per_step": 50.0},
        "b": {"sample_rate": 0.25, "expected_patients_per_step": 75.25},
    }
    declare(other, {"a": 500, "b": 300}, sample_rate=0.5)
    assert [site["expected_patients_per_step"] for site in other["privacy"]["sites"].values()] == [250.0, 150.0]


def test_sizes_need_privacy_and_rates_that_are_numbers(raw: dict[str, Any]) -> None:
    with pytest.raises(ResolveError, match="has no privacy"):
        declare({"rounds": 3}, {"a": 500})
    raw["privacy"]["sites"] = {"a": {"sample_rate": "often"}}
    with pytest.raises(ResolveError, match="must be a number, got 'often'"):
        declare(raw, {"a": 500})
