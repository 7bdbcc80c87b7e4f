"""What a process sends, as plain data: frames, NVFlare's serialised payloads, and long payloads put together again."""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import msgpack

SECTION = struct.Struct(">BBQ")
"""Marker, object type, length: before each section of a serialised payload."""
MAIN, TEXT, BLOB = 100, 101, 102
_ID_BYTES = 16
_PREFIX_BYTES = 16
MAX_HELD_BYTES = 48 * 2**20
"""Of one message in parts. NVFlare's sender waits for an acknowledgement after 64 MiB, which a held part never gets."""


class BlockedError(Exception):
    """The message does not leave. The text names its kind and what was wrong, never a value."""


@dataclass(frozen=True)
class Frame:
    """One frame of NVFlare's wire format, before it is written."""

    kind: str
    """data, hello, ready, ping or pong."""
    me: str
    """Full name of the sending process: SITE, or SITE.JOB."""
    peer: str
    """Name of the process at the other end; empty until the handshake is over."""
    connection: str = ""
    headers: dict[str, Any] = field(default_factory=dict)
    payload: bytes = b""

    @property
    def site(self) -> str:
        """The sending site's name."""
        return self.me.partition(".")[0]

    @property
    def job(self) -> str:
        """The sending job's id; empty in the parent process."""
        return self.me.partition(".")[2]

    @property
    def channel(self) -> str:
        """Of the message; that of the stream where the frame is a part of one."""
        return str(self.headers.get("sm__ch") or self.headers.get("cn__channel") or "")

    @property
    def topic(self) -> str:
        """As `channel`."""
        return str(self.headers.get("sm__tp") or self.headers.get("cn__topic") or "")

    @property
    def is_part(self) -> bool:
        """Whether it carries bytes of a stream."""
        return self.headers.get("cn__topic") == "sm__DATA" and self.headers.get("sm__dt") in (1, 2)

    def stays(self) -> bool:
        """Whether it goes to a process of the same site, and no further."""
        target = str(self.headers.get("cn__destination", self.peer))
        return all(name.partition(".")[0] == self.site for name in (self.peer, target))


class Parts:
    """Holds the parts of each stream until the last one, so that a message is judged as a whole before any of it goes.

    Not thread-safe: the gate calls it under its lock.
    """

    def __init__(self) -> None:
        self._held: dict[tuple[str, Any], dict[int, Frame]] = {}
        self._released: dict[tuple[str, Any], dict[int, Frame]] = {}

    def add(self, frame: Frame, judge: Callable[[list[Frame]], list[Frame]]) -> list[Frame]:
        """The frames that may go now. Raises BlockedError, and forgets the stream then."""
        key = (str(frame.headers.get("cn__destination")), frame.headers.get("sm__id"))
        number = frame.headers.get("sm__sq")
        if not isinstance(number, int):
            raise BlockedError("a part without number")
        if key in self._released:  # sent again, since no acknowledgement came: as it was judged, whatever it is now
            return [self._released[key][number]] if number in self._released[key] else []
        held = self._held.setdefault(key, {})
        held[number] = frame
        try:
            if sum(len(part.payload) for part in held.values()) > MAX_HELD_BYTES:
                raise BlockedError(f"a message of more than {MAX_HELD_BYTES} bytes")
            if not any(part.headers.get("sm__dt") == 2 for part in held.values()):
                return []
            if sorted(held) != list(range(len(held))):
                raise BlockedError("a message whose parts are not complete")
            allowed = judge([held[k] for k in sorted(held)])
        except BlockedError:
            self._held.pop(key, None)
            raise
        self._held.pop(key)
        if frame.headers.get("sm__rs"):
            self._remember(key, allowed)
        return allowed

    def _remember(self, key: tuple[str, Any], frames: list[Frame]) -> None:
        """The last few: enough for the minute in which NVFlare repeats."""
        self._released[key] = {int(frame.headers["sm__sq"]): frame for frame in frames}
        while len(self._released) > 1 and _bytes_of(self._released) > MAX_HELD_BYTES:
            self._released.pop(next(iter(self._released)))


def _bytes_of(released: Mapping[Any, Mapping[int, Frame]]) -> int:
    return sum(len(frame.payload) for parts in released.values() for frame in parts.values())


def frame_bytes(frame: Frame) -> int:
    """Length of the frame as NVFlare writes it, before the connection's own framing and TLS."""
    headers = len(msgpack.packb(frame.headers)) if frame.headers else 0
    return _PREFIX_BYTES + headers + len(frame.payload)


def unpack(payload: bytes) -> tuple[Any, list[tuple[int, int, bytes, bytes]]]:
    """A serialised payload's main object, and what lies behind it: (marker, object type, identity, bytes) each.

    Raises BlockedError for anything that is not exactly of that form.
    """
    sections = []
    at = 0
    try:
        while at < len(payload):
            marker, kind, size = SECTION.unpack_from(payload, at)
            at += SECTION.size
            if size <= 0 or at + size > len(payload):
                raise BlockedError("a payload that is cut off")
            sections.append((marker, kind, payload[at : at + size]))
            at += size
        if not sections or sections[0][:2] != (MAIN, 0):
            raise BlockedError("a payload without main part")
        main = msgpack.unpackb(sections[0][2], strict_map_key=False)
    except (struct.error, ValueError, msgpack.UnpackException):
        raise BlockedError("a payload that is not of NVFlare's form") from None
    return main, [(m, k, s[:_ID_BYTES], s[_ID_BYTES:]) for m, k, s in sections[1:]]


def pack(main: object, behind: list[tuple[int, int, bytes, bytes]]) -> bytes:
    """The reverse of `unpack`."""
    body = msgpack.packb(main)
    out = SECTION.pack(MAIN, 0, len(body)) + body
    for marker, kind, identity, data in behind:
        out += SECTION.pack(marker, kind, _ID_BYTES + len(data)) + identity + data
    return bytes(out)


def with_payload(frame: Frame, payload: bytes) -> Frame:
    """The same message with another payload, and the lengths in its headers."""
    headers = dict(frame.headers)
    for name in ("cn__payload_len", "sm__sz"):
        if name in headers:
            headers[name] = len(payload)
    return replace(frame, headers=headers, payload=payload)
