"""The gate's judgement over messages that NVFlare itself serialised."""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import msgpack
import pytest
import torch
from nvflare.apis.dxo import DXO, DataKind
from nvflare.apis.shareable import ReservedHeaderKey, Shareable, make_reply
from nvflare.app_opt.pt.decomposers import TensorDecomposer
from nvflare.fuel.utils import fobs
from nvflare.private.admin_defs import error_reply, ok_reply
from nvflare.private.fed.utils.fed_utils import nvflare_fobs_initialize
from safetensors.torch import save

from fedscan.federation import gate_tables
from fedscan.federation.gate_answer import PassedAnswer
from fedscan.federation.gate_frames import MAIN, SECTION, BlockedError, Frame, pack, unpack
from fedscan.federation.gate_rules import Judgement, is_listed, judge, place

SITE, JOB = "hosp-a", str(uuid.UUID(int=7))
ME = f"{SITE}.{JOB}"
PATIENT = "P-4711"
RECORD = {"plan_digest": "a" * 64, "run_id": "b" * 32, "round_number": 3, "model_digest": "c" * 64, "weight": 1.0}
TENSORS = {"net.a": torch.arange(4.0), "net.b": torch.ones(2, 3)}
ITEMS = [save({f"T{k}": tensor}) for k, tensor in enumerate(TENSORS.values())]
PASSED = PassedAnswer(RECORD, tuple(TENSORS), tuple(hashlib.sha256(item).hexdigest() for item in ITEMS))
REFERENCE = (101, 6, b"i" * 16)


@pytest.fixture(scope="module", autouse=True)
def _registered() -> None:
    nvflare_fobs_initialize()
    fobs.register(TensorDecomposer)


def frame(channel: str, topic: str, payload: bytes = b"", kind: str = "req", me: str = ME, **headers: Any) -> Frame:
    """As NVFlare's cell fills it in."""
    own = {
        "cn__channel": channel,
        "cn__topic": topic,
        "cn__msg_type": kind,
        "cn__from": me,
        "cn__origin": me,
        "cn__to": "server",
        "cn__destination": f"server.{JOB}" if "." in me else "server",
        "cn__route": [[me, 1795539145.03]],
        "cn__payload_encoding": "fobs",
        "cn__payload_len": len(payload),
        "cn__req_id": str(uuid.UUID(int=1)),
        "cn__reply_expected": True,
        "cn__secure": False,
        "cn__optional": True,
    }
    return Frame("data", me, "server", "CN1", own | headers, payload)


def streamed(channel: str, topic: str, payload: bytes, **headers: Any) -> Frame:
    stream = {"sm__ch": channel, "sm__tp": topic, "sm__dt": 2, "sm__sq": 0, "sm__os": 0, "sm__id": 5}
    sizes = {"sm__sz": len(payload), "sm__rs": False, "sm__pe": "fobs"}
    return frame("sm__STREAM", "sm__DATA", payload, **stream, **sizes, **headers)


def contextual(**props: Any) -> Shareable:
    message = Shareable()
    own = {"__run_num__": JOB, "__identity_name__": SITE, "__client_name__": SITE, "__is_leaf__": True}
    message.set_header("__peer_props__", own | props)
    message.set_header("__topic__", "__task_check__")
    message.set_header("__task_id__", str(uuid.UUID(int=2)))
    return message


def result(change: Callable[[Any], object] = lambda _: None, *, round_number: int = 3) -> bytes:
    """An answer as it is on the wire: its tensors are references."""
    message = DXO(DataKind.WEIGHT_DIFF, data={"x": torch.zeros(1)}, meta={"fedscan": RECORD}).to_shareable()
    message.set_header("__task_name__", "train")
    message.set_cookie_jar({"__workflow__": "fedavg", "contribution_round": round_number})
    main, _ = unpack(fobs.dumps(message))
    shape = {"__fobs_type__": "torch.Tensor", "__fobs_dc__": "nvflare.app_opt.pt.decomposers.TensorDecomposer"}
    main["__fobs_data__"]["DXO"]["data"] = {
        name: {**shape, "__fobs_data__": {"type": "ref", "data": f"T{k}"}} for k, name in enumerate(TENSORS)
    }
    change(main["__fobs_data__"])
    reference = b'{"fqcn": "%s", "ref_id": "%s"}' % (ME.encode(), str(uuid.UUID(int=9)).encode())
    return pack(main, [(*REFERENCE, reference)])


def submit(payload: bytes) -> Frame:
    return streamed("server_command", "submit_update", payload)


def chunk(items: list[bytes], start: int = 0, **more: Any) -> Frame:
    body = {"status": "ok", "state": {"start": start, "count": len(items)}, "data": items, **more}
    payload = pack(body, [])
    return streamed("return_only", "download_service__:download_service__download", payload)


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


def parent(channel: str, topic: str, payload: bytes, kind: str = "req") -> Frame:
    return frame(channel, topic, payload, kind=kind, me=SITE)


def stream_error(topic: str = "sm__ERROR", target: str = f"server.{JOB}", **headers: Any) -> Frame:
    """Of the parent, about a message to a job process that ended a moment ago."""
    stream = {
        "sm__ch": "aux_communication",
        "sm__tp": "__end_run__",
        "sm__dt": 6,
        "sm__id": 5,
        "sm__fd": f"hosp-a.{JOB}",
    }
    said = {"sm__em": f"not found: {PATIENT}", "sm__et": "StreamTargetUnreachable"}
    own = {"me": "hosp-a", "cn__destination": target, "cn__payload_encoding": "none"}
    return frame("sm__STREAM", topic, **(own | stream | said | headers))


def test_a_parent_tells_that_a_job_has_ended_without_its_words() -> None:
    judged = judge([stream_error()], None)
    (sent,) = judged.frames
    assert sent.headers["sm__em"] == "withheld by the site"
    assert sent.headers["sm__et"] == "StreamTargetUnreachable"
    assert PATIENT not in repr(sent)


@pytest.mark.parametrize(
    "other",
    [
        pytest.param({"target": f"hosp-b.{JOB}"}, id="to another site"),
        pytest.param({"target": "server.patient"}, id="to no job"),
        pytest.param({"topic": "sm__ACK"}, id="another message to a job"),
        pytest.param({"sm__tp": PATIENT}, id="about another"),
    ],
)
def test_and_nothing_else_so(other: dict[str, Any]) -> None:
    with pytest.raises(BlockedError):
        judge([stream_error(**other)], None)


def test_registration_tells_name_certificate_and_signature() -> None:
    message = Shareable()
    message.set_header("__topic__", "register")
    message["cn"] = SITE
    message["cert"] = b"-----BEGIN CERTIFICATE-----\nMIIDHz==\n-----END CERTIFICATE-----\n"
    message["signature"] = bytes(range(256))
    message["site_config"] = {}
    assert judge([parent("task", "register", fobs.dumps(message))], None).taken_out == ()
    message["site_config"] = {"note": PATIENT}
    message["cert"] += PATIENT.encode()
    (left,) = judge([parent("task", "register", fobs.dumps(message))], None).frames
    assert PATIENT.encode() not in left.payload


@pytest.mark.parametrize(
    "text", ["ok", "deployed app_client to hosp-a", "NVFLARE_ERROR: refused by policy", "Start the client app..."]
)
def test_known_words_answer_a_command(text: str) -> None:
    sent = parent("admin", "admin", fobs.dumps(ok_reply(body=text)), "reply")
    assert judge([sent], None).frames == [sent]


def test_other_words_are_withheld_and_other_commands_not_answered() -> None:
    for reply in (error_reply(f"exception_occurred: {PATIENT}"), ok_reply("reply_train.check_status", PATIENT)):
        (left,) = judge([parent("admin", "admin", fobs.dumps(reply), "reply")], None).frames
        assert fobs.loads(left.payload).body == gate_tables.WITHHELD
    for topic in ("reply_sys.shell", "reply_sys.info", "reply_info.show_errors", PATIENT):
        with pytest.raises(BlockedError, match="on no list"):
            judge([parent("admin", "admin", fobs.dumps(ok_reply(topic, "ok")), "reply")], None)


def test_a_handshake_tells_the_name_and_the_time() -> None:
    said = {"endpoint_name": ME, "fqcn": ME, "timestamp": 1795539145.5}
    good = Frame("hello", ME, "", payload=msgpack.packb(said))
    assert judge([good], None).frames == [good]
    for more in ({"patient": PATIENT}, {"timestamp": PATIENT}):
        (left,) = judge([Frame("hello", ME, "", payload=msgpack.packb(said | more))], None).frames
        assert PATIENT.encode() not in left.payload
    for other in (
        Frame("hello", ME, "", payload=b"\xc1"),
        Frame("type 9", ME, ""),
        Frame("ping", ME, "", payload=b"x"),
    ):
        with pytest.raises(BlockedError):
            judge([other], None)


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


def _twice(payload: bytes) -> bytes:
    """The main part with a name twice: who reads its fields sees the last value alone."""
    main, behind = unpack(payload)
    body = msgpack.packb(main)
    first = msgpack.packb("__fobs_type__") + msgpack.packb(PATIENT)
    body = bytes([body[0] + 1]) + first + body[1:]
    return SECTION.pack(MAIN, 0, len(body)) + body + pack(None, behind)[len(pack(None, [])) :]


def test_nothing_stands_behind_a_name_that_is_there_twice() -> None:
    for sent in (
        streamed("aux_communication", "__task_check__", _twice(fobs.dumps(contextual()))),
        submit(_twice(result())),
    ):
        assert PATIENT.encode() in sent.payload
        judged = judge([sent], PASSED)
        assert PATIENT.encode() not in judged.frames[0].payload
        assert judged.taken_out
        halves = [replace(sent, payload=part) for part in (sent.payload[:50], sent.payload[50:])]
        with pytest.raises(BlockedError, match="does not belong"):
            judge(halves, PASSED)
    said = msgpack.packb({"endpoint_name": ME, "fqcn": ME, "timestamp": 1.5})
    said = bytes([said[0] + 1]) + msgpack.packb("fqcn") + msgpack.packb(PATIENT) + said[1:]
    (left,) = judge([Frame("hello", ME, "", payload=said)], None).frames
    assert PATIENT.encode() not in left.payload


def test_a_number_is_written_in_one_way() -> None:
    """Five bytes for a small number say four more."""
    main, behind = unpack(chunk(ITEMS).payload)
    body = msgpack.packb(main).replace(msgpack.packb("start") + b"\x00", msgpack.packb("start") + b"\xd3" + b"\x00" * 8)
    sent = replace(chunk(ITEMS), payload=SECTION.pack(MAIN, 0, len(body)) + body)
    assert unpack(sent.payload) == (main, behind)
    assert judge([sent], PASSED).frames[0].payload == pack(main, behind)


@pytest.mark.parametrize("path", [("__fobs_data__", "__headers__"), ("__fobs_data__",), ()])
@pytest.mark.parametrize("name", ["__fobs_type__", "__fobs_dc__"])
def test_a_class_stands_in_its_place_alone(path: tuple[str, ...], name: str) -> None:
    main, behind = unpack(fobs.dumps(contextual()))
    inner = main
    for step in path:
        inner = inner[step]
    inner[PATIENT] = {PATIENT: {name: "torch.Tensor"}}
    judged = judge([streamed("aux_communication", "__task_check__", pack(main, behind))], None)
    assert PATIENT.encode() not in judged.frames[0].payload
    assert PATIENT not in str(judged.taken_out)


WORDS: dict[str, Any] = {
    "sm__et": "HansPatient",
    "client_ip": "dead:4711",
    "nvflare_version": "hans.4711",
    "federation_protocol_version": "4711",
    "job_ids": [str(uuid.UUID(int=0x4711))],
    "cn": SITE,
    "sm__ws": "\u0664\u0667\u0661\u0661",
    "cn__route": [[SITE, 4711.0]] * 100,
    "cn__req_id": [str(uuid.UUID(int=k)) for k in range(100)],
}


@pytest.mark.parametrize("name", WORDS)
def test_a_jobs_headers_have_no_room_for_words(name: str) -> None:
    sent = streamed("aux_communication", "__task_check__", fobs.dumps(contextual()))
    sent = replace(sent, headers=sent.headers | {name: WORDS[name]})
    (left,) = judge([sent], None).frames
    assert left.headers.get(name) != WORDS[name]


@pytest.mark.parametrize("name", ["cn__channel", "cn__topic"])
def test_what_carries_a_stream_has_its_own_name(name: str) -> None:
    sent = streamed("aux_communication", "__task_check__", fobs.dumps(contextual()))
    with pytest.raises(BlockedError, match="on no list"):
        judge([replace(sent, headers=sent.headers | {name: "hans.4711"})], None)


@pytest.mark.parametrize("field", ["status", "confirm"])
def test_the_words_about_a_download_are_known(field: str) -> None:
    judged = judge([chunk(ITEMS, **{field: "hans_patient"})], PASSED)
    assert b"hans_patient" not in judged.frames[0].payload


def test_a_failed_job_has_one_of_five_reasons() -> None:
    for reason, stays in (("exception", True), ("hans patient", False)):
        sent = parent("task", "report_job_failure", fobs.dumps({"job_id": JOB, "code": 101, "reason": reason}))
        (left,) = judge([sent], None).frames
        assert (reason.encode() in left.payload) is stays


def test_a_list_without_end_stays() -> None:
    main, behind = unpack(fobs.dumps(contextual()))
    main["__fobs_data__"]["__headers__"]["__peer_ctx__"] = {"__fobs_data__": [0, None] * 500}
    judged = judge([streamed("aux_communication", "__task_check__", pack(main, behind))], None)
    assert len(judged.frames[0].payload) < 500
