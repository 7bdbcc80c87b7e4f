"""Counts what a job process sends, at NVFlare's cell: requests and replies are kept in separate registries there."""

from __future__ import annotations

from typing import Any

from nvflare.apis.fl_context import FLContext
from nvflare.fuel.f3.cellnet.defs import MessageHeaderKey
from nvflare.fuel.f3.message import Message
from nvflare.fuel.f3.streaming.stream_const import StreamHeaderKey

from fedscan.federation.wall import WallLog


def count_messages(fl_ctx: FLContext, wall: WallLog) -> None:
    """From now on every outgoing request and reply of this job process is counted in `wall` by channel and topic."""

    def count(message: Message, *_: Any) -> None:
        channel = message.get_header(StreamHeaderKey.CHANNEL) or message.get_header(MessageHeaderKey.CHANNEL)
        topic = message.get_header(StreamHeaderKey.TOPIC) or message.get_header(MessageHeaderKey.TOPIC)
        wall.message(str(channel or "reply"), str(topic or "-"), _size(message.payload))

    core = fl_ctx.get_engine().get_cell().core_cell
    core.add_outgoing_request_filter("*", "*", count)
    core.add_outgoing_reply_filter("*", "*", count)


def _size(payload: object) -> int:
    return len(payload) if isinstance(payload, bytes | bytearray | memoryview) else 0
