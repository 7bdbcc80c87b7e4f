"""The gate's judgement over messages of a job process that NVFlare itself serialised."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from gate_messages import (
    ITEMS,
    JOB,
    ME,
    PASSED,
    PATIENT,
    RECORD,
    REFERENCE,
    SITE,
    TENSORS,
    chunk,
    contextual,
    frame,
    result,
    streamed,
    submit,
)
from nvflare.apis.shareable import ReservedHeaderKey, Shareable, make_reply
from nvflare.fuel.utils import fobs

from fedscan.federation import gate_tables
from fedscan.federation.gate_frames import MAIN, SECTION, BlockedError, Frame, pack, unpack
from fedscan.federation.gate_rules import Judgement, is_listed, judge, place


def test_a_message_of_the_known_form_goes_as_it_is() -> None:
    sent = streamed("aux_communication", "__task_check__", fobs.dumps(contextual()))
    judged = judge([sent], None)
    assert (judged.frames, judged.taken_out) == ([sent], ())


def test_an_answer_that_the_guard_passed_goes_as_it_is() -> None:
    sent = submit(result())
    judged = judge([sent], PASSED)
    assert (judged.frames, judged.taken_out) == ([sent], ())


@pytest.mark.parametrize("backwards", [("__fobs_data__",), ("__fobs_data__", "DXO"), ("__fobs_data__", "__headers__")])
def test_an_answer_in_another_order_goes_as_it_is_in_many_parts_too(backwards: tuple[str, ...]) -> None:
    main, behind = unpack(result())
    at = main
    for step in backwards:
        at = at[step]
    turned = dict(reversed(at.items()))
    at.clear()
    at.update(turned)
    sent = submit(pack(main, behind))
    halves = [replace(sent, payload=part) for part in (sent.payload[:100], sent.payload[100:])]
    assert judge(halves, PASSED) == Judgement(halves)


@pytest.mark.parametrize(
    "message",
    [
        contextual(patient=PATIENT),
        contextual(__patient__=PATIENT),
        contextual(__is_leaf__=PATIENT),
        contextual(__client_name__=PATIENT),
        contextual(__run_num__=PATIENT),
        contextual(**{PATIENT: 1}),
    ],
)
def test_what_is_no_known_property_is_taken_out_and_the_rest_goes(message: Shareable) -> None:
    sent = streamed("aux_communication", "__task_check__", fobs.dumps(message))
    judged = judge([sent], None)
    (left,) = judged.frames
    assert PATIENT.encode() not in left.payload
    assert PATIENT not in str(judged.taken_out)
    assert fobs.loads(left.payload).get_header("__peer_props__")["__identity_name__"] == SITE
    assert left.headers["sm__sz"] == left.headers["cn__payload_len"] == len(left.payload)


HEADERS: dict[str, Any] = {
    "patient": PATIENT,
    "cn__error": PATIENT,
    "sm__em": PATIENT,
    "cn__conn_url": f"tcp://{PATIENT}",
    "cn__original_headers": {"x": PATIENT},
    "cn__return_code": PATIENT,
    "cn__req_id": PATIENT,
    "cn__route": [[PATIENT, 1.0]],
    "client_name": PATIENT,
    "ssid": PATIENT,
    "sm__fn": PATIENT,
    "sm__et": PATIENT,
    "job_ids": [PATIENT],
    PATIENT: 1,
    "cn__secure": PATIENT,
}


@pytest.mark.parametrize("name", HEADERS)
def test_no_header_carries_more_than_its_form(name: str) -> None:
    sent = streamed("aux_communication", "__task_check__", fobs.dumps(contextual()), **{name: HEADERS[name]})
    (left,) = judge([sent], None).frames
    assert PATIENT not in str(left.headers)


def test_error_texts_are_replaced() -> None:
    sent = frame("sm__STREAM", "sm__ERROR", sm__em=PATIENT, cn__error=PATIENT)
    (left,) = judge([sent], None).frames
    assert left.headers["sm__em"] == left.headers["cn__error"] == gate_tables.WITHHELD


def test_a_login_that_changes_within_a_process_is_taken_out() -> None:
    sent = streamed("aux_communication", "__task_check__", fobs.dumps(contextual()), project_name=PATIENT)
    (left,) = judge([sent], None, {"project_name": "fedscan-local"}).frames
    assert "project_name" not in left.headers


@pytest.mark.parametrize(
    ("channel", "topic"),
    [
        ("aux_communication", "fed.event"),
        ("aux_communication", "ObjectStreamer.Request"),
        ("patients", "x"),
        ("cellnet.channel", "bulk"),
        ("admin", "admin"),
        ("task", "register"),
        ("log_streaming", "live"),
    ],
)
def test_what_is_on_no_list_stays(channel: str, topic: str) -> None:
    for sent in (frame(channel, topic, b""), streamed(channel, topic, fobs.dumps(contextual()))):
        with pytest.raises(BlockedError, match="on no list"):
            judge([sent], None)


@pytest.mark.parametrize("target", ["hosp-b", f"hosp-b.{JOB}", "server.other", "relay", PATIENT])
def test_nothing_goes_elsewhere_than_to_the_server_of_this_job(target: str) -> None:
    sent = streamed("aux_communication", "__task_check__", fobs.dumps(contextual()), cn__destination=target)
    with pytest.raises(BlockedError, match="not go to the server") as caught:
        judge([sent], None)
    assert PATIENT not in str(caught.value)


def test_a_message_that_stays_inside_is_told_from_one_that_is_carried_on() -> None:
    inside = frame("admin", "train.notify_job_status", cn__destination=SITE)
    assert Frame("data", ME, SITE, "CN1", inside.headers).stays()
    assert not Frame("data", ME, SITE, "CN1", inside.headers | {"cn__destination": "server"}).stays()
    assert not Frame("data", ME, "hosp-ab", "CN1", inside.headers).stays()


CHANGES: dict[str, Callable[[Any], object]] = {
    "another record": lambda body: body["DXO"]["meta"]["fedscan"].update(weight=2.0),
    "a note in the meta": lambda body: body["DXO"]["meta"].update(note=PATIENT),
    "a note in the record": lambda body: body["DXO"]["meta"]["fedscan"].update(note=PATIENT),
    "a tensor more": lambda body: body["DXO"]["data"].update(x=body["DXO"]["data"]["net.a"]),
    "a tensor less": lambda body: body["DXO"]["data"].pop("net.b"),
    "a tensor under another name": lambda body: body["DXO"]["data"].update({PATIENT: body["DXO"]["data"].pop("net.b")}),
    "a text for a tensor": lambda body: body["DXO"]["data"].update({"net.b": PATIENT}),
    "a tensor in the message": lambda body: body["DXO"]["data"]["net.b"]["__fobs_data__"].update(
        type="native", data=b"x"
    ),
    "no answer and no code": lambda body: body.pop("DXO"),
    "no answer and another code": lambda body: (body.pop("DXO"), body["__headers__"].update(__rc__=PATIENT)),
}


@pytest.mark.parametrize("change", CHANGES)
def test_another_answer_than_the_guard_passed_stays(change: str) -> None:
    with pytest.raises(BlockedError) as caught:
        judge([submit(result(CHANGES[change]))], PASSED)
    assert PATIENT not in str(caught.value)


def test_no_answer_goes_that_no_guard_passed_and_none_to_another_round() -> None:
    with pytest.raises(BlockedError, match="guard did not pass"):
        judge([submit(result())], None)
    with pytest.raises(BlockedError, match="another round"):
        judge([submit(result(round_number=2))], PASSED)


@pytest.mark.parametrize(
    "change",
    [
        lambda body: body.update(note=PATIENT),
        lambda body: body["__headers__"].update(note=PATIENT),
        lambda body: body["DXO"].update(note=PATIENT),
        lambda body: body["__headers__"]["__cookie_jar__"].update(note=PATIENT),
        lambda body: body["__headers__"]["__cookie_jar__"].update(__workflow__=PATIENT),
        lambda body: body["__headers__"].update(__task_name__=PATIENT),
    ],
)
def test_what_stands_beside_the_answer_is_taken_out(change: Callable[[Any], object]) -> None:
    judged = judge([submit(result(change))], PASSED)
    (left,) = judged.frames
    assert PATIENT.encode() not in left.payload
    assert judged.taken_out
    main, behind = unpack(left.payload)
    assert main["__fobs_data__"]["DXO"]["meta"] == {"fedscan": RECORD}
    assert list(main["__fobs_data__"]["DXO"]["data"]) == list(TENSORS)
    assert len(behind) == 1


@pytest.mark.parametrize("code", ["TASK_ABORTED", "refused by policy", "TASK_UNKNOWN"])
def test_a_bare_code_goes_without_an_answer(code: str) -> None:
    assert judge([submit(fobs.dumps(make_reply(code)))], None).frames


@pytest.mark.parametrize(
    "reference",
    [
        b'{"fqcn": "%s", "ref_id": "%s", "note": "P-4711"}',
        b'{"fqcn": "%s", "ref_id": "%s"}          ',
        b"not json %s %s",
    ],
)
def test_a_reference_says_where_the_tensors_are_and_no_more(reference: bytes) -> None:
    main, _ = unpack(result())
    data = reference % (ME.encode(), str(uuid.UUID(int=9)).encode())
    with pytest.raises(BlockedError, match="reference"):
        judge([submit(pack(main, [(*REFERENCE, data)]))], PASSED)


def test_the_parts_of_the_answer_go() -> None:
    assert judge([chunk(ITEMS)], PASSED).frames
    assert judge([chunk(ITEMS[1:], start=1)], PASSED).frames
    whole = chunk(ITEMS)
    halves = [
        Frame("data", ME, "server", "CN1", whole.headers | {"sm__dt": dt, "sm__sq": sq}, part)
        for dt, sq, part in ((1, 0, whole.payload[:100]), (2, 1, whole.payload[100:]))
    ]
    assert judge(halves, PASSED).frames == halves


def test_a_long_tensor_stands_behind_the_main_part() -> None:
    """NVFlare moves values of more than 10 MB there."""
    body = {"status": "ok", "state": {"start": 0, "count": 1}, "data": [{"ref": 1}]}
    first = [(102, 0, b"i" * 16, ITEMS[0])]
    topic = ("return_only", "download_service__:download_service__download")
    assert judge([streamed(*topic, pack(body, first))], PASSED).frames
    for other in ([(102, 0, b"i" * 16, b"x")], [*first, *first], [(101, 0, b"i" * 16, ITEMS[0])], []):
        with pytest.raises(BlockedError):
            judge([streamed(*topic, pack(body, other))], PASSED)


@pytest.mark.parametrize(
    ("items", "start"),
    [
        ([ITEMS[0], ITEMS[1][:-1] + b"\x01"], 0),
        (ITEMS, 1),
        (ITEMS[::-1], 0),
        ([PATIENT.encode()], 0),
        ([*ITEMS, PATIENT.encode()], 0),
        ([ITEMS[1]], -1),
    ],
)
def test_other_bytes_than_those_that_the_guard_passed_stay(items: list[bytes], start: int) -> None:
    with pytest.raises(BlockedError, match="no part of the answer"):
        judge([chunk(items, start)], PASSED)


def test_tensors_stay_when_no_answer_was_passed() -> None:
    with pytest.raises(BlockedError, match="no part of the answer"):
        judge([chunk(ITEMS)], None)


def test_a_payload_that_is_not_of_nvflares_form_stays() -> None:
    good = fobs.dumps(contextual())
    for bad in (good[:-1], good + b"x", b"x" + good, SECTION.pack(MAIN, 0, 1) + b"\xc1", good + good):
        with pytest.raises(BlockedError):
            judge([streamed("aux_communication", "__task_check__", bad)], None)


def test_places_are_readable_and_known_ones_are_told_from_others() -> None:
    strange = frame("a b\n", "ä" * 500)
    assert len(place(strange)) <= 100
    assert "\n" not in place(strange)
    assert not is_listed(strange)
    assert is_listed(submit(b""))
    assert ReservedHeaderKey.RC == "__rc__", "the tables name it"
