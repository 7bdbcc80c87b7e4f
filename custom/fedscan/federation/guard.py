"""The last look at what a site's job process answers: a fresh reply of the one allowed form, or a refusal."""

from __future__ import annotations

from pathlib import Path

from nvflare.apis.dxo import DXO, DataKind, from_shareable
from nvflare.apis.filter import Filter
from nvflare.apis.fl_constant import FLContextKey, ReturnCode
from nvflare.apis.fl_context import FLContext
from nvflare.apis.shareable import ReservedHeaderKey, Shareable, make_reply

from fedscan.federation import refusals
from fedscan.federation.answer_form import tensor_forms, wire_form_of
from fedscan.federation.kept_answer import answer_sha256
from fedscan.federation.messages import (
    META_KEY,
    REFUSED_BY_POLICY,
    Answer,
    MessageError,
    PrivateAnswer,
    parse_answer,
    parse_private_answer,
)
from fedscan.federation.passed_answer import note_passed
from fedscan.federation.places import CLIENT_CONFIG, plan_and_submission, site_places
from fedscan.federation.site_setup import SiteSetup
from fedscan.federation.versions import REFUSED_BY_VERSION
from fedscan.plan import Plan, Submission
from fedscan.privacy import charging
from fedscan.privacy.facts import AnswerFacts, TensorForm
from fedscan.training.weights import Weights, check_update

_HEADERS = {ReservedHeaderKey.CONTENT_TYPE: "DXO"}
_DXO_KEYS = {"kind", "data", "meta"}
_CODES = frozenset(
    {
        REFUSED_BY_POLICY,
        REFUSED_BY_VERSION,
        ReturnCode.TASK_ABORTED,
        ReturnCode.TASK_UNKNOWN,
        ReturnCode.BAD_TASK_DATA,
        ReturnCode.EXECUTION_EXCEPTION,
    }
)
_PRIVATE_CODES = frozenset({REFUSED_BY_POLICY, REFUSED_BY_VERSION, ReturnCode.TASK_ABORTED, ReturnCode.TASK_UNKNOWN})


class BlockedError(ValueError):
    """The reply is not of the allowed form, or nothing paid for it. The text stays at the site."""


class OutboundGuard(Filter):  # type: ignore[misc]
    """In the site's privacy scope (KIT/local/privacy.json), over the results of every task. Takes no arguments.

    Overrides `process` itself: NVFlare's DXOFilter hands on unseen what it does not expect. Nothing of the reply that
    comes in goes out: its allowed parts are read, judged, and put into a new one.
    """

    def __init__(self) -> None:
        super().__init__()
        self._job: tuple[Plan, Submission, SiteSetup] | None = None

    def process(self, shareable: Shareable, fl_ctx: FLContext) -> Shareable:
        """The fresh reply; the constant refusal for anything else."""
        try:
            self._job = self._job or _job(fl_ctx)
            fresh = fresh_reply(shareable, *self._job)
        except Exception as error:  # noqa: BLE001 - whatever goes wrong here, nothing leaves, and its text stays here
            self._note(error, fl_ctx)
            fresh = make_reply(REFUSED_BY_POLICY)
        note_passed(fresh)
        return fresh

    def _note(self, error: Exception, fl_ctx: FLContext) -> None:
        """Our own texts say what is wrong; of others only the kind is kept."""
        own = isinstance(error, BlockedError | MessageError)
        reasons = [str(error) if own else type(error).__name__]
        try:
            state = self._job[2].state if self._job else Path(fl_ctx.get_workspace().get_site_config_dir())
            refusals.note(state, "door", reasons)
        except OSError:
            self.log_error(fl_ctx, "an answer was blocked, and the reason could not be noted")


def fresh_reply(shareable: object, plan: Plan, submission: Submission, setup: SiteSetup) -> Shareable:
    """The reply that may leave instead of `shareable`. Raises BlockedError, MessageError."""
    if not isinstance(shareable, Shareable):
        raise BlockedError("the reply is no Shareable")
    if (code := shareable.get_return_code()) != ReturnCode.OK:
        return make_reply(_known_code(shareable, code, plan))
    update, record = _parts(shareable)
    answer = parse_answer(record) if plan.privacy is None else parse_private_answer(record)
    _may_leave(plan, submission, setup, answer, update)
    ordered = {name: update[name] for name in sorted(update)}  # an order could tell something, too
    fresh: Shareable = DXO(
        DataKind.WEIGHT_DIFF, data=ordered, meta={META_KEY: answer.model_dump(mode="json")}
    ).to_shareable()
    return fresh


def _job(fl_ctx: FLContext) -> tuple[Plan, Submission, SiteSetup]:
    config = Path(fl_ctx.get_workspace().get_app_config_dir(fl_ctx.get_job_id())) / CLIENT_CONFIG
    plan, submission = plan_and_submission(config)
    return plan, submission, SiteSetup.of(site_places(fl_ctx.get_prop(FLContextKey.SCOPE_PROPERTIES)))


def _known_code(shareable: Shareable, code: object, plan: Plan) -> str:
    known = _CODES if plan.privacy is None else _PRIVATE_CODES
    headers = shareable.get(ReservedHeaderKey.HEADERS)
    if code not in known or set(shareable) != {ReservedHeaderKey.HEADERS} or set(headers) != {ReservedHeaderKey.RC}:
        raise BlockedError("a reply without result may hold one known return code and nothing else")
    return str(code)


def _parts(shareable: Shareable) -> tuple[Weights, object]:
    """The update and the record beside it, where the reply has these two and nothing else."""
    if set(shareable) != {ReservedHeaderKey.HEADERS, "DXO"}:
        raise BlockedError("the reply may hold a DXO and nothing else")
    if shareable[ReservedHeaderKey.HEADERS] != _HEADERS:
        raise BlockedError("the reply has a header that is not the DXO's own")
    if set(shareable["DXO"]) != _DXO_KEYS:
        raise BlockedError("the DXO has a key that is none of a DXO's")
    dxo = from_shareable(shareable)
    if dxo.data_kind != DataKind.WEIGHT_DIFF:
        raise BlockedError("the DXO is no WEIGHT_DIFF")
    if not isinstance(dxo.meta, dict) or set(dxo.meta) != {META_KEY}:
        raise BlockedError("the DXO's meta may hold the answer's record and nothing else")
    return dict(dxo.data), dxo.meta[META_KEY]


def _may_leave(
    plan: Plan, submission: Submission, setup: SiteSetup, answer: Answer | PrivateAnswer, update: Weights
) -> None:
    form = wire_form_of(plan)
    if reasons := check_update(update, form):
        raise BlockedError("; ".join(reasons))
    if setup.site is None:
        if plan.privacy is not None:
            raise BlockedError("this site has no ledger: nothing can have paid for a private answer")
        return
    private = answer if isinstance(answer, PrivateAnswer) else None
    facts = AnswerFacts(
        plan_digest=answer.plan_digest,
        run_id=answer.run_id,
        round_number=answer.round_number,
        model_digest=answer.model_digest,
        sha256=answer_sha256(private, update) if private else "",
        tensors=tensor_forms(update),
        loss=private.loss if private else None,
    )
    entry = private.ledger.count if private else None
    wanted = {name: TensorForm(tuple(tensor.shape), str(tensor.dtype), True) for name, tensor in form.items()}
    verdict = charging.may_leave(setup.site, plan, submission, facts, entry, wanted)
    if not verdict.ok:
        raise BlockedError("; ".join(verdict.reasons))
