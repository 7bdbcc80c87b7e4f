"""Charging with a real ledger: judged and reserved under one lock, before anything is trained, for each try anew."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest

from ctslices.store import SliceStore, write_store
from fedscan.plan import Plan, Submission
from fedscan.privacy import charging
from fedscan.privacy.accounting import epsilon, rounds_that_fit
from fedscan.privacy.approvals import Approvals
from fedscan.privacy.charging import Refused
from fedscan.privacy.event import round_event
from fedscan.privacy.facts import AnswerFacts, Submitter, TensorForm
from fedscan.privacy.ledger import Entry, Head
from fedscan.privacy.ledger_report import incidents
from fedscan.privacy.policy import Policy
from fedscan.privacy.site_file import Site
from fedscan.training.site_store import store_facts

MODEL = "b" * 64


class Task:
    def __init__(self, plan: Plan, submission: Submission, round_number: int = 0, model_digest: str = MODEL) -> None:
        self.plan_digest = plan.digest
        self.run_id = submission.run_id
        self.round_number = round_number
        self.model_digest = model_digest


class Job:
    """A plan that was admitted at a site."""

    def __init__(self, site: Site, plan: Plan, submission: Submission, submitter: Submitter) -> None:
        self.site, self.plan, self.submission, self.submitter = site, plan, submission, submitter

    def admit(self) -> tuple[str, ...]:
        return charging.admit(
            self.site,
            self.plan.model_dump(mode="json"),
            self.submission.model_dump(mode="json"),
            submitter=self.submitter,
            store=store_facts(self.site.store),
        ).reasons

    def charge(self, round_number: int = 0, recorded: Head | None = None, now: datetime | None = None) -> Entry:
        entry = charging.charge(
            self.site,
            self.plan,
            Task(self.plan, self.submission, round_number),
            submission=self.submission,
            submitter=self.submitter,
            store=store_facts(self.site.store),
            recorded=recorded,
            now=now,
        )
        assert entry is not None
        return entry

    def refusal(self, **arguments: object) -> str:
        """Why charging is refused; the ledger is then as before."""
        before = self.site.file.ledger.read_bytes()
        with pytest.raises(Refused) as refused:
            self.charge(**arguments)  # type: ignore[arg-type]
        assert self.site.file.ledger.read_bytes() == before
        return "\n".join(refused.value.reasons)


@pytest.fixture
def job(site: Site, private_plan: Callable[..., Plan], submission: Submission, submitter: Submitter) -> Job:
    made = Job(site, private_plan(), submission, submitter)
    assert made.admit() == ()
    return made


def rewrite_policy(site: Site, **fields: object) -> None:
    policy = site.policy()
    assert isinstance(policy, Policy)
    site.file.policy.write_text(json.dumps(policy.model_dump(mode="json") | fields))


def test_a_round_is_charged_whole_and_its_entry_says_for_what(job: Job) -> None:
    entry = job.charge(3)
    ledger = job.site.open_ledger()
    paid = ledger.paid_for(entry.number)
    assert paid is not None
    assert (paid.charge.plan_digest, paid.charge.run_id) == (job.plan.digest, job.submission.run_id)
    assert (paid.charge.round_number, paid.charge.model_digest) == (3, MODEL)
    assert ledger.events() == [round_event(job.plan, "a")]
    assert ledger.events()[0].steps == 10
    assert set().union(*ledger.populations.values()) == store_facts(job.site.store).trained  # type: ignore[union-attr]


def test_a_round_asked_for_again_is_charged_again(job: Job) -> None:
    assert job.charge(0).number != job.charge(0).number
    assert len(job.site.open_ledger().events()) == 2


def test_when_the_budget_is_full_the_site_refuses_and_nothing_is_spent(job: Job) -> None:
    rewrite_policy(job.site, max_epsilon=2.0)
    fits = rounds_that_fit([], round_event(job.plan, "a"), 1e-3, 2.0)
    assert 2 <= fits < 20
    for number in range(fits):
        job.charge(number)
    assert "budget: the next round would bring epsilon to" in job.refusal(round_number=fits)
    assert epsilon(job.site.open_ledger().events(), 1e-3) <= 2.0
    rewrite_policy(job.site, max_epsilon=8.0)
    job.charge(fits)


CHARGE = """
import sys
from pathlib import Path
from fedscan.plan import Plan, Submission
from fedscan.privacy import charging
from fedscan.privacy.facts import Submitter
from fedscan.privacy.site_file import Site
from fedscan.training.site_store import store_facts

site, plan = Site.open(sys.argv[1]), Plan.model_validate_json(sys.argv[2])
submission = Submission.model_validate_json(sys.argv[3])

class Task:
    plan_digest, run_id, round_number, model_digest = plan.digest, submission.run_id, 0, "b" * 64

print("ready", flush=True)
sys.stdin.readline()
try:
    entry = charging.charge(site, plan, Task(), submission=submission, submitter=Submitter("lead", "c" * 64),
                            store=store_facts(site.store))
    print("charged", entry.number, flush=True)
except charging.Refused as refused:
    print("refused", refused.reasons, flush=True)
sys.stdin.readline()
"""


def start(job: Job) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", CHARGE, str(job.site.path)]
    command += [job.plan.canonical_json(), job.submission.model_dump_json()]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def said(child: subprocess.Popen[str]) -> str:
    assert child.stdout is not None
    return child.stdout.readline()


def go(child: subprocess.Popen[str]) -> None:
    assert child.stdin is not None
    child.stdin.write("go\n")
    child.stdin.flush()


def test_of_two_jobs_at_once_that_only_together_pass_the_budget_one_is_refused(
    make_site: Callable[..., Site], private_plan: Callable[..., Plan], submitter: Submitter
) -> None:
    """Real processes, let go at once; the budget holds one round."""
    site = make_site()
    jobs = [Job(site, private_plan({"name": name}), Submission.new(), submitter) for name in ("one", "two")]
    assert [job.admit() for job in jobs] == [(), ()]
    one = round_event(jobs[0].plan, "a")
    alone, together = epsilon([one], 1e-3), epsilon([one, one], 1e-3)
    rewrite_policy(site, max_epsilon=(alone + together) / 2)
    children = [start(job) for job in (*jobs, jobs[0])]
    assert [said(child) for child in children] == ["ready\n"] * 3
    for child in children:
        go(child)
    answers = [said(child).split()[0] for child in children]
    for child in children:
        child.communicate("end\n")
    assert sorted(answers) == ["charged", "refused", "refused"]
    assert site.open_ledger().events() == [one]


def test_killed_after_the_charge_the_round_is_charged_again(job: Job) -> None:
    child = start(job)
    assert said(child) == "ready\n"
    go(child)
    assert said(child).startswith("charged")
    child.kill()
    child.communicate()
    assert len(job.site.open_ledger().events()) == 1
    job.charge(0)
    assert len(job.site.open_ledger().events()) == 2


def test_a_submission_is_admitted_once_and_a_new_one_of_the_same_plan_again(job: Job) -> None:
    assert "its nonce was used before" in "\n".join(job.admit())
    again = Submission.new(run_id=job.submission.run_id, start_round=5)
    assert Job(job.site, job.plan, again, job.submitter).admit() == ()


def test_a_refused_job_does_not_use_its_nonce_up(site: Site, private_plan: Callable[..., Plan], job: Job) -> None:
    later = Job(site, private_plan(noise_multiplier=2.0), Submission.new(), job.submitter)
    rewrite_policy(site, min_noise_multiplier=2.5)
    assert "noise_multiplier" in "\n".join(later.admit())
    rewrite_policy(site, min_noise_multiplier=0.3)
    assert later.admit() == ()


def test_what_was_never_admitted_is_not_charged(
    site: Site, private_plan: Callable[..., Plan], submission: Submission, submitter: Submitter
) -> None:
    assert "never taken" in Job(site, private_plan(), submission, submitter).refusal()


def test_a_plan_changed_between_deployment_and_round_is_refused(job: Job, private_plan: Callable[..., Plan]) -> None:
    job.plan = private_plan(noise_multiplier=2.0)
    assert "changed since deployment" in job.refusal()


def test_a_policy_changed_between_deployment_and_round_holds(job: Job) -> None:
    job.charge()
    rewrite_policy(job.site, max_rounds=3)
    assert "max_rounds" in job.refusal()
    job.site.file.policy.write_text('{"policy_version": 1, "unheard_of": 1}')
    assert "there is no such field" in job.refusal()
    job.site.file.policy.unlink()
    assert "policy cannot be read" in job.refusal()


def test_rounds_outside_of_the_submission_are_refused(job: Job) -> None:
    assert "lies outside" in job.refusal(round_number=20)
    assert "expired" in job.refusal(now=datetime.now(UTC) + timedelta(days=31))


@pytest.mark.parametrize("harm", ["edited", "truncated", "gone", "open to others", "key gone", "anchor gone"])
def test_a_ledger_that_cannot_be_trusted_is_a_refusal(job: Job, harm: str) -> None:
    job.charge(0)
    job.charge(1)
    ledger = job.site.file.ledger
    lines = ledger.read_bytes().splitlines(keepends=True)
    if harm == "edited":
        ledger.write_bytes(b"".join(lines).replace(b'"noise_multiplier":3.0', b'"noise_multiplier":9.0', 1))
    elif harm == "truncated":
        ledger.write_bytes(b"".join(lines[:-1]))
    elif harm == "gone":
        ledger.unlink()
    elif harm == "open to others":
        ledger.chmod(0o666)
    else:
        (job.site.file.key if harm == "key gone" else job.site.file.anchor).unlink()
    with pytest.raises(Refused) as refused:
        job.charge(2)
    assert "ledger" in str(refused.value)
    assert Job(job.site, job.plan, Submission.new(), job.submitter).admit() != ()


def test_a_head_that_the_ledger_never_had_is_a_refusal(job: Job) -> None:
    entry = job.charge(0)
    assert "rolled back" in job.refusal(recorded=Head(entry.head.count, "0" * 64))
    assert "rolled back" in job.refusal(recorded=Head(entry.head.count + 5, entry.head.mac))
    job.charge(1, recorded=entry.head)


def test_patients_who_come_in_start_no_new_budget(job: Job, tmp_path: Path) -> None:
    rewrite_policy(job.site, max_epsilon=2.0)
    fits = rounds_that_fit([], round_event(job.plan, "a"), 1e-3, 2.0)
    for number in range(fits):
        job.charge(number)
    patient = np.repeat(np.arange(90), 2)
    write_store(tmp_path / "store", np.zeros((180, 16, 16), np.int16), patient, splits=["train"] * 90)
    assert "budget" in job.refusal(round_number=fits)


def test_a_store_that_shrank_is_refused_unless_a_record_says_why(job: Job, tmp_path: Path) -> None:
    job.charge(0)
    before = {p.id for p in SliceStore.open(job.site.store).manifest.patients}
    patient = np.repeat(np.arange(55), 2)
    write_store(tmp_path / "store", np.zeros((110, 16, 16), np.int16), patient, splits=["train"] * 55)
    assert "5 of the patients that the ledger knows are gone" in job.refusal(round_number=1)
    after = {p.id for p in SliceStore.open(job.site.store).manifest.patients}
    job.site.open_ledger().record_removal(before, after)
    job.charge(1)
    patient = np.repeat(np.arange(60), 2)
    write_store(tmp_path / "store", np.zeros((120, 16, 16), np.int16), patient, splits=["train"] * 60)
    assert "5 who were removed are in it again" in job.refusal(round_number=2)


def test_a_refused_plan_is_kept_and_runs_once_it_is_approved(
    make_site: Callable[..., Site], private_plan: Callable[..., Plan], submission: Submission, submitter: Submitter
) -> None:
    site = make_site(approval="by_digest")
    job = Job(site, private_plan(), submission, submitter)
    assert "nobody at this site approved" in "\n".join(job.admit())
    approvals = Approvals(site.state, site.key())
    kept = list(approvals.refused())
    assert [one.plan for one in kept] == [job.plan]
    assert "nobody at this site approved" in kept[0].reasons[0]
    approvals.approve(job.plan.digest)
    assert job.admit() == ()
    job.charge()
    approvals.withdraw(job.plan.digest)
    assert "nobody at this site approved" in job.refusal(round_number=1)


def test_a_plan_without_dp_is_charged_nothing_where_policy_takes_it(
    make_site: Callable[..., Site], submission: Submission, submitter: Submitter
) -> None:
    site = make_site(require_dp=False)
    job = Job(site, Plan(), submission, submitter)
    assert job.admit() == ()
    with pytest.raises(AssertionError):
        job.charge()
    ledger = site.open_ledger()
    assert ledger.events() == []
    assert ledger.disk.state.unprotected == {(job.submission.run_id, job.plan.digest)}
    rewrite_policy(site, require_dp=True)
    assert "no differential privacy" in job.refusal()


def test_a_policy_set_back_does_not_hide_that_a_plan_without_dp_was_trained(
    make_site: Callable[..., Site], submission: Submission, submitter: Submitter
) -> None:
    """Else the ledger would go on to state an epsilon that bounds nobody. One note for a run, however many rounds."""
    site = make_site(require_dp=False)
    job = Job(site, Plan(rounds=3), submission, submitter)
    assert job.admit() == ()
    lines = len(site.open_ledger().lines)
    for number in range(3):
        with pytest.raises(AssertionError):
            job.charge(number)
    rewrite_policy(site, require_dp=True)
    ledger = site.open_ledger()
    assert len(ledger.lines) == lines + 1
    assert "without differential privacy" in incidents(ledger.lines)[-1]


FORM = {"w": TensorForm((2, 3), "torch.float32", True)}


def answer_of(job: Job, entry: Entry, **fields: object) -> AnswerFacts:
    tensors = {"w": TensorForm((2, 3), "torch.float32", True)}
    answer = AnswerFacts(job.plan.digest, job.submission.run_id, 0, MODEL, "5" * 64, tensors)
    return replace(answer, **fields)  # type: ignore[arg-type]


def test_at_the_door_only_the_noted_answer_of_a_paid_round_may_leave(job: Job) -> None:
    entry = job.charge(0)

    def leave(answer: AnswerFacts, number: int | None = entry.number) -> tuple[str, ...]:
        return charging.may_leave(job.site, job.plan, job.submission, answer, number, FORM).reasons

    good = answer_of(job, entry)
    assert "not the one that was noted" in "\n".join(leave(good))
    job.site.open_ledger().note_answer(entry.number, good.sha256)
    assert leave(good) == ()
    assert leave(good) == (), "a stored answer may go out twice"
    other = job.charge(1)
    for wrong in (other.number, entry.number + 1000, 1, None):
        assert leave(good, wrong) != ()
    for changed in ({"sha256": "6" * 64}, {"round_number": 1}, {"model_digest": "0" * 64}, {"tensors": {}}):
        assert leave(replace(good, **changed)) != ()  # type: ignore[arg-type]
    job.site.file.anchor.unlink()
    assert "ledger" in "\n".join(leave(good))


def test_the_state_is_for_its_owner_alone(job: Job, private_plan: Callable[..., Plan]) -> None:
    job.charge()
    Job(job.site, private_plan(delta=9e-3), Submission.new(), job.submitter).admit()
    Approvals(job.site.state, job.site.key()).approve("a" * 64)
    home = job.site.path.parent
    assert {path.name for path in home.iterdir()} >= {"site.json", "policy.json", "ledger.key", "ledger.jsonl", "state"}
    for path in [home, *home.rglob("*")]:
        wanted = 0o700 if path.is_dir() else 0o600
        assert os.stat(path).st_mode & 0o777 == wanted, path
