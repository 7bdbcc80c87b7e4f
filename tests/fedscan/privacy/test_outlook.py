"""Noise per patient: the figures and words of the measurements, and patients that really earn the better word."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedscan.plan import Plan
from fedscan.privacy.outlook import average_noise_per_patient, noise_per_patient, outlook


def plan(patients: dict[str, float], sigma: float = 2.07, q: float = 0.25, **fields: Any) -> Plan:
    sites = {site: {"sample_rate": q, "expected_patients_per_step": q * n} for site, n in patients.items()}
    privacy = {"noise_multiplier": sigma, "delta": 1e-5, "sites": sites, "from_scratch": True}
    return Plan.model_validate({"weighting": "uniform", "training": {"local_steps": 10}, "privacy": privacy} | fields)


@pytest.mark.parametrize(
    ("nu", "word"),
    [
        (0.0041, "good"),
        (0.005, "good"),
        (0.00501, "fair"),
        (0.0089, "fair"),
        (0.0166, "outline only"),
        (0.0227, "outline only"),
        (0.0281, "start plus grey levels"),
        (0.0414, "start plus grey levels"),
        (0.5, "start plus grey levels"),
    ],
)
def test_the_words_are_those_of_the_measured_arms(nu: float, word: str) -> None:
    assert outlook(nu).word == word


def test_it_warns_above_a_twentieth_and_says_so() -> None:
    assert not outlook(0.05).warns
    bad = outlook(0.0501, 100)
    assert bad.warns
    assert "hardly worth the budget" in str(bad)
    assert "shapes of the public start" in str(outlook(0.05))


def test_noise_per_patient_is_sigma_over_expected_patients() -> None:
    """The table of a single site (q 0.25, 200 steps, epsilon 8: sigma/q = 8.3)."""
    privacy = plan({"a": 2020, "b": 365}).privacy
    assert privacy is not None
    assert noise_per_patient(privacy, "a") == pytest.approx(0.0041, rel=0.01)
    assert noise_per_patient(privacy, "b") == pytest.approx(0.0227, rel=0.01)
    with pytest.raises(KeyError):
        noise_per_patient(privacy, "c")


@given(st.floats(1e-4, 10.0), st.integers(1, 10**6))
def test_so_many_patients_earn_the_next_word_and_one_less_does_not(nu: float, patients: int) -> None:
    now = outlook(nu, patients)
    if now.next_word is None:
        assert now.patients_for_next is None
        return
    assert now.patients_for_next is not None
    assert now.patients_for_next > patients
    assert outlook(nu * patients / now.patients_for_next * (1 - 1e-9)).word == now.next_word
    assert outlook(nu * patients / (now.patients_for_next - 1)).word == now.word
    assert f"'{now.next_word}' needs {now.patients_for_next} patients" in str(now)


def test_without_a_size_no_number_is_invented() -> None:
    assert outlook(0.03).patients_for_next is None
    assert outlook(0.03).next_word == "outline only"
    assert "needs" not in str(outlook(0.03))


@pytest.mark.parametrize("nu", [0.0, -1.0, math.nan, math.inf])
def test_a_noise_that_is_none_has_no_word(nu: float) -> None:
    with pytest.raises(ValueError, match="above 0"):
        outlook(nu)


def test_the_average_of_alike_sites_falls_with_the_root_of_their_number() -> None:
    """dp-usefulness, section 5: ten sites of 200 patients at epsilon 3 (sigma/q 17.8) have 0.028 together."""
    ten = plan({f"s{i}": 200 for i in range(10)}, sigma=17.8 * 0.25)
    assert average_noise_per_patient(ten) == pytest.approx(0.0281, rel=0.01)
    one = plan({"a": 200}, sigma=17.8 * 0.25)
    assert average_noise_per_patient(one) == pytest.approx(0.089, rel=0.01)


def test_sites_that_are_not_asked_do_not_average_noise_away() -> None:
    patients = {f"s{i}": 200 for i in range(9)}
    everybody, few = plan(patients), plan(patients, clients_per_round=4)
    assert average_noise_per_patient(few) == pytest.approx(1.5 * average_noise_per_patient(everybody))


def test_declared_weights_keep_a_small_site_from_spoiling_the_average() -> None:
    patients = {"large": 2000.0, "small": 20.0}
    uniform, declared = plan(patients), plan(patients, weighting="declared")
    assert average_noise_per_patient(uniform) == pytest.approx(2.07 / 0.25 * math.hypot(1 / 2000, 1 / 20) / 2)
    assert average_noise_per_patient(declared) == pytest.approx(2.07 / 0.25 * math.sqrt(2) / 2020)


def test_a_plan_without_privacy_adds_no_noise() -> None:
    with pytest.raises(ValueError, match="no privacy"):
        average_noise_per_patient(Plan())
