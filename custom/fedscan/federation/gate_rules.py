"""The gate's judgement: which messages of a site may leave, and what of them. Pure: no NVFlare, no clock, no file."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import msgpack

from fedscan.federation import gate_tables as tables
from fedscan.federation.gate_answer import PassedAnswer, is_chunk, put_back, references
from fedscan.federation.gate_clean import DROP, is_name, known_part, rules_of, shown_path, text_fits
from fedscan.federation.gate_frames import BlockedError, Frame, pack, unpack, with_payload

_SUBMIT = ("server_command", "submit_update")
_CHUNKS = ("return_only", "download_service__:download_service__download")
_ADMIN = ("admin", "admin")


@dataclass(frozen=True)
class Judgement:
    """What may go, and where something of the message had to stay: paths of known fields, never values."""

    frames: list[Frame]
    taken_out: tuple[str, ...] = ()


def judge(parts: list[Frame], passed: PassedAnswer | None, constants: Mapping[str, Any] | None = None) -> Judgement:
    """One whole message (several frames where it is a stream of parts). Raises BlockedError."""
    first = parts[0]
    if first.kind in ("ping", "pong"):
        return _heartbeat(first)
    if first.kind in ("hello", "ready"):
        return _handshake(first)
    if first.kind != "data":
        raise BlockedError("a frame of an unknown kind")
    table = _table(first)
    taken: list[str] = []
    frames = [replace(part, headers=_headers(part, constants or {}, taken)) for part in parts]
    frames = _payload(frames, table, passed, taken)
    return Judgement(frames, tuple(dict.fromkeys(map(shown_path, taken))))


def place(frame: Frame) -> str:
    """Channel and topic for people, cut to what can be read."""
    if frame.kind != "data":
        return f"connection/{frame.kind}"
    text = f"{frame.channel}/{frame.topic}"
    return re.sub(r"[^\w.:/-]", "?", text)[:100]


def is_listed(frame: Frame) -> bool:
    """Whether its channel and topic stand in a table: others are whatever the sender chose."""
    names = {key[:2] for table in (tables.JOB_MESSAGES, tables.PARENT_MESSAGES) for key in table}
    return frame.kind != "data" or (frame.channel, frame.topic) in names


def _heartbeat(frame: Frame) -> Judgement:
    if frame.headers or frame.payload not in (b"", msgpack.packb(None)):
        raise BlockedError("a connection's heartbeat that says something")
    return Judgement([frame])


def _handshake(frame: Frame) -> Judgement:
    try:
        said = msgpack.unpackb(frame.payload)
    except (ValueError, msgpack.UnpackException):
        said = None
    if frame.headers or not isinstance(said, dict):
        raise BlockedError("a handshake of another form")
    rules = {"endpoint_name": re.escape(frame.me), "fqcn": re.escape(frame.me), "timestamp": tables.TIME}
    kept = {k: v for k, v in said.items() if k in rules and text_fits(rules[k], v)}
    fresh = msgpack.packb(kept)
    taken = () if fresh == frame.payload else ("a field of the handshake",)
    return Judgement([replace(frame, payload=fresh)], taken)


def _table(frame: Frame) -> Mapping[str, str]:
    messages = tables.JOB_MESSAGES if frame.job else tables.PARENT_MESSAGES
    key = (frame.channel, frame.topic, str(frame.headers.get("cn__msg_type")))
    if key not in messages:
        raise BlockedError("it is on no list")
    carrier = (frame.headers.get("cn__channel"), frame.headers.get("cn__topic"))
    if {"sm__ch", "sm__tp"} & set(frame.headers) and (carrier[0] != "sm__STREAM" or carrier[1] not in tables.CARRIERS):
        raise BlockedError("it is on no list")
    target = str(frame.headers.get("cn__destination"))
    # A parent tells the server's process of a job that a stream of its found nobody.
    of_job = tables.UUID if not frame.job and carrier == ("sm__STREAM", "sm__ERROR") else re.escape(frame.job)
    if not re.fullmatch(rf"server(\.{of_job})?", target):
        raise BlockedError("it does not go to the server")
    return messages[key]


def _headers(frame: Frame, constants: Mapping[str, Any], taken: list[str]) -> dict[str, Any]:
    kept: dict[str, Any] = {}
    parents_own = frozenset() if not frame.job else tables.PARENT_HEADERS
    for name, value in frame.headers.items():
        shown = tables.WITHHELD if name in tables.ERROR_TEXTS else value
        clean = known_part(shown, str(name), rules_of(frame, tables.HEADERS), [])
        if clean is DROP or name in parents_own or not is_name(name) or constants.get(name, clean) != clean:
            taken.append(f"header/{name}")
        else:
            kept[name] = clean
    if not {"cn__channel", "cn__topic", "cn__from", "cn__destination"} <= set(kept):
        raise BlockedError("a header that routes it is missing, or not of its form")
    return kept


def _payload(
    frames: list[Frame], table: Mapping[str, str], passed: PassedAnswer | None, taken: list[str]
) -> list[Frame]:
    first = frames[0]
    whole = b"".join(frame.payload for frame in frames)
    if not whole:
        return frames
    main, behind = unpack(whole)
    chunks: Callable[[Any], bool] | None = None
    if (first.channel, first.topic) == _CHUNKS:
        chunks = functools.partial(is_chunk, main, behind, passed)
    if (first.channel, first.topic) == _ADMIN:
        main = _withhold(main, taken)
    clean = known_part(main, "body", rules_of(first, table), taken, chunks)
    if (first.channel, first.topic) == _SUBMIT:
        clean = put_back(clean, main, passed)
        behind = references(first, behind)
    elif behind and chunks is None:
        raise BlockedError("something stands behind its main part")
    if clean is DROP:
        raise BlockedError("nothing of it is of the known form")
    fresh = pack(clean, behind)
    if fresh == whole:
        return frames
    # A name that is there twice, a number written long: bytes that no reader of the fields sees.
    if not any(path.startswith("body") for path in taken):
        taken.append("body")
    if len(frames) > 1:
        raise BlockedError("a long message with something that does not belong there")
    return [with_payload(first, fresh)]


def _withhold(main: Any, taken: list[str]) -> Any:
    """An answer to the server's command without a text that is none of the known ones."""
    try:
        said = main["__fobs_data__"]["data"]
        text, topic = said["body"], said["topic"]
    except (TypeError, KeyError):
        raise BlockedError("an answer to a command, of another form") from None
    if not re.fullmatch(rf"reply|reply_({tables.ADMIN_TOPICS})", str(topic)):
        raise BlockedError("an answer to a command that is on no list")
    if isinstance(text, str) and text != tables.WITHHELD and not re.fullmatch(tables.ADMIN_BODIES_ANY_SITE, text):
        taken.append("body/__fobs_data__/data/body")
        said["body"] = tables.WITHHELD
    return main
