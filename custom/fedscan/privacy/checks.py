"""What `judge` looks at, one question a function. Each yields the reasons against; they name no patient."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime

from fedscan.plan import Plan, Submission
from fedscan.privacy.accounting import AccountingError, epsilon
from fedscan.privacy.event import EventError, round_event
from fedscan.privacy.facts import AnswerFacts, LedgerFacts, NonceUse, Paid, Submitter, TaskLike, TensorForm
from fedscan.privacy.limits import Limits
from fedscan.privacy.policy import Policy, Unreadable
from fedscan.privacy.store_facts import StoreFacts
from fedscan.privacy_plan import PrivacyPlan

_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, kw_only=True)
class Case:
    """All that a judgement is about; what is not known is None."""

    plan: Plan
    policy: Policy
    site: str
    ledger: LedgerFacts | Unreadable | None
    store: StoreFacts | Unreadable | None
    limits: Limits
    now: datetime | None
    submission: Submission | None
    submitter: Submitter | None
    nonce: NonceUse | None
    approved: frozenset[str]
    reproducible_noise: bool
    task: TaskLike | None
    paid: Paid | None
    answer: AnswerFacts | None
    form: Mapping[str, TensorForm] | None


def plan_against_policy(case: Case) -> Iterator[str]:
    """Whether the plan by itself is within the policy."""
    policy, privacy = case.policy, case.plan.privacy
    if case.plan.rounds > policy.max_rounds:
        yield f"rounds: the plan has {case.plan.rounds}, policy max_rounds is {policy.max_rounds}"
    if privacy is None:
        if policy.require_dp:
            yield "privacy: the plan has no differential privacy, policy require_dp demands it"
        return
    yield from _privacy_against_policy(privacy, policy)
    if case.reproducible_noise and not policy.allow_reproducible_noise:
        yield "noise: it would be reproducible, policy allow_reproducible_noise is false"
    try:
        round_event(case.plan, case.site)
    except EventError as error:
        yield f"privacy.sites: {error}"


def _privacy_against_policy(privacy: PrivacyPlan, policy: Policy) -> Iterator[str]:
    if privacy.charged_noise_multiplier < policy.min_noise_multiplier:
        yield (
            f"privacy.noise_multiplier: the plan has {privacy.charged_noise_multiplier:g}{_with_loss(privacy)}, "
            f"policy min_noise_multiplier is {policy.min_noise_multiplier:g}"
        )
    if privacy.delta > policy.max_delta:
        yield f"privacy.delta: the plan has {privacy.delta:g}, policy max_delta is {policy.max_delta:g}"
    if privacy.unit == "image" and not policy.allow_image_unit:
        yield "privacy.unit: the plan protects single images, policy allow_image_unit is false"
    if "update" not in policy.answers:
        yield "answers: a round answers with its update, policy answers do not allow it"
    if privacy.loss is not None and "loss" not in policy.answers:
        yield "privacy.loss: the plan asks for a noised loss, policy answers do not allow it"


def _with_loss(privacy: PrivacyPlan) -> str:
    return "" if privacy.loss is None else " with its loss"


def sender(case: Case) -> Iterator[str]:
    """Who sent it, and whether a person here approved it."""
    if case.submitter is None:
        yield "submitter: no lead's verified certificate signed the job"
    elif not case.policy.allows(case.submitter.name, case.submitter.fingerprint):
        yield (
            f"submitter: {case.submitter.name!r:.80} (certificate {case.submitter.fingerprint[:16]}...) "
            "is not in policy allowed_submitters"
        )
    if case.policy.approval != "automatic" and case.plan.digest not in case.approved:
        yield (
            f"approval: nobody at this site approved plan {case.plan.digest[:12]}: look at it, then "
            f"`fedscan site approve {case.plan.digest} --site SITE.json`"
        )


def time(case: Case) -> Iterator[str]:
    """Whether it is the time for it."""
    if case.now is None or case.now.utcoffset() is None:
        yield "time: the present time is not known"
        return
    if case.submission is None:
        yield "submission: there is none, or it cannot be read"
    elif case.submission.is_expired(case.now):
        yield f"submission: it expired at {case.submission.expires}: submit the job anew"
    if hours := case.limits.quiet_now(case.now):
        yield f"quiet_hours: nothing is trained here in {hours} (local time): ask again later"


def nonce_is_new(case: Case) -> Iterator[str]:
    """At deployment: a submission is taken once."""
    if case.nonce is not None:
        yield "submission: its nonce was used before at this site: submit the job anew"
    if case.submission is not None and case.submission.start_round >= case.plan.rounds:
        yield f"submission: it starts at round {case.submission.start_round} of {case.plan.rounds}"


def nonce_is_known(case: Case) -> Iterator[str]:
    """Before a round: the submission is the one that was taken, unchanged."""
    if case.nonce is None:
        yield "submission: its nonce was never taken at this site: the job was not judged at deployment"
    elif case.submission is not None and case.nonce != NonceUse(
        case.plan.digest, case.submission.run_id, case.submission.start_round
    ):
        yield "submission: plan, run or start round changed since deployment"


def task_is_of_this_job(case: Case) -> Iterator[str]:
    """Whether the task is one of the deployed job's."""
    task, submission = case.task, case.submission
    if task is None or submission is None:
        yield "task: there is none, or it cannot be read"
        return
    if task.plan_digest != case.plan.digest:
        yield "task: it belongs to another plan than the one deployed here"
    if task.run_id != submission.run_id:
        yield "task: it belongs to another run than the one deployed here"
    if not _SHA256.fullmatch(task.model_digest):
        yield "task: it names no model that the round starts from"
    if not submission.start_round <= task.round_number < case.plan.rounds:
        yield (
            f"task: round {task.round_number} lies outside of the submission's rounds "
            f"{submission.start_round}..{case.plan.rounds - 1}"
        )


def store(case: Case) -> Iterator[str]:
    """Whether the store is one that the policy and the plan's guarantee are made for."""
    store, plan, policy = case.store, case.plan, case.policy
    if isinstance(store, Unreadable):
        return
    if store is None:
        yield "store: it is not known what the store holds"
        return
    yield from store_against_policy(store, policy)
    if plan.privacy is None:
        return
    if plan.privacy.unit != store.unit:
        yield f"privacy.unit: the plan's is the {plan.privacy.unit}, the store's is the {store.unit}"
    yield from delta_against_store("privacy.delta", plan.privacy.delta, store)
    yield from delta_against_store("policy max_delta", policy.max_delta, store)


def store_against_policy(store: StoreFacts, policy: Policy) -> Iterator[str]:
    """Whether jobs may train on the store at all."""
    if store.unit == "image" and not policy.allow_image_unit:
        yield "store: its unit is the image (patients are unknown), policy allow_image_unit is false"
    if store.units < policy.min_patients:
        yield f"store: {store.units} {store.unit}s to train on, policy min_patients is {policy.min_patients}"


def delta_against_store(name: str, delta: float, store: StoreFacts) -> Iterator[str]:
    """At 1 / patients a mechanism could hand out one whole patient and be within delta."""
    if delta * store.units >= 1.0:
        yield f"{name}: {delta:g} must be less than 1 / {store.units} ({store.unit}s to train on)"


def population(case: Case) -> Iterator[str]:
    """Whether everybody whom the ledger knows is where they should be."""
    if isinstance(case.ledger, LedgerFacts) and isinstance(case.store, StoreFacts):
        yield from ledger_against_store(case.ledger, case.store)


def ledger_against_store(ledger: LedgerFacts, store: StoreFacts) -> Iterator[str]:
    """Whether the store is one that the ledger's patients can have come from and gone to."""
    if gone := ledger.patients - ledger.removed - store.everybody:
        yield (
            f"store: {len(gone)} of the {store.unit}s that the ledger knows are gone without a removal record: bring "
            "the store back, or remove them with `fedscan store forget`"
        )
    if back := ledger.removed & store.everybody:
        yield (
            f"store: {len(back)} who were removed are in it again: run `fedscan store forget` again, and prepare with "
            "--exclude"
        )


def ledger_against_server(ledger: LedgerFacts) -> Iterator[str]:
    """Whether the ledger holds what the server recorded of it."""
    if ledger.lacks_recorded_head:
        yield "ledger: the server recorded an entry that is not in it: it was rolled back, or another's was put here"


def budget(case: Case) -> Iterator[str]:
    """Whether the next round's charge fits."""
    if case.plan.privacy is None or isinstance(case.ledger, Unreadable):
        return
    if case.ledger is None:
        yield "ledger: it is not known what was spent"
        return
    yield from ledger_against_server(case.ledger)
    try:
        event = round_event(case.plan, case.site)
        cached = case.ledger.epsilon_with
        delta = case.policy.max_delta
        after = cached(delta, event) if cached else epsilon((*case.ledger.spent, event), delta)
    except EventError:
        return  # said by plan_against_policy
    except AccountingError as error:
        yield f"budget: the next round cannot be accounted for: {error}"
        return
    if not after <= case.policy.max_epsilon:
        yield (
            f"budget: the next round would bring epsilon to {after:.4g} at delta {case.policy.max_delta:g}, "
            f"policy max_epsilon is {case.policy.max_epsilon:g}"
        )


def paid_for(case: Case) -> Iterator[str]:
    """Whether an entry paid for exactly this answer."""
    answer, paid = case.answer, case.paid
    if answer is None:
        yield "answer: there is none, or it cannot be read"
        return
    if answer.plan_digest != case.plan.digest:
        yield "answer: it belongs to another plan than the one deployed here"
    if case.submission is None or answer.run_id != case.submission.run_id:
        yield "answer: it belongs to another run than the one deployed here"
    if case.plan.privacy is None:
        return
    if paid is None:
        yield "ledger: no entry paid for this answer"
        return
    for name in ("plan_digest", "run_id", "round_number", "model_digest"):
        if getattr(paid, name) != getattr(answer, name):
            yield f"ledger: the entry that the answer names paid for another {name}"
    if paid.answer_sha256 is None or paid.answer_sha256 != answer.sha256:
        yield "ledger: the answer is not the one that was noted for its entry"


def allowed_form(case: Case) -> Iterator[str]:
    """Whether the answer is the plan's tensors and nothing else."""
    if case.form is None or case.answer is None:
        yield "form: it is not known which tensors may leave"
        return
    privacy = case.plan.privacy
    if privacy is not None and (case.answer.loss is None) is not (privacy.loss is None):
        yield "form: the answer has a loss that the plan does not ask for, or lacks the one that it asks for"
    tensors = case.answer.tensors
    if lacking := sorted(set(case.form) - set(tensors)):
        yield f"form: {len(lacking)} tensors of the plan's model are missing, the first is {lacking[0]!r:.80}"
    if extra := set(tensors) - set(case.form):
        yield f"form: {len(extra)} tensors are none of the plan's model"
    for name in sorted(set(tensors) & set(case.form)):
        wanted = case.form[name]
        if tensors[name] != wanted:
            yield f"form: {name!r:.80} is not finite {wanted.dtype.removeprefix('torch.')} {list(wanted.shape)}"
