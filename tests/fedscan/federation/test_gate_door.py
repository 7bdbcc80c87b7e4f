"""Judged, counted, noted, released: the frames of one process."""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgpack
import pytest
import torch
from nvflare.apis.dxo import DXO, DataKind
from nvflare.apis.event_type import EventType
from nvflare.apis.fl_constant import FLContextKey
from nvflare.apis.fl_context import FLContext
from nvflare.apis.shareable import Shareable, make_reply
from nvflare.fuel.f3.sfm.sfm_conn import SfmConnection

from fedscan.federation import byte_log, outgoing, passed_answer
from fedscan.federation.byte_counter import SiteByteCounter
from fedscan.federation.gate import OutboundGate
from fedscan.federation.gate_door import Door
from fedscan.federation.gate_frames import BlockedError, Frame
from fedscan.federation.messages import REFUSED_BY_POLICY

JOB = str(uuid.UUID(int=7))
ME = f"hosp-a.{JOB}"
PATIENT = "P-4711"


@pytest.fixture(autouse=True)
def _unwatched() -> Iterator[None]:
    yield
    outgoing.stop_watching()
    passed_answer.note_passed(make_reply(REFUSED_BY_POLICY))


class World:
    """A door whose notes go to a kit that is not installed, and what was sent through it."""

    def __init__(self, local: Path) -> None:
        local.mkdir()
        self.local = local
        self.door = Door(lambda: None)
        self.sent: list[Frame] = []

    def send(self, frame: Frame) -> None:
        self.door(frame, self.sent.extend)

    def totals(self) -> dict[tuple[str, str, bool], tuple[int, int]]:
        found = byte_log.totals(byte_log.read(self.local))
        return {(t.channel, t.to, t.blocked): (t.messages, t.bytes) for t in found}

    def notes(self) -> list[str]:
        path = self.local / "refusals.jsonl"
        return [json.loads(line)["reasons"][0] for line in path.read_text().splitlines()] if path.exists() else []


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path / "local")


def frame(channel: str, topic: str, peer: str = "server", target: str = f"server.{JOB}", **headers: Any) -> Frame:
    own = {"cn__channel": channel, "cn__topic": topic, "cn__msg_type": "req", "cn__from": ME, "cn__destination": target}
    return Frame("data", ME, peer, "CN1", own | headers)


def hello(connection: str) -> Frame:
    said = {"endpoint_name": ME, "fqcn": ME, "timestamp": 1.5}
    return Frame("hello", ME, "", connection, payload=msgpack.packb(said))


def test_what_is_allowed_goes_and_is_counted(world: World) -> None:
    world.door.keep_in(world.local)
    world.send(frame("sm__STREAM", "sm__ACK"))
    assert len(world.sent) == 1
    assert world.totals()["sm__STREAM/sm__ACK", "server", False][0] == 1


def test_what_is_not_stays_is_counted_and_noted_once_without_its_content(world: World) -> None:
    world.door.keep_in(world.local)
    for _ in range(3):
        with pytest.raises(BlockedError):
            world.send(frame("patients", "x", note=PATIENT))
    assert world.sent == []
    assert world.totals()["patients/x", "server", True][0] == 3
    assert world.notes() == ["patients/x: it is on no list"]


def test_nobody_fills_the_disk_with_channels_of_his_own(world: World) -> None:
    world.door.keep_in(world.local)
    for k in range(500):
        with pytest.raises(BlockedError):
            world.send(frame(f"c{k}", "x"))
    assert len(world.totals()) < 60
    assert sum(messages for messages, _ in world.totals().values()) == 500
    assert len(world.notes()) <= 200


def test_what_stays_inside_is_told_from_what_leaves(world: World) -> None:
    world.door.keep_in(world.local)
    world.send(frame("admin", "train.notify_job_status", peer="hosp-a", target="hosp-a"))
    with pytest.raises(BlockedError):  # through the parent process, to the server
        world.send(frame("admin", "train.notify_job_status", peer="hosp-a", target="server"))
    assert world.totals()["admin/train.notify_job_status", byte_log.INSIDE, False][0] == 1
    assert byte_log.left(byte_log.totals(byte_log.read(world.local))) == 0


def test_a_handshake_is_counted_when_it_is_known_where_it_led(world: World) -> None:
    world.send(hello("CN1"))
    world.send(hello("CN2"))
    world.door.keep_in(world.local)
    assert world.totals() == {}
    world.send(frame("sm__STREAM", "sm__ACK"))
    assert world.totals()["connection/hello", "server", False][0] == 1
    inside = frame("admin", "x", peer="hosp-a", target="hosp-a")
    world.send(Frame("data", ME, "hosp-a", "CN2", inside.headers))
    assert world.totals()["connection/hello", byte_log.INSIDE, False][0] == 1


def test_what_was_noted_before_the_place_was_known_is_not_lost(world: World) -> None:
    with pytest.raises(BlockedError):
        world.send(frame("patients", "x"))
    world.door.keep_in(world.local)
    assert world.notes() == ["patients/x: it is on no list"]
    assert world.totals()["patients/x", "server", True][0] == 1


def test_what_cannot_be_counted_does_not_leave(world: World) -> None:
    world.door.keep_in(world.local)
    world.send(frame("sm__STREAM", "sm__ACK"))
    log = world.door._log
    assert log is not None
    assert log._file is not None
    closed = os.open(world.local / "read-only", os.O_RDONLY | os.O_CREAT)
    log._file = closed
    with pytest.raises(OSError):
        world.send(frame("sm__STREAM", "sm__ACK"))
    assert len(world.sent) == 1
    os.close(closed)


def test_a_job_process_without_gate_sends_nothing() -> None:
    """NVFlare builds the counter in each job process, and then the gate in its place."""
    SiteByteCounter()
    watched = SfmConnection.send_frame
    with pytest.raises(BlockedError, match="no gate stands"):
        SiteByteCounter()._watch(hello("CN1"), lambda _: None)
    OutboundGate()
    assert SfmConnection.send_frame is not watched


ANSWER = {"net.a": torch.arange(4.0), "net.b": torch.ones(2)}


def passed() -> Shareable:
    meta = {"fedscan": {"round_number": 1}}
    reply: Shareable = DXO(DataKind.WEIGHT_DIFF, data=dict(ANSWER), meta=meta).to_shareable()
    passed_answer.note_passed(reply)
    return reply


class Context(FLContext):
    """With a task's result in it."""

    def __init__(self, result: Shareable) -> None:
        super().__init__()
        self.set_prop(FLContextKey.TASK_RESULT, result, private=True, sticky=False)


def meddle(result: Shareable, what: str) -> None:
    if what == "key":
        result["note"] = PATIENT
    elif what == "header":
        result.set_header("note", PATIENT)
    elif what == "code":
        result.set_return_code(PATIENT)
    elif what == "dxo":
        result["DXO"]["note"] = PATIENT
    elif what == "meta":
        result["DXO"]["meta"]["note"] = PATIENT
    elif what == "record":
        result["DXO"]["meta"]["fedscan"]["note"] = PATIENT
    elif what == "tensor":
        result["DXO"]["data"]["net.a"] = torch.zeros(4)
    elif what == "order":
        result["DXO"]["data"] = dict(reversed(result["DXO"]["data"].items()))


@pytest.mark.parametrize("what", ["key", "header", "code", "dxo", "meta", "record", "tensor", "order"])
def test_a_result_that_was_changed_after_the_guard_is_what_the_guard_passed_again(what: str) -> None:
    gate = OutboundGate()
    result = passed()
    meddle(result, what)
    gate.handle_event(EventType.AFTER_TASK_RESULT_FILTER, Context(result))
    assert PATIENT not in str(result)
    assert result["DXO"]["meta"] == {"fedscan": {"round_number": 1}}
    assert list(result["DXO"]["data"]) == ["net.a", "net.b"]
    assert torch.equal(result["DXO"]["data"]["net.a"], ANSWER["net.a"])


@pytest.mark.parametrize("what", ["key", "dxo", "meta", "record", "tensor"])
def test_and_once_more_before_it_is_sent(what: str) -> None:
    gate = OutboundGate()
    result = passed()
    gate.handle_event(EventType.AFTER_TASK_RESULT_FILTER, Context(result))
    result.set_header("__task_id__", "1")  # NVFlare's, set between the two
    meddle(result, what)
    gate.handle_event(EventType.BEFORE_SEND_TASK_RESULT, FLContext())
    assert PATIENT not in str(result)
    assert result.get_header("__task_id__") == "1"
    assert torch.equal(result["DXO"]["data"]["net.a"], ANSWER["net.a"])


def test_tensors_that_were_written_over_are_refused() -> None:
    gate = OutboundGate()
    result = passed()
    result["DXO"]["data"]["net.b"].add_(1.0)
    gate.handle_event(EventType.AFTER_TASK_RESULT_FILTER, Context(result))
    assert set(result) == {"__headers__"}
    assert result.get_return_code() == REFUSED_BY_POLICY
    ANSWER["net.b"].sub_(1.0)


def test_an_answer_that_no_guard_saw_is_refused() -> None:
    gate = OutboundGate()
    passed_answer.note_passed(make_reply(REFUSED_BY_POLICY))
    result = DXO(DataKind.WEIGHT_DIFF, data=dict(ANSWER), meta={}).to_shareable()
    gate.handle_event(EventType.AFTER_TASK_RESULT_FILTER, Context(result))
    assert set(result) == {"__headers__"}
    assert result.get_return_code() == REFUSED_BY_POLICY
    assert passed_answer.passed_answer() is None
