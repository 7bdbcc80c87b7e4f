"""The audit attacks the real mechanism: it must find nothing above the claim, and find planted holes."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from fedscan.evaluation.privacy_audit import Audit, audit
from fedscan.plan import Plan
from fedscan.privacy.accounting import noise_multiplier_for
from fedscan.privacy.noise import SecureNoise
from fedscan.privacy_plan import SiteSampling
from fedscan.training import public_start
from fedscan.training.data import TrainingSet
from fedscan.training.model_file import load_model

DELTA = 1e-5
START = load_model(public_start.SHELF / "ct_phantom.safetensors")
"""A fresh network's gradients vanish: an attack on it would say little."""


class WeakNoise(SecureNoise):
    """The planted hole: noise that is a share of what is claimed."""

    share = 1.0

    def normal(self, n: int) -> torch.Tensor:
        return self.share * super().normal(n)

    def prefetch(self, n: int) -> None:
        del n


class NoNoise(WeakNoise):
    share = 0.0


class TenTimesTooSmall(WeakNoise):
    share = 0.1


def plan_of(epsilon: float, sample_rate: float, steps: int) -> Plan:
    return Plan.model_validate(
        {
            "model": {"preset": "tiny"},
            "rounds": steps,
            "weighting": "uniform",
            "training": {"local_steps": 1, "learning_rate": 1e-3, "warmup_steps": 0},
            "init_sha256": START.sha256,
            "privacy": {
                "noise_multiplier": noise_multiplier_for(epsilon, DELTA, sample_rate, steps),
                "delta": DELTA,
                "sites": {"a": {"sample_rate": sample_rate, "expected_patients_per_step": 200 * sample_rate}},
            },
        }
    )


@pytest.fixture(scope="module")
def data() -> TrainingSet:
    patients = public_start.phantoms(plan_of(1.0, 1.0, 1), "hu", 40, 0)
    return dataclasses.replace(patients, pseudonyms=tuple("abcde"))


def attacked(data: TrainingSet, noise: SecureNoise, epsilon: float, sample_rate: float = 1.0, steps: int = 3) -> Audit:
    torch.set_num_threads(1)
    plan = plan_of(epsilon, sample_rate, steps)
    assert plan.privacy is not None
    sampling: SiteSampling = plan.privacy.sites["a"]
    coins = np.random.default_rng(7)
    return audit(plan, data, START.weights, sampling=sampling, noise=noise, coins=coins)


@pytest.mark.slow
@pytest.mark.parametrize(("epsilon", "sample_rate", "steps"), [(1.0, 1.0, 3), (8.0, 1.0, 3), (8.0, 0.25, 8)])
def test_the_claim_holds(data: TrainingSet, epsilon: float, sample_rate: float, steps: int) -> None:
    found = attacked(data, SecureNoise(), epsilon, sample_rate, steps)
    assert found.epsilon == pytest.approx(epsilon, rel=1e-3)
    assert found.epsilon_lower_bound < found.epsilon


@pytest.mark.slow
def test_without_noise_the_attack_finds_more_than_three(data: TrainingSet) -> None:
    assert attacked(data, NoNoise(), 1.0).epsilon_lower_bound > 3.0


@pytest.mark.slow
def test_noise_ten_times_too_small_is_found(data: TrainingSet) -> None:
    found = attacked(data, TenTimesTooSmall(), 1.0)
    assert found.epsilon_lower_bound > found.epsilon
    assert not found.holds
