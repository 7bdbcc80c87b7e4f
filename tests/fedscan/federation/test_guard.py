"""The door: what is not the one allowed form, or was not paid for, does not leave. Each attack fails closed."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from nvflare.apis.dxo import DXO, DataKind, from_shareable
from nvflare.apis.fl_constant import ReturnCode
from nvflare.apis.fl_context import FLContext
from nvflare.apis.shareable import Shareable, make_reply

from fedscan.federation.guard import BlockedError, OutboundGuard, fresh_reply
from fedscan.federation.kept_answer import answer_sha256
from fedscan.federation.messages import META_KEY, REFUSED_BY_POLICY, LedgerHead, MessageError, PrivateAnswer
from fedscan.federation.places import SitePlaces
from fedscan.federation.site_setup import SiteSetup
from fedscan.federation.versions import PROTOCOL, REFUSED_BY_VERSION
from fedscan.plan import Plan, Submission
from fedscan.training.weights import Weights, digest, initial_weights

Change = Callable[[Shareable], object]


def reply_of(record: dict[str, Any], update: Weights, kind: str = DataKind.WEIGHT_DIFF) -> Shareable:
    reply: Shareable = DXO(kind, data=update, meta={META_KEY: record}).to_shareable()
    return reply


class Paid:
    """An answer that the ledger paid for and noted."""

    def __init__(self, hospital: Any) -> None:
        self.hospital = hospital
        task = hospital.task()
        entry = hospital.pay(task)
        self.update = {name: torch.full_like(tensor, 0.25) for name, tensor in hospital.weights.items()}
        self.answer = PrivateAnswer(
            plan_digest=task.plan_digest,
            run_id=task.run_id,
            round_number=0,
            model_digest=task.model_digest,
            weight=1.0,
            ledger=LedgerHead(count=entry.head.count, mac=entry.head.mac),
        )
        self.record = self.answer.model_dump(mode="json")
        ledger = hospital.site.open_ledger()
        with ledger.lock():
            ledger.note_answer(entry.number, answer_sha256(self.answer, self.update))

    def through(self, reply: object) -> Shareable:
        return fresh_reply(reply, self.hospital.plan, self.hospital.submission, self.hospital.setup)

    def good(self) -> Shareable:
        backwards = {name: self.update[name] for name in sorted(self.update, reverse=True)}
        return reply_of(copy.deepcopy(self.record), backwards)


@pytest.fixture
def paid(new_hospital: Callable[..., Any]) -> Paid:
    return Paid(new_hospital())


def test_a_paid_answer_leaves_in_a_reply_of_its_own(paid: Paid) -> None:
    came = paid.good()
    went = paid.through(came)
    assert went is not came
    assert set(went) == {"__headers__", "DXO"}
    assert went["__headers__"] == {"__content_type__": "DXO"}
    dxo = from_shareable(went)
    assert (dxo.data_kind, set(dxo.meta)) == (DataKind.WEIGHT_DIFF, {META_KEY})
    assert dxo.meta[META_KEY] == paid.record
    assert digest(dxo.data) == digest(paid.update)
    assert list(dxo.data) == sorted(paid.update), "the order of tensors tells nothing"


ADDITIONS: dict[str, Change] = {
    "a key beside the DXO": lambda s: s.update(patients=["Doe^John"]),
    "a header": lambda s: s.set_header("patients", 17),
    "a cookie": lambda s: s.add_cookie("n", 17),
    "peer props": lambda s: s.set_peer_props({"n": 17}),
    "a return code beside a result": lambda s: s.set_header("__rc__", "OK"),
    "a key in the DXO": lambda s: s["DXO"].update(note="n=17"),
    "meta beside the record": lambda s: s["DXO"]["meta"].update(loss=0.5),
    "NVFlare's own count": lambda s: s["DXO"]["meta"].update(NUM_STEPS_CURRENT_ROUND=17),
    "no meta": lambda s: s["DXO"].update(meta=None),
    "no data": lambda s: s["DXO"].update(data={}),
    "another kind": lambda s: s["DXO"].update(kind=DataKind.WEIGHTS),
    "a collection": lambda s: s["DXO"].update(kind=DataKind.COLLECTION),
    "analytics": lambda s: s["DXO"].update(kind=DataKind.ANALYTIC),
    "no DXO": lambda s: s.pop("DXO"),
    "another content": lambda s: s.set_header("__content_type__", "XML"),
    "no headers": lambda s: s.pop("__headers__"),
    "headers of another type": lambda s: s.update(__headers__=[1]),
}


@pytest.mark.parametrize("name", ADDITIONS)
def test_anything_beside_the_one_form_is_blocked(paid: Paid, name: str) -> None:
    reply = paid.good()
    ADDITIONS[name](reply)
    with pytest.raises((BlockedError, MessageError, KeyError, TypeError, ValueError)):
        paid.through(reply)


RECORDS: dict[str, dict[str, Any]] = {
    "a loss": {"loss": 0.5},
    "a count": {"examples": 24},
    "another plan": {"plan_digest": "0" * 64},
    "another run": {"run_id": "0" * 32},
    "another round": {"round_number": 1},
    "another model": {"model_digest": "0" * 64},
    "a weight that tells": {"weight": 1.0000001},
    "another entry": {"ledger": {"count": 1, "mac": "0" * 64}},
    "an entry that is not there": {"ledger": {"count": 10**6, "mac": "0" * 64}},
    "a head that tells": {"ledger": None},
}


@pytest.mark.parametrize("name", RECORDS)
def test_another_record_than_the_one_noted_is_blocked(paid: Paid, name: str) -> None:
    with pytest.raises((BlockedError, MessageError)):
        paid.through(reply_of(paid.record | RECORDS[name], paid.update))


UPDATES: dict[str, Callable[[Weights], Any]] = {
    "another value": lambda w: w | {min(w): w[min(w)] + 1e-7},
    "a tensor more": lambda w: w | {"images": torch.zeros(24, 64, 64)},
    "a tensor less": lambda w: {name: w[name] for name in sorted(w)[1:]},
    "another dtype": lambda w: w | {min(w): w[min(w)].double()},
    "another shape": lambda w: w | {min(w): w[min(w)][None]},
    "not finite": lambda w: w | {min(w): torch.full_like(w[min(w)], torch.nan)},
    "no tensor": lambda w: w | {min(w): "Doe^John"},
}


@pytest.mark.parametrize("name", UPDATES)
def test_another_update_than_the_one_noted_is_blocked(paid: Paid, name: str) -> None:
    with pytest.raises(BlockedError):
        paid.through(reply_of(paid.record, UPDATES[name](paid.update)))


def test_a_charge_whose_answer_was_never_noted_pays_for_nothing(paid: Paid) -> None:
    task = paid.hospital.task(round_number=1)
    entry = paid.hospital.pay(task)
    answer = paid.answer.model_copy(
        update={"round_number": 1, "ledger": LedgerHead(count=entry.head.count, mac=entry.head.mac)}
    )
    with pytest.raises(BlockedError, match="not the one that was noted"):
        paid.through(reply_of(answer.model_dump(mode="json"), paid.update))


def test_an_unreadable_ledger_pays_for_nothing(paid: Paid) -> None:
    paid.hospital.site.file.ledger.write_bytes(b"")
    with pytest.raises(BlockedError, match="ledger"):
        paid.through(paid.good())


def test_a_policy_that_was_tightened_since_blocks_what_was_paid_for(paid: Paid) -> None:
    path = paid.hospital.site.file.policy
    path.write_text(json.dumps(json.loads(path.read_text()) | {"min_noise_multiplier": 5.0}))
    with pytest.raises(BlockedError, match="min_noise_multiplier"):
        paid.through(paid.good())


@pytest.mark.parametrize(
    "code", [REFUSED_BY_POLICY, REFUSED_BY_VERSION, ReturnCode.TASK_ABORTED, ReturnCode.TASK_UNKNOWN]
)
def test_a_refusal_leaves_as_a_return_code_and_nothing_else(paid: Paid, code: str) -> None:
    assert paid.through(make_reply(code)) == {"__headers__": {"__rc__": code}}


@pytest.mark.parametrize(
    "reply",
    [
        make_reply(ReturnCode.EXECUTION_EXCEPTION),  # under DP a failure must look like any refusal
        make_reply("epsilon spent: 7.9"),
        make_reply(REFUSED_BY_POLICY, {"reason": "17 patients"}),
        Shareable({"x": 1}),
        None,
        {},
    ],
)
def test_other_codes_and_refusals_that_say_more_are_blocked(paid: Paid, reply: object) -> None:
    if isinstance(reply, Shareable) and "x" in reply:
        reply.set_return_code(REFUSED_BY_POLICY)
    with pytest.raises(BlockedError):
        paid.through(reply)


class _Engine:
    """What FLContext asks its engine for."""

    def __init__(self, workspace: Any) -> None:
        self._workspace = workspace

    def get_workspace(self) -> Any:
        return self._workspace


class _Workspace:
    def __init__(self, root: Path) -> None:
        self.root = root

    def get_app_config_dir(self, _: str) -> str:
        return str(self.root / "config")

    def get_site_config_dir(self) -> str:
        return str(self.root / "local")


def context(root: Path, properties: object) -> FLContext:
    ctx = FLContext()
    ctx.set_prop("__engine__", _Engine(_Workspace(root)), private=True)
    ctx.set_prop("__run_num__", "job", private=False)
    ctx.set_prop("__scope_props__", properties, private=True)
    return ctx


def test_the_filter_answers_with_the_constant_whatever_goes_wrong_and_notes_the_reason_here(
    paid: Paid, tmp_path: Path
) -> None:
    (tmp_path / "config").mkdir()
    config = {
        "plan": paid.hospital.plan.model_dump(mode="json"),
        "submission": paid.hospital.submission.model_dump(mode="json"),
    }
    (tmp_path / "config" / "config_fed_client.json").write_text(json.dumps(config))
    ctx = context(tmp_path, {"site_file": str(paid.hospital.site.path)})
    guard = OutboundGuard()
    assert digest(from_shareable(guard.process(paid.good(), ctx)).data) == digest(paid.update)
    refused = {"__headers__": {"__rc__": REFUSED_BY_POLICY}}
    for reply in (reply_of(paid.record | {"loss": 0.5}, paid.update), make_reply("n=17"), None, Shareable()):
        assert guard.process(reply, ctx) == refused
    noted = (paid.hospital.setup.state / "refusals.jsonl").read_text().splitlines()
    assert len(noted) == 4
    assert "a loss that the plan does not ask for" in noted[0]
    assert OutboundGuard().process(paid.good(), context(tmp_path, {})) == refused, "a site without places"
    assert OutboundGuard().process(paid.good(), context(tmp_path / "nowhere", {})) == refused


def test_without_policy_a_plain_answer_has_the_one_form_and_a_private_one_never_leaves(
    phantom_store: Path, tmp_path: Path, paid: Paid
) -> None:
    setup = SiteSetup.of(SitePlaces(no_policy=True, store=phantom_store, state=tmp_path / "state"))
    plan = Plan.model_validate({"model": {"preset": "tiny"}})
    submission = Submission.new()
    weights = initial_weights(plan)
    record = {
        "protocol": PROTOCOL,
        "plan_digest": plan.digest,
        "run_id": submission.run_id,
        "round_number": 0,
        "model_digest": digest(weights),
        "examples": 24,
        "patients": 12,
        "steps": 2,
        "loss": 0.5,
        "seconds": 1.0,
        "unit": "patient",
        "values": "hu",
        "field_mm": 360.0,
    }
    went = fresh_reply(reply_of(record, weights), plan, submission, setup)
    assert from_shareable(went).meta[META_KEY] == record
    for change in ({"note": "x"}, {"unit": "Doe^John"}):
        with pytest.raises(MessageError):
            fresh_reply(reply_of(record | change, weights), plan, submission, setup)
    with pytest.raises(BlockedError):
        fresh_reply(reply_of(record, weights | {"images": torch.zeros(1)}), plan, submission, setup)
    with pytest.raises(BlockedError, match="no ledger"):
        fresh_reply(paid.good(), paid.hospital.plan, paid.hospital.submission, setup)
