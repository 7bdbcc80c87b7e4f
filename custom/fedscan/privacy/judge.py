"""The one judgement on a plan: `judge`. Pure: it reads no file and no clock, and gives all reasons at once."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import datetime

from fedscan.plan import Plan, Submission
from fedscan.privacy import checks
from fedscan.privacy.checks import Case
from fedscan.privacy.facts import (
    AnswerFacts,
    LedgerFacts,
    NonceUse,
    Paid,
    Phase,
    Submitter,
    TaskLike,
    TensorForm,
    Verdict,
)
from fedscan.privacy.limits import Limits
from fedscan.privacy.policy import Policy, Unreadable
from fedscan.privacy.store_facts import StoreFacts


def judge(
    phase: Phase,
    plan: Plan | Unreadable,
    policy: Policy | Unreadable,
    *,
    site: str,
    ledger: LedgerFacts | Unreadable | None = None,
    store: StoreFacts | Unreadable | None = None,
    limits: Limits | None = None,
    now: datetime | None = None,
    submission: Submission | None = None,
    submitter: Submitter | None = None,
    nonce: NonceUse | None = None,
    approved: frozenset[str] = frozenset(),
    reproducible_noise: bool = False,
    task: TaskLike | None = None,
    paid: Paid | None = None,
    answer: AnswerFacts | None = None,
    form: Mapping[str, TensorForm] | None = None,
) -> Verdict:
    """Whether `site` goes along with `plan` at this point; every reason against it.

    deploy: the plan arrives (`nonce` must be None: never used). round: before a round's charge (`nonce`: what was noted
    at deploy; `task`). door: before `answer` leaves (`paid`: by its ledger entry; `form`: of each tensor that
    may leave). `now` is local time with its zone. What a phase needs and does not get is a
    reason.
    """
    unreadable = [part.reasons for part in (plan, policy, ledger, store) if isinstance(part, Unreadable)]
    reasons = [reason for part in unreadable for reason in part]
    if not isinstance(plan, Unreadable) and not isinstance(policy, Unreadable):
        case = Case(
            plan=plan,
            policy=policy,
            site=site,
            ledger=ledger,
            store=store,
            limits=limits or Limits(),
            now=now,
            submission=submission,
            submitter=submitter,
            nonce=nonce,
            approved=approved,
            reproducible_noise=reproducible_noise,
            task=task,
            paid=paid,
            answer=answer,
            form=form,
        )
        checks = _CHECKS.get(phase, (_unknown_phase,))
        reasons += [reason for check in checks for reason in check(case)]
    # An empty Unreadable must not pass for consent.
    return Verdict(tuple(reasons) or (("something could not be read",) if unreadable else ()))


def _unknown_phase(case: Case) -> Iterator[str]:
    yield "unknown phase of judgement: this is a fault of Fedscan"


_Check = Callable[[Case], Iterable[str]]
_CHECKS: dict[str, tuple[_Check, ...]] = {
    "deploy": (
        checks.plan_against_policy,
        checks.sender,
        checks.time,
        checks.nonce_is_new,
        checks.store,
        checks.population,
        checks.budget,
    ),
    "round": (
        checks.plan_against_policy,
        checks.sender,
        checks.time,
        checks.nonce_is_known,
        checks.task_is_of_this_job,
        checks.store,
        checks.population,
        checks.budget,
    ),
    "door": (checks.plan_against_policy, checks.paid_for, checks.allowed_form),
}
