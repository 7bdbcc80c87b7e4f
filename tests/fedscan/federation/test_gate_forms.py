"""Room for words in the form of a message: names written twice, long numbers, classes, headers. None goes through."""

from __future__ import annotations

import uuid
from dataclasses import replace
from typing import Any

import msgpack
import pytest
from gate_messages import (
    ITEMS,
    ME,
    PASSED,
    PATIENT,
    SITE,
    chunk,
    contextual,
    result,
    streamed,
    submit,
)
from nvflare.fuel.utils import fobs

from fedscan.federation.gate_frames import MAIN, SECTION, BlockedError, Frame, pack, unpack
from fedscan.federation.gate_rules import judge


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


def test_a_list_without_end_stays() -> None:
    main, behind = unpack(fobs.dumps(contextual()))
    main["__fobs_data__"]["__headers__"]["__peer_ctx__"] = {"__fobs_data__": [0, None] * 500}
    judged = judge([streamed("aux_communication", "__task_check__", pack(main, behind))], None)
    assert len(judged.frames[0].payload) < 500
