"""Crafted jobs against a site's policy, without processes: none is admitted, none is charged, none may leave.

What is sent is JSON, as it stands in a signed app folder: nothing of it was checked before.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ctslices.store import write_store
from fedscan.plan import Plan, Submission, TrainingPlan
from fedscan.privacy import charging
from fedscan.privacy.accounting import epsilon
from fedscan.privacy.charging import Refused
from fedscan.privacy.facts import AnswerFacts, Submitter, TensorForm
from fedscan.privacy.policy import Policy
from fedscan.privacy.site_file import Site
from fedscan.privacy.site_init import init
from fedscan.privacy_plan import PrivacyPlan, SiteSampling
from fedscan.training.site_store import store_facts

ALLOWED = Submitter("lead@consortium", "c" * 64)
MODEL = "b" * 64
MAX_EPSILON, DELTA = 2.0, 1e-3
GOOD = Plan(
    training=TrainingPlan(local_steps=10),
    rounds=20,
    weighting="uniform",
    init_sha256="d" * 64,
    privacy=PrivacyPlan(
        noise_multiplier=3.0,
        delta=1e-4,
        sites={"a": SiteSampling(sample_rate=0.25, expected_patients_per_step=15.0)},
    ),
)


@dataclass
class Sent:
    """A job as it comes."""

    plan: Any = field(default_factory=lambda: GOOD.model_dump(mode="json"))
    submission: Any = field(default_factory=lambda: Submission.new().model_dump(mode="json"))
    submitter: Submitter | None = ALLOWED


@dataclass
class Task:
    plan_digest: str
    run_id: str
    round_number: int
    model_digest: str = MODEL


@pytest.fixture
def site(tmp_path: Path) -> Site:
    patient = np.repeat(np.arange(60), 2)
    write_store(tmp_path / "store", np.zeros((120, 16, 16), np.int16), patient, splits=["train"] * 60)
    policy = Policy(
        policy_version=1,
        max_epsilon=MAX_EPSILON,
        max_delta=DELTA,
        min_patients=50,
        min_noise_multiplier=1.0,
        max_rounds=100,
        allowed_submitters=(ALLOWED.name,),
    )
    return init(tmp_path / "site", name="a", store=tmp_path / "store", anchor=tmp_path / "anchor", policy=policy).site


def admitted(site: Site, sent: Sent) -> bool:
    verdict = charging.admit(site, sent.plan, sent.submission, submitter=sent.submitter, store=store_facts(site.store))
    return verdict.ok


def charged(site: Site, sent: Sent, round_number: int = 0, task: Task | None = None) -> bool:
    """Whether the site would train: asked for a round as the executor asks, whatever was decided at deployment."""
    try:
        plan = Plan.model_validate(sent.plan)
        submission = Submission.model_validate(sent.submission)
    except ValueError:
        return False
    asked = task or Task(plan.digest, submission.run_id, round_number)
    try:
        entry = charging.charge(
            site, plan, asked, submission=submission, submitter=sent.submitter, store=store_facts(site.store)
        )
    except Refused:
        return False
    return entry is not None


def edit(*path: str, to: Any) -> Callable[[Sent], None]:
    """Changes a field of the plan."""

    def change(sent: Sent) -> None:
        place = sent.plan
        for part in path[:-1]:
            place = place[part]
        place[path[-1]] = to

    return change


def merge(**fields: Any) -> Callable[[Sent], None]:
    return lambda sent: sent.plan.update(fields)


def submitted(**fields: Any) -> Callable[[Sent], None]:
    return lambda sent: sent.submission.update(fields)


def by(submitter: Submitter | None) -> Callable[[Sent], None]:
    def change(sent: Sent) -> None:
        sent.submitter = submitter

    return change


ATTACKS: dict[str, Callable[[Sent], None]] = {
    "DP off": merge(privacy=None, weighting="patients"),
    "DP left out": lambda sent: sent.plan.pop("privacy"),
    "DP off by an empty part": merge(privacy={}),
    "DP off, said otherwise": merge(privacy=None, weighting="uniform", private=True),
    "a policy of its own": merge(policy={"require_dp": False}),
    "a policy within privacy": edit("privacy", "max_epsilon", to=1e9),
    "little noise": edit("privacy", "noise_multiplier", to=0.01),
    "no noise": edit("privacy", "noise_multiplier", to=0.0),
    "negative noise": edit("privacy", "noise_multiplier", to=-3.0),
    "noise that is no number": edit("privacy", "noise_multiplier", to=float("nan")),
    "endless noise": edit("privacy", "noise_multiplier", to=float("inf")),
    "noise as a text": edit("privacy", "noise_multiplier", to="3.0"),
    "noise as a variable": edit("privacy", "noise_multiplier", to="{noise}"),
    "noise as true": edit("privacy", "noise_multiplier", to=True),
    "a target instead of noise": lambda sent: sent.plan["privacy"].update(noise_multiplier=None, target_epsilon=0.1),
    "a small target, said of little noise": lambda sent: sent.plan["privacy"].update(
        noise_multiplier=0.5, target_epsilon=0.001
    ),
    "a large delta": edit("privacy", "delta", to=9e-3),
    "delta of one": edit("privacy", "delta", to=1.0),
    "no delta": edit("privacy", "delta", to=0.0),
    "a delta that is no number": edit("privacy", "delta", to=float("nan")),
    "the image as unit": edit("privacy", "unit", to="image"),
    "the slice as unit": edit("privacy", "unit", to="slice"),
    "sampling for another site": edit(
        "privacy", "sites", to={"b": {"sample_rate": 1e-9, "expected_patients_per_step": 15.0}}
    ),
    "a site of another case": edit(
        "privacy", "sites", to={"A": {"sample_rate": 0.25, "expected_patients_per_step": 15.0}}
    ),
    "no sampling": edit("privacy", "sites", to={}),
    "sampling above one": edit("privacy", "sites", "a", "sample_rate", to=1.5),
    "sampling of zero": edit("privacy", "sites", "a", "sample_rate", to=0.0),
    "all patients in every step": edit("privacy", "sites", "a", "sample_rate", to=1.0),
    "very many steps": edit("training", "local_steps", to=1_000_000),
    "steps without end": edit("training", "local_steps", to=10**18),
    "negative steps": edit("training", "local_steps", to=-10),
    "steps that are no whole number": edit("training", "local_steps", to=0.5),
    "epochs instead of steps": lambda sent: sent.plan["training"].update(local_steps=None, local_epochs=1),
    "too many rounds": merge(rounds=101),
    "a learning rate beyond the plan's bound": edit("training", "learning_rate", to=1e6),
    "a learning rate that is no number": edit("training", "learning_rate", to=float("nan")),
    "weights by counts": merge(weighting="patients"),
    "from scratch, unsaid": merge(init_sha256=None),
    "answers at once": edit("privacy", "answer_after_s", to=-1.0),
    "another version of the plan": merge(plan_version=1),
    "a field that nobody knows": merge(audit=False),
    "a plan that is a list": lambda sent: setattr(sent, "plan", [sent.plan]),
    "no plan": lambda sent: setattr(sent, "plan", None),
    "a plan that is a text": lambda sent: setattr(sent, "plan", json.dumps(sent.plan)),
    "another submitter": by(Submitter("mallory@elsewhere", "e" * 64)),
    "nobody's signature": by(None),
    "a submitter of like name": by(Submitter("lead@consortium ", "e" * 64)),
    "an expired submission": submitted(expires=(datetime.now(UTC) - timedelta(seconds=1)).isoformat()),
    "an expiry in local time": submitted(expires="2100-01-01T00:00:00+05:00"),
    "an expiry without a zone": submitted(expires="2100-01-01T00:00:00"),
    "no expiry": lambda sent: sent.submission.pop("expires"),
    "a nonce that is a path": submitted(nonce="../../../../../../../../tmp/xx"),
    "a start after the end": submitted(start_round=20),
    "a negative start": submitted(start_round=-1),
    "no submission": lambda sent: setattr(sent, "submission", None),
    "a submission with more in it": submitted(approved_by="Dr Meier"),
}


@pytest.mark.parametrize("name", ATTACKS)
def test_a_crafted_job_is_neither_admitted_nor_charged(site: Site, name: str) -> None:
    sent = Sent()
    ATTACKS[name](sent)
    before = site.file.ledger.read_bytes()
    assert not admitted(site, sent)
    assert not charged(site, sent)
    assert site.file.ledger.read_bytes() == before
    assert not (site.state / "nonces").exists()


def test_the_job_that_was_crafted_from_is_admitted_and_charged(site: Site) -> None:
    sent = Sent()
    assert admitted(site, sent)
    assert charged(site, sent)


def test_epsilon_split_over_many_jobs_adds_up(site: Site) -> None:
    """Each job is small and new, by its name: together they stop at the one budget."""
    rounds = 0
    for number in range(40):
        sent = Sent()
        merge(name=f"job-{number}", rounds=1, seed=number)(sent)
        if not admitted(site, sent):
            break
        assert charged(site, sent)
        rounds += 1
    spent = site.open_ledger().events()
    assert 1 <= rounds == len(spent) < 40
    assert epsilon(spent, DELTA) <= MAX_EPSILON < epsilon([*spent, spent[0]], DELTA)


def test_one_round_asked_for_again_and_again_stops_at_the_budget(site: Site) -> None:
    sent = Sent()
    assert admitted(site, sent)
    assert sum(charged(site, sent) for _ in range(40)) < 40
    assert epsilon(site.open_ledger().events(), DELTA) <= MAX_EPSILON


@pytest.mark.parametrize("name", sorted(set(ATTACKS) - {"another submitter", "nobody's signature"}))
def test_a_plan_changed_between_deployment_and_round_is_not_charged(site: Site, name: str) -> None:
    good = Sent()
    assert admitted(site, good)
    sent = Sent(submission=dict(good.submission))
    ATTACKS[name](sent)
    assert not charged(site, sent)
    assert site.open_ledger().events() == []


def test_a_harmless_change_between_deployment_and_round_is_not_charged_either(site: Site) -> None:
    sent = Sent()
    assert admitted(site, sent)
    merge(seed=1)(sent)
    assert not charged(site, sent)


def test_an_old_signed_job_replayed_is_refused(site: Site) -> None:
    sent = Sent()
    assert admitted(site, sent)
    assert not admitted(site, sent)
    replayed = Sent(submission=dict(sent.submission))
    merge(name="another")(replayed)
    assert not admitted(site, replayed)
    submitted(run_id="0" * 32)(replayed)
    assert not admitted(site, replayed)


def test_a_job_that_was_never_deployed_is_not_charged(site: Site) -> None:
    assert not charged(site, Sent())


def test_a_refused_job_is_not_charged_though_the_server_asks(site: Site) -> None:
    sent = Sent(submitter=Submitter("mallory@elsewhere", "e" * 64))
    assert not admitted(site, sent)
    sent.submitter = ALLOWED
    assert not charged(site, sent)


@pytest.mark.parametrize(
    ("round_number", "changes"),
    [
        (-1, {}),
        (20, {}),
        (4, {}),
        (10**30, {}),
        (5, {"plan_digest": "0" * 64}),
        (5, {"run_id": "0" * 32}),
        (5, {"model_digest": ""}),
        (5, {"model_digest": "b" * 63 + "\n"}),
    ],
)
def test_a_task_of_another_job_or_round_is_not_charged(site: Site, round_number: int, changes: dict[str, str]) -> None:
    sent = Sent()
    submitted(start_round=5)(sent)
    assert admitted(site, sent)
    task = Task(GOOD.digest, sent.submission["run_id"], round_number)
    assert charged(site, sent, task=Task(GOOD.digest, sent.submission["run_id"], 5))
    before = site.file.ledger.read_bytes()
    assert not charged(site, sent, task=Task(**{**task.__dict__, **changes}))
    assert site.file.ledger.read_bytes() == before


def test_pictures_in_the_place_of_patients_are_refused(site: Site) -> None:
    patient = np.repeat(np.arange(60), 2)
    hu = np.zeros((120, 16, 16), np.int16)
    write_store(site.store, hu, patient, splits=["train"] * 60, unit="image", values="grey")
    assert not admitted(site, Sent())
    sent = Sent()
    edit("privacy", "unit", to="image")(sent)
    assert not admitted(site, sent)


def test_an_answer_that_nobody_paid_for_does_not_leave(site: Site) -> None:
    sent = Sent()
    assert admitted(site, sent)
    submission = Submission.model_validate(sent.submission)
    form = {"w": TensorForm((2, 3), "torch.float32", True)}
    answer = AnswerFacts(
        GOOD.digest, submission.run_id, 0, MODEL, "5" * 64, {"w": TensorForm((2, 3), "torch.float32", True)}
    )

    def leaves(entry: int | None) -> bool:
        return charging.may_leave(site, GOOD, submission, answer, entry, form).ok

    assert not any(leaves(entry) for entry in (None, 0, 1, 2, -1, 10**30))
    assert charged(site, sent)
    count = site.open_ledger().head.count
    assert not any(leaves(entry) for entry in (None, *range(-1, count + 2))), "paid, but never noted"
    site.open_ledger().note_answer(count, "6" * 64)
    assert not any(leaves(entry) for entry in (None, *range(-1, count + 3))), "another answer was noted"


def test_a_policy_taken_away_in_the_run_stops_it(site: Site) -> None:
    sent = Sent()
    assert admitted(site, sent)
    assert charged(site, sent)
    site.file.policy.unlink()
    assert not charged(site, sent, 1)
    site.file.policy.write_text("{}")
    assert not charged(site, sent, 1)


def test_a_policy_that_others_can_write_is_nobodys(site: Site) -> None:
    site.file.policy.chmod(0o666)
    assert not admitted(site, Sent())
