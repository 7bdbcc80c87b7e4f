"""One deployed job at a site: what is answered to a task, and when. Of NVFlare it knows the return codes alone."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from nvflare.apis.fl_constant import ReturnCode

from fedscan.federation import kept_answer, refusals, revocation, versions
from fedscan.federation.answer_form import form_of
from fedscan.federation.messages import (
    REFUSED_BY_POLICY,
    Answer,
    MessageError,
    OtherVersionError,
    PrivateAnswer,
    parse_task,
)
from fedscan.federation.paid_round import MARGIN_S, PaidTraining, note_received_head, wait_until
from fedscan.federation.places import CLIENT_CONFIG, PlacesError, plan_and_submission, site_places
from fedscan.federation.revocation import Revocations
from fedscan.federation.site_round import RefusedError, SiteTraining
from fedscan.federation.site_setup import SiteSetup
from fedscan.federation.submitter import verified_submitter
from fedscan.federation.versions import REFUSED_BY_VERSION, VersionError
from fedscan.plan import Plan, Submission
from fedscan.privacy.charging import Refused
from fedscan.privacy.ledger import LedgerError
from fedscan.privacy.site_file import SiteError
from fedscan.privacy_plan import PrivacyPlan
from fedscan.training.trainer_replies import TrainerAborted, TrainerDied, TrainerError, TrainerRefused
from fedscan.training.weights import Weights

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Ready:
    """An answer that may go to the door."""

    record: Answer | PrivateAnswer
    update: Weights


class SiteJob:
    """A job from its deployed app folder and the site's own files."""

    def __init__(self, plan: Plan, submission: Submission, setup: SiteSetup, training: SiteTraining) -> None:
        self.plan = plan
        self.submission = submission
        self.setup = setup
        self.training = training

    @classmethod
    def open(cls, app: Path, root_ca: Path, scope_properties: object, name: str) -> SiteJob:
        """`name` is the site's own in the federation. Raises PlacesError, SiteError, OSError; VersionError."""
        plan, submission = plan_and_submission(app / "config" / CLIENT_CONFIG)
        if submission.is_expired():
            raise PlacesError(f"the submission expired at {submission.expires}: submit the job anew")
        setup = SiteSetup.of(site_places(scope_properties))
        if reasons := versions.unfit():
            refusals.note(setup.state, "start", reasons, submission.run_id)
            raise VersionError(reasons)
        if setup.site is None:
            if plan.privacy is not None:
                raise PlacesError("the plan is private and must be charged, but this site has no ledger")
            return cls(plan, submission, setup, SiteTraining(setup, plan, submission, name))
        if setup.site.name != name:
            raise PlacesError(f"site.json is that of {setup.site.name!r}, the federation calls this site {name!r}")
        kept_answer.drop_expired(setup.state)
        kind = SiteTraining if plan.privacy is None else PaidTraining
        known = Revocations(setup.state / revocation.FILE, root_ca)
        training = kind(setup, plan, submission, name, verified_submitter(app, root_ca), known)
        return cls(plan, submission, setup, training)

    def warm_up(self) -> None:
        """Loads at the child and here what the first round needs, while the server still prepares it."""
        self.training.warm_up()
        form_of(self.plan)

    def complete(self) -> None:
        """The server said that the run is complete: its last answer is not asked for again."""
        self.training.complete()

    def answer(self, record: object, weights: Weights, abort: Callable[[], bool], came: float) -> Ready | str:
        """What to answer to a task that came at `came` (time.monotonic): an answer, or a return code.

        Under differential privacy it returns at the plan's public time, whatever it is.
        """
        if isinstance(self.training, PaidTraining) and self.plan.privacy is not None:
            return self._private(self.training, self.plan.privacy, record, weights, abort, came)
        return self._plain(record, weights, abort)

    def _plain(self, record: object, weights: Weights, abort: Callable[[], bool]) -> Ready | str:
        try:
            return Ready(*self.training.train(parse_task(record), weights, abort))
        except TrainerAborted:
            return str(ReturnCode.TASK_ABORTED)
        except Refused as refused:
            self.note(refused.reasons)
            return REFUSED_BY_POLICY
        except OtherVersionError as error:
            self.note((str(error),))
            return REFUSED_BY_VERSION
        except (MessageError, RefusedError, TrainerRefused) as error:
            self.note((str(error),))
            return str(ReturnCode.BAD_TASK_DATA)
        except (TrainerError, SiteError, OSError, ValueError) as error:
            self.note((reason_of(error),))
            return str(ReturnCode.EXECUTION_EXCEPTION)

    def _private(
        self,
        training: PaidTraining,
        privacy: PrivacyPlan,
        record: object,
        weights: Weights,
        abort: Callable[[], bool],
        came: float,
    ) -> Ready | str:
        due = came + privacy.answer_after_s
        result: Ready | str
        try:
            task = parse_task(record)
            note_received_head(self.setup.state, task)
            result = Ready(*training.train_until(task, weights, abort, due, note_at=due - MARGIN_S))
        except TrainerAborted:
            return str(ReturnCode.TASK_ABORTED)
        except Exception as error:  # noqa: BLE001 - whatever it is, the server learns a constant at the public time
            self.note(error.reasons if isinstance(error, Refused) else (reason_of(error),))
            # Of the two constants neither depends on data: which one it is follows from the task's first field.
            result = REFUSED_BY_VERSION if isinstance(error, OtherVersionError) else REFUSED_BY_POLICY
        return result if wait_until(due, abort) else str(ReturnCode.TASK_ABORTED)

    def note(self, reasons: tuple[str, ...]) -> None:
        """Keeps the reasons of a refusal at the site; a full disk must not make of it another answer."""
        try:
            refusals.note(self.setup.state, "round", reasons, self.submission.run_id)
        except OSError as error:
            _log.error("a round is refused, and why cannot be noted: %s", error.strerror)


def refuse_at_its_time(config: Path | None, abort: Callable[[], bool], came: float, *, by_version: bool = False) -> str:
    """The answer of a site that is not set up for the job it was given: under differential privacy the constant, at
    the public time, as any refusal. `by_version`: its software alone is why."""
    refusal = REFUSED_BY_VERSION if by_version else REFUSED_BY_POLICY
    if config is None:
        return refusal
    try:
        plan, _ = plan_and_submission(config)
    except PlacesError:
        return refusal
    if plan.privacy is None:
        return refusal if by_version else str(ReturnCode.EXECUTION_EXCEPTION)
    return refusal if wait_until(came + plan.privacy.answer_after_s, abort) else str(ReturnCode.TASK_ABORTED)


def reason_of(error: Exception) -> str:
    """Our own errors are written to be shown at the site; others may quote data, so only their kind is."""
    own = (PlacesError, SiteError, LedgerError, RefusedError, MessageError, TrainerDied, TrainerError)
    if isinstance(error, OSError) and error.errno is not None:
        return f"this site cannot read or write: {os.strerror(error.errno)}"
    return str(error) if isinstance(error, own) else type(error).__name__
