"""The one place in an NVFlare process where a message becomes bytes of a connection, for gate and counter to stand at.

NVFlare's own message filters stand higher up, and are no place for a last word: a filter for one topic replaces those
for all topics, later filters change what earlier ones saw, and handshakes, returned messages and forwarded ones pass
none of them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from nvflare.fuel.f3.sfm.constants import Types
from nvflare.fuel.f3.sfm.prefix import Prefix
from nvflare.fuel.f3.sfm.sfm_conn import SfmConnection

from fedscan.federation.gate_frames import Frame

Release = Callable[[list[Frame]], None]
Watch = Callable[[Frame, Release], None]
_KINDS = {Types.DATA: "data", Types.HELLO: "hello", Types.READY: "ready", Types.PING: "ping", Types.PONG: "pong"}
_original = SfmConnection.send_frame


def watch_frames(watch: Watch) -> None:
    """From now on each frame that this process would send is handed to `watch` instead, with a function that sends.

    What `watch` does not release stays here; what it raises, the sender gets. A later watch takes an earlier one's
    place. Importing this fails where a version of NVFlare sends in another way: then nothing starts.
    """

    def send_frame(self: SfmConnection, prefix: Prefix, headers: dict[str, Any] | None, payload: Any) -> None:
        def release(frames: list[Frame]) -> None:
            for one in frames:
                fresh = Prefix(0, 0, prefix.type, 0, 0, prefix.app_id, prefix.stream_id, 0)
                _original(self, fresh, one.headers or None, one.payload or None)

        watch(_frame(self, prefix, headers, payload), release)

    SfmConnection.send_frame = send_frame


def stop_watching() -> None:
    """Frames go out as NVFlare sends them (for tests: no process of a site does this)."""
    SfmConnection.send_frame = _original


def _frame(connection: SfmConnection, prefix: Prefix, headers: dict[str, Any] | None, payload: Any) -> Frame:
    known = connection.sfm_endpoint
    return Frame(
        kind=_KINDS.get(prefix.type, f"type {prefix.type}"),
        me=str(connection.local_endpoint.name),
        peer=str(known.endpoint.name) if known is not None else "",
        connection=str(connection.get_name()),
        headers=dict(headers or {}),
        payload=bytes(payload or b""),
    )
