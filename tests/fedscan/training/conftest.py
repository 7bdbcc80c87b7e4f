"""A network of a few thousand weights and stores of a few 16-pixel slices: a round takes a tenth of a second."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ctslices.store import write_store
from fedscan.plan import EmaPlan, ModelPlan, Plan, TrainingPlan, UNet
from fedscan.privacy_plan import PrivacyPlan

UNET = UNet(channels=(8, 16), attention_levels=(False, False), norm_num_groups=4, num_head_channels=8)


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def make_plan() -> Callable[..., Plan]:
    """Makes plans of the small network; see `_plan`."""
    return _plan


def _plan(classes: tuple[str, ...] = (), **changes: Any) -> Plan:
    """A plan of the small network; `changes` go to the training part, or to the plan where they belong to it."""
    of_plan = {key: changes.pop(key) for key in tuple(changes) if key in Plan.model_fields}
    training = {"batch_size": 4, "precision": "fp32", "warmup_steps": 2, **changes}
    model = ModelPlan(preset=None, unet=UNET, fold=2, size=16, classes=classes)
    return Plan(
        **{"model": model, "training": TrainingPlan(**training), "ema": EmaPlan(half_life_rounds=1.0), **of_plan}
    )


@pytest.fixture(scope="session")
def make_private() -> Callable[..., Plan]:
    """Makes private plans of the small network; see `_private_plan`."""
    return _private_plan


def _private_plan(**changes: Any) -> Plan:
    """A private plan of sites a, b, c in which everybody is drawn each step and no noise to speak of is added.

    `changes` go to the privacy part, or where they belong.
    """
    privacy: dict[str, Any] = {
        "noise_multiplier": 1e-9,
        "delta": 1e-3,
        "sites": {site: {"sample_rate": 1.0, "expected_patients_per_step": 5.0} for site in "abc"},
        "from_scratch": True,
        **{key: changes.pop(key) for key in tuple(changes) if key in PrivacyPlan.model_fields},
    }
    return _plan(**{"local_steps": 2, "weighting": "uniform", "privacy": privacy, **changes})


@pytest.fixture
def make_store(tmp_path: Path) -> Callable[..., Path]:
    """Writes a store of noisy discs, two slices a patient, every patient in the train split but those in `holdout`."""

    def write(name: str = "store", slices: int = 10, holdout: int = 0, **changes: Any) -> Path:
        patient = np.arange(slices) // 2
        last = patient[-1] + 1
        splits = ["holdout" if k >= last - holdout else "train" for k in range(last)]
        hu = _discs(np.random.default_rng(slices), slices)
        return write_store(tmp_path / name, hu, patient, **{"splits": splits, **changes})

    return write


def _discs(generator: np.random.Generator, slices: int, size: int = 16) -> np.ndarray:
    """int16 [n, size, size]: a soft-tissue disc in air with a little noise."""
    y, x = np.mgrid[:size, :size] - (size - 1) / 2
    inside = x**2 + y**2 < (size * 0.35) ** 2
    hu = np.where(inside, 40.0, -1000.0) + generator.normal(0, 10, (slices, size, size))
    return np.clip(hu, -1024, 3000).astype(np.int16)
