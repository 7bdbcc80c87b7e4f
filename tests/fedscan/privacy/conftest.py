"""A real site in a temporary folder: site.json, key, ledger, anchor, policy, and a store of 60 patients."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ctslices.store import write_store
from fedscan.plan import Plan, Submission, TrainingPlan
from fedscan.privacy.facts import Submitter
from fedscan.privacy.policy import Policy
from fedscan.privacy.site_file import Site
from fedscan.privacy.site_init import init
from fedscan.privacy_plan import PrivacyPlan, SiteSampling

PATIENTS = 60


@pytest.fixture
def make_site(tmp_path: Path) -> Callable[..., Site]:
    """Makes site `a`, with fields of its policy."""

    def make(**fields: Any) -> Site:
        patient = np.repeat(np.arange(PATIENTS), 2)
        write_store(
            tmp_path / "store", np.zeros((len(patient), 16, 16), np.int16), patient, splits=["train"] * PATIENTS
        )
        policy = Policy.model_validate({"policy_version": 1, "min_patients": 50, "max_delta": 1e-3, **fields})
        made = init(
            tmp_path / "site", name="a", store=tmp_path / "store", anchor=tmp_path / "far" / "a.anchor", policy=policy
        )
        return made.site

    return make


@pytest.fixture
def site(make_site: Callable[..., Site]) -> Site:
    """A site with a policy that lets `private_plan` run."""
    return make_site()


@pytest.fixture
def private_plan() -> Callable[..., Plan]:
    """A plan under DP for site `a`; keywords are fields of its privacy, `plan` those of the plan."""

    def make(plan: dict[str, Any] | None = None, **fields: Any) -> Plan:
        privacy = PrivacyPlan(
            noise_multiplier=3.0,
            delta=1e-4,
            sites={"a": SiteSampling(sample_rate=0.25, expected_patients_per_step=15.0)},
        )
        whole = Plan(
            training=TrainingPlan(local_steps=10),
            rounds=20,
            weighting="uniform",
            init_sha256="d" * 64,
            privacy=PrivacyPlan.model_validate({**privacy.model_dump(), **fields}),
        )
        return Plan.model_validate({**whole.model_dump(), **(plan or {})})

    return make


@pytest.fixture
def submission() -> Submission:
    """A fresh submission."""
    return Submission.new()


@pytest.fixture
def submitter() -> Submitter:
    """Whose certificate signed."""
    return Submitter("lead@consortium", "c" * 64)
