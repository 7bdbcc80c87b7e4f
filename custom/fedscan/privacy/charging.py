"""A site's decisions, with its files: `admit` a job, `charge` a round, ask whether an answer `may_leave`."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime

from pydantic import ValidationError

from fedscan.plan import Plan, Submission
from fedscan.privacy.approvals import Approvals
from fedscan.privacy.event import round_event
from fedscan.privacy.facts import (
    AnswerFacts,
    LedgerFacts,
    NonceUse,
    Paid,
    Submitter,
    TaskLike,
    TensorForm,
    Verdict,
)
from fedscan.privacy.judge import judge
from fedscan.privacy.ledger import Charge, Entry, Head, Ledger, LedgerError
from fedscan.privacy.nonces import NonceError, Nonces
from fedscan.privacy.policy import Unreadable, complaints
from fedscan.privacy.site_file import Site, SiteError
from fedscan.privacy.store_facts import StoreFacts


class Refused(Exception):
    """The site does not go along. `reasons` are for the site's own people and logs."""

    def __init__(self, reasons: tuple[str, ...]) -> None:
        self.reasons = reasons
        super().__init__("; ".join(reasons))


def admit(
    site: Site,
    plan: object,
    submission: object,
    *,
    submitter: Submitter | None,
    store: StoreFacts | Unreadable,
    now: datetime | None = None,
) -> Verdict:
    """Judges a job at deployment, from the JSON data in the signed app folder; takes its nonce where it is allowed.

    A refused plan is kept for `fedscan site approve --list`. Raises OSError when the state cannot be written: the
    job must then not run either.
    """
    read = _read_plan(plan)
    sent = _read_submission(submission)
    verdict = preview(site, read, submission=sent, submitter=submitter, store=store, now=now)
    if verdict.ok and isinstance(read, Plan) and sent is not None:
        try:
            Nonces(site.state).take(read, sent)
        except NonceError as error:
            verdict = Verdict((str(error),))
    if not verdict.ok:
        _keep_refused(site, plan, verdict)
    return verdict


def preview(
    site: Site,
    plan: Plan | Unreadable,
    *,
    submission: Submission | None,
    submitter: Submitter | None,
    store: StoreFacts | Unreadable,
    now: datetime | None = None,
) -> Verdict:
    """What `admit` would say, with nothing noted."""
    nonce, nonce_reasons = _nonce(site, submission)
    approved, approval_reasons = _approved(site)
    verdict = judge(
        "deploy",
        plan,
        site.policy(),
        site=site.name,
        ledger=ledger_facts(site),
        store=store,
        limits=site.limits,
        now=now or datetime.now().astimezone(),
        submission=submission,
        submitter=submitter,
        nonce=nonce,
        approved=approved,
    )
    return Verdict((*verdict.reasons, *nonce_reasons, *approval_reasons))


def charge(
    site: Site,
    plan: Plan,
    task: TaskLike,
    *,
    submission: Submission,
    submitter: Submitter | None,
    store: StoreFacts | Unreadable,
    recorded: Head | None = None,
    reproducible_noise: bool = False,
    now: datetime | None = None,
    ask_only: bool = False,
) -> Entry | None:
    """Judges the round that `task` asks for and reserves its whole budget, under one lock of the ledger.

    `recorded` is the head that the server sent back with the task. Returns the entry that pays for the round, None
    for a plan without privacy that the policy allows. Training may begin only after it returned. Raises Refused; the
    ledger is then as before. A round asked for again is charged again. `ask_only` judges and reserves nothing.
    """
    try:
        ledger = site.open_ledger()
        with ledger.lock():
            return _charge_locked(
                site, ledger, plan, task, submission, submitter, store, recorded, reproducible_noise, now, ask_only
            )
    except (SiteError, LedgerError) as error:
        raise Refused((f"ledger: {error}",)) from None
    except OSError as error:
        raise Refused((f"ledger: it cannot be read or written: {error.strerror}",)) from None


def _charge_locked(
    site: Site,
    ledger: Ledger,
    plan: Plan,
    task: TaskLike,
    submission: Submission,
    submitter: Submitter | None,
    store: StoreFacts | Unreadable,
    recorded: Head | None,
    reproducible_noise: bool,
    now: datetime | None,
    ask_only: bool,
) -> Entry | None:
    nonce, nonce_reasons = _nonce(site, submission)
    approved, approval_reasons = _approved(site)
    verdict = judge(
        "round",
        plan,
        site.policy(),
        site=site.name,
        ledger=_facts_of(ledger, recorded),
        store=store,
        limits=site.limits,
        now=now or datetime.now().astimezone(),
        submission=submission,
        submitter=submitter,
        nonce=nonce,
        approved=approved,
        reproducible_noise=reproducible_noise,
        task=task,
    )
    reasons = (*verdict.reasons, *nonce_reasons, *approval_reasons)
    if reasons:
        raise Refused(reasons)
    if ask_only:
        return None
    if plan.privacy is None:
        ledger.note_unprotected(submission.run_id, plan.digest)
        return None
    assert isinstance(store, StoreFacts)
    return ledger.reserve(
        Charge(
            run_id=submission.run_id,
            plan_digest=plan.digest,
            round_number=task.round_number,
            model_digest=task.model_digest,
            event=round_event(plan, site.name),
            population=store.trained,
        )
    )


def may_leave(
    site: Site,
    plan: Plan,
    submission: Submission,
    answer: AnswerFacts,
    entry_number: int | None,
    form: Mapping[str, TensorForm],
) -> Verdict:
    """The judgement at the door: whether an entry paid for exactly this answer, and it has the one allowed form.

    `form` is that of each tensor that may leave under this plan. For a plan without privacy `entry_number` is None.
    """
    paid: Paid | None = None
    reasons: tuple[str, ...] = ()
    if entry_number is not None:
        try:
            paid = _paid(site.open_ledger(), entry_number)
        except (SiteError, LedgerError) as error:
            reasons = (f"ledger: {error}",)
        except OSError as error:
            reasons = (f"ledger: it cannot be read: {error.strerror}",)
    verdict = judge(
        "door", plan, site.policy(), site=site.name, submission=submission, paid=paid, answer=answer, form=form
    )
    return Verdict((*verdict.reasons, *reasons))


def ledger_facts(site: Site, recorded: Head | None = None) -> LedgerFacts | Unreadable:
    """What the site's ledger says now; `recorded` is the newest head of it that a server knows."""
    try:
        ledger = site.open_ledger()
        ledger.refuse_moved()
        return _facts_of(ledger, recorded)
    except (SiteError, LedgerError) as error:
        return Unreadable((f"ledger: {error}",))
    except OSError as error:
        return Unreadable((f"ledger: it cannot be read: {error.strerror}",))


def _facts_of(ledger: Ledger, recorded: Head | None = None) -> LedgerFacts:
    return LedgerFacts(
        spent=tuple(ledger.events()),
        patients=frozenset().union(*ledger.populations.values()),
        removed=ledger.removed,
        lacks_recorded_head=recorded is not None and not ledger.contains(recorded),
        epsilon_with=ledger.epsilon,
    )


def _paid(ledger: Ledger, entry_number: int) -> Paid | None:
    found = ledger.paid_for(entry_number)
    if found is None:
        return None
    return Paid(
        plan_digest=found.charge.plan_digest,
        run_id=found.charge.run_id,
        round_number=found.charge.round_number,
        model_digest=found.charge.model_digest,
        answer_sha256=found.answer_sha256,
    )


def _nonce(site: Site, submission: Submission | None) -> tuple[NonceUse | None, tuple[str, ...]]:
    if submission is None:
        return None, ()
    try:
        return Nonces(site.state).use_of(submission), ()
    except NonceError as error:
        return None, (str(error),)


def _approved(site: Site) -> tuple[frozenset[str], tuple[str, ...]]:
    try:
        return frozenset(Approvals(site.state, site.key()).approved()), ()
    except SiteError as error:
        return frozenset(), (str(error),)


def _keep_refused(site: Site, plan: object, verdict: Verdict) -> None:
    try:
        Approvals(site.state, site.key()).keep_refused(plan, verdict.reasons)
    except (SiteError, OSError):
        return  # without key or disk nothing can be kept; the refusal itself stands


def _read_plan(data: object) -> Plan | Unreadable:
    try:
        return Plan.model_validate(data)
    except ValidationError as error:
        return Unreadable(complaints(error, "plan"))


def _read_submission(data: object) -> Submission | None:
    try:
        return Submission.model_validate(data)
    except ValidationError:
        return None
