"""The gate's judgement over what a site's parent process says: registration, commands, handshakes, ended jobs."""

from __future__ import annotations

from typing import Any

import msgpack
import pytest
from gate_messages import (
    JOB,
    ME,
    PATIENT,
    SITE,
    frame,
    parent,
)
from nvflare.apis.shareable import Shareable
from nvflare.fuel.utils import fobs
from nvflare.private.admin_defs import error_reply, ok_reply

from fedscan.federation import gate_tables
from fedscan.federation.gate_frames import BlockedError, Frame
from fedscan.federation.gate_rules import judge


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


def test_a_failed_job_has_one_of_five_reasons() -> None:
    for reason, stays in (("exception", True), ("hans patient", False)):
        sent = parent("task", "report_job_failure", fobs.dumps({"job_id": JOB, "code": 101, "reason": reason}))
        (left,) = judge([sent], None).frames
        assert (reason.encode() in left.payload) is stays
