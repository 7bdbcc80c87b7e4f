"""Private plans in one process: the same rounds, nothing told that follows from data, and an honest provenance."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ctslices.store import SliceStore
from fedscan.plan import Plan
from fedscan.privacy.accounting import epsilon
from fedscan.privacy.event import Event, round_event
from fedscan.privacy.noise import ReproducibleNoise, SecureNoise
from fedscan.training import in_process
from fedscan.training.data import TrainingSet
from fedscan.training.in_process import MODEL_NAME
from fedscan.training.in_process_sites import PrivateSiteReport
from fedscan.training.model_file import load_model
from fedscan.training.privacy_statement import privacy_statement
from fedscan.training.private_round import PrivateProgress, PrivateTrainer
from fedscan.training.weights import digest, initial_weights

SITES = {  # a declared nine patients and has six
    "a": {"sample_rate": 0.5, "expected_patients_per_step": 4.5},
    "b": {"sample_rate": 0.25, "expected_patients_per_step": 1.0},
}


@pytest.fixture
def plan(make_private: Callable[..., Plan]) -> Plan:
    return make_private(noise_multiplier=2.0, sites=SITES, rounds=3, weighting="declared", ema={"half_life_rounds": 0})


@pytest.fixture
def stores(make_store: Callable[..., Path]) -> dict[str, Path]:
    return {"b": make_store("b", 8), "a": make_store("a", 12)}


def demo(site: str) -> ReproducibleNoise:
    return ReproducibleNoise(ord(site))


def test_private_rounds_are_the_sites_rounds_weighted_by_what_they_declared(
    plan: Plan, stores: dict[str, Path]
) -> None:
    outcome = in_process.run(plan, stores, noise=demo)
    weights, shares = initial_weights(plan), {"a": 9 / 13, "b": 4 / 13}
    trainers, noise, states = {}, {site: demo(site) for site in stores}, dict.fromkeys(stores)
    for site, path in stores.items():
        data = TrainingSet.from_store(SliceStore.open(path), plan)
        trainers[site] = PrivateTrainer(plan, data, site, allow_reproducible=True)
    for number in range(3):
        sums: dict[str, Any] = {}
        for site in ("a", "b"):
            result = trainers[site].round(weights, number, states[site], noise[site])
            states[site] = result.state
            for name, tensor in result.update.items():
                sums[name] = sums.get(name, 0.0) + shares[site] * tensor.double()
        weights = {name: (tensor.double() + sums[name]).float() for name, tensor in weights.items()}
    assert digest(outcome.weights) == digest(weights)
    assert {site: report.share for site, report in outcome.rounds[0].sites.items()} == pytest.approx(shares)


def test_no_report_tells_what_follows_from_data(plan: Plan, stores: dict[str, Path]) -> None:
    steps: list[Any] = []
    outcome = in_process.run(plan, stores, until_round=1, on_step=lambda *said: steps.append(said))
    assert {field.name for field in dataclasses.fields(PrivateSiteReport)} == {"steps", "share", "update_norm", "loss"}
    assert outcome.rounds[0].loss is None
    assert {report.loss for report in outcome.rounds[0].sites.values()} == {None}, "the plan asks for none"
    assert all(isinstance(report, PrivateSiteReport) for report in outcome.rounds[0].sites.values())
    assert steps == [(site, 0, PrivateProgress(step, 2)) for site in "ab" for step in (1, 2)]


def test_secure_noise_is_the_default_and_repeats_in_no_run(plan: Plan, stores: dict[str, Path]) -> None:
    digests = {digest(in_process.run(plan, stores, until_round=1).weights) for _ in range(2)}
    asked: list[str] = []

    def noise(site: str) -> SecureNoise:
        asked.append(site)
        return SecureNoise()

    digests.add(digest(in_process.run(plan, stores, until_round=1, noise=noise).weights))
    assert len(digests) == 3
    assert asked == ["a", "b"]


def test_the_model_says_what_its_privacy_is_and_that_nobody_kept_a_ledger(
    plan: Plan, stores: dict[str, Path], tmp_path: Path
) -> None:
    in_process.run(plan, stores, tmp_path / "out")
    provenance = load_model(tmp_path / "out" / MODEL_NAME).provenance
    worst = epsilon([Event(noise_multiplier=2.0, sample_rate=0.5, steps=6, unit="patient")], 1e-3)
    assert provenance["privacy"] == (
        f"epsilon {worst:.4g} at delta 0.001 for each patient of a site (the most of 2 sites: noise multiplier 2, "
        "sample rate 0.5, 6 steps); no ledger: trained in one process"
    )
    assert provenance["sites"] == {
        "a": {"unit": "patient", "declared_patients": 9.0},
        "b": {"unit": "patient", "declared_patients": 4.0},
    }
    in_process.run(plan, stores, tmp_path / "demo", noise=demo)
    said = load_model(tmp_path / "demo" / MODEL_NAME).provenance["privacy"]
    assert "reproducible noise, which protects nobody; no ledger" in said


def test_only_rounds_in_which_a_site_trained_count(make_private: Callable[..., Plan], plan: Plan) -> None:
    alone = epsilon([round_event(plan, "b")], 1e-3)
    assert privacy_statement(plan, {"a": 0, "b": 1}, "x").startswith(f"epsilon {alone:.4g} at delta 0.001 ")
    assert privacy_statement(plan, {"a": 0, "b": 0}, "x") == "no site has trained; x"
    loud = make_private(sites=SITES)  # noise of 1e-9
    assert privacy_statement(loud, {"a": 1}, "x") == "epsilon cannot be computed for this noise: take it as none; x"
