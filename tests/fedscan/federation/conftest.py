"""A hospital of twelve phantom patients with policy and ledger, and a private job for it."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ctslices.phantom import chest_slices
from ctslices.store import write_store
from fedscan.federation.messages import Task
from fedscan.federation.places import SitePlaces
from fedscan.federation.site_setup import SiteSetup
from fedscan.plan import Plan, Submission
from fedscan.privacy import charging
from fedscan.privacy.facts import Submitter
from fedscan.privacy.ledger import Entry
from fedscan.privacy.site_file import Site
from fedscan.privacy.site_init import init, policy_with
from fedscan.training.site_store import store_facts
from fedscan.training.weights import Weights, digest, initial_weights

NAME = "hosp-a"
SUBMITTER = Submitter(name="lead@fedscan.local", fingerprint="ab" * 32)


def _private_plan(**privacy: Any) -> Plan:
    """Three rounds of two steps, tiny, from scratch."""
    part = {
        "noise_multiplier": 1.0,
        "delta": 1e-3,
        "from_scratch": True,
        "answer_after_s": 60.0,
        "sites": {NAME: {"sample_rate": 0.25, "expected_patients_per_step": 3.0}},
    }
    return Plan.model_validate(
        {
            "model": {"preset": "tiny"},
            "rounds": 3,
            "weighting": "uniform",
            "training": {"local_steps": 2, "batch_size": 4, "precision": "fp32"},
            "privacy": part | privacy,
        }
    )


@dataclass(frozen=True)
class Hospital:
    """A site with an admitted private job."""

    setup: SiteSetup
    plan: Plan
    submission: Submission
    weights: Weights

    @property
    def site(self) -> Site:
        assert self.setup.site is not None
        return self.setup.site

    def task(self, **changes: Any) -> Task:
        fields = {
            "plan_digest": self.plan.digest,
            "run_id": self.submission.run_id,
            "round_number": 0,
            "model_digest": digest(self.weights),
            "deadline_s": 120.0,
        }
        return Task.model_validate(fields | changes)

    def admit(self, plan: Plan | None = None, run_id: str | None = None) -> Hospital:
        """The same site with another job that its policy takes."""
        plan, submission = plan or self.plan, Submission.new(run_id=run_id)
        verdict = charging.admit(
            self.site,
            plan.model_dump(mode="json"),
            submission.model_dump(mode="json"),
            submitter=SUBMITTER,
            store=store_facts(self.setup.store),
        )
        assert verdict.reasons == ()
        return replace(self, plan=plan, submission=submission)

    def pay(self, task: Task) -> Entry:
        """A charge, as the executor makes it."""
        entry = charging.charge(
            self.site,
            self.plan,
            task,
            submission=self.submission,
            submitter=SUBMITTER,
            store=store_facts(self.setup.store),
        )
        assert entry is not None
        return entry


@pytest.fixture(scope="session")
def phantom_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve patients of two slices each."""
    hu, _ = chest_slices(np.random.default_rng(0), 24)
    return write_store(tmp_path_factory.mktemp("store") / "store", hu, np.arange(24) // 2, splits=["train"] * 12)


@pytest.fixture(scope="session")
def submitter() -> Submitter:
    """Who signs the jobs."""
    return SUBMITTER


@pytest.fixture(scope="session")
def private_plan() -> Callable[..., Plan]:
    """Makes the private plan, with fields of its privacy changed."""
    return _private_plan


@pytest.fixture(scope="session")
def make_hospital(phantom_store: Path) -> Callable[..., Hospital]:
    """Makes the hospital in a folder, with `field=value` of its policy; its store is its own copy."""

    def make(folder: Path, *policy: str, plan: Plan | None = None, admit: bool = True) -> Hospital:
        store = folder.with_name(folder.name + "-store")
        shutil.copytree(phantom_store, store)
        settings = ["min_patients=10", "max_delta=1e-3", *policy]
        made = init(folder, name=NAME, store=store, policy=policy_with(settings))
        setup = SiteSetup.of(SitePlaces(site_file=made.site.path))
        plan = plan or _private_plan()
        hospital = Hospital(setup, plan, Submission.new(), initial_weights(plan))
        return hospital.admit() if admit else hospital

    return make


@pytest.fixture
def new_hospital(tmp_path: Path, make_hospital: Callable[..., Hospital]) -> Callable[..., Hospital]:
    """Makes the hospital in this test's own folder."""

    def make(*policy: str, plan: Plan | None = None) -> Hospital:
        return make_hospital(tmp_path / "site", *policy, plan=plan)

    return make
