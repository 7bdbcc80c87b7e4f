"""The gate's judgement: which messages of a site may leave, and what of them. Pure: no NVFlare, no clock, no file."""

from __future__ import annotations

import functools
import hashlib
import json
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

import msgpack

from fedscan.federation import gate_tables as tables
from fedscan.federation.gate_frames import BLOB, BlockedError, Frame, pack, unpack, with_payload

_SUBMIT = ("server_command", "submit_update")
_CHUNKS = ("return_only", "download_service__:download_service__download")
_ADMIN = ("admin", "admin")
_META_KEY = "fedscan"
_TENSOR_REFERENCE = 6  # NVFlare's object type of a section that says where tensors are to be fetched
_DROP: Final = object()


@dataclass(frozen=True)
class PassedAnswer:
    """What the guard let pass, in the form in which NVFlare sends it."""

    record: Mapping[str, Any]
    names: tuple[str, ...]
    """Of the tensors, in their order in the reply."""
    items: tuple[str, ...]
    """SHA-256 of each tensor as it is fetched: one safetensors file with the tensor `T<number>`."""


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
    return Judgement(frames, tuple(dict.fromkeys(map(_shown, taken))))


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
    kept = {k: v for k, v in said.items() if k in rules and _text_fits(rules[k], v)}
    taken = tuple("a field of the handshake" for key in said if key not in kept)
    return Judgement([replace(frame, payload=msgpack.packb(kept)) if taken else frame], taken)


def _table(frame: Frame) -> Mapping[str, str]:
    messages = tables.JOB_MESSAGES if frame.job else tables.PARENT_MESSAGES
    key = (frame.channel, frame.topic, str(frame.headers.get("cn__msg_type")))
    if key not in messages:
        raise BlockedError("it is on no list")
    target = str(frame.headers.get("cn__destination"))
    if target not in {"server", f"server.{frame.job}"}:
        raise BlockedError("it does not go to the server")
    return messages[key]


def _headers(frame: Frame, constants: Mapping[str, Any], taken: list[str]) -> dict[str, Any]:
    kept: dict[str, Any] = {}
    for name, value in frame.headers.items():
        shown = tables.WITHHELD if name in tables.ERROR_TEXTS else value
        clean = _clean(shown, str(name), _rules(frame, tables.HEADERS), [])
        if clean is _DROP or not _is_name(name) or constants.get(name, clean) != clean:
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
        chunks = functools.partial(_is_chunk, main, behind, passed)
    if (first.channel, first.topic) == _ADMIN:
        main = _withhold(main, taken)
    clean = _clean(main, "body", _rules(first, table), taken, chunks)
    if (first.channel, first.topic) == _SUBMIT:
        clean = _answer(clean, main, passed)
        behind = _references(first, behind)
    elif behind and chunks is None:
        raise BlockedError("something stands behind its main part")
    if clean is _DROP:
        raise BlockedError("nothing of it is of the known form")
    if not any(path.startswith("body") for path in taken):
        return frames
    if len(frames) > 1:
        raise BlockedError("a long message with something that does not belong there")
    return [with_payload(first, pack(clean, behind))]


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


def _answer(clean: Any, main: Any, passed: PassedAnswer | None) -> Any:
    """Puts the answer back that `_clean` left out, if it is the one that the guard passed."""
    body = clean.get("__fobs_data__") if isinstance(clean, dict) else None
    if not isinstance(body, dict):
        raise BlockedError("a result without content")
    original = main["__fobs_data__"].get("DXO")
    if original is None:
        if (body.get("__headers__") or {}).get("__rc__") not in tables.BARE_CODES:
            raise BlockedError("a result without answer and without a known code")
        return clean
    if not isinstance(original, dict) or passed is None:
        raise BlockedError("an answer that the guard did not pass")
    tensors = _references_to(original.get("data"))
    if tensors != list(zip(passed.names, (f"T{k}" for k in range(len(passed.names))), strict=True)):
        raise BlockedError("an answer with other tensors than the guard passed")
    if original.get("meta") != {_META_KEY: dict(passed.record)}:
        raise BlockedError("an answer with another record than the guard passed")
    jar = (body.get("__headers__") or {}).get("__cookie_jar__") or {}
    if jar.get("contribution_round", passed.record.get("round_number")) != passed.record.get("round_number"):
        raise BlockedError("an answer to another round than its record names")
    kept = body.get("DXO") or {}
    body["DXO"] = {"kind": kept.get("kind"), "data": original["data"], "meta": original["meta"]}
    return clean


def _references_to(data: Any) -> list[tuple[str, str]]:
    """Name and reference of each tensor; BlockedError for one that stands in the message itself."""
    if not isinstance(data, dict):
        raise BlockedError("an answer without tensors")
    found = []
    for name, tensor in data.items():
        inner = tensor.get("__fobs_data__") if isinstance(tensor, dict) else None
        shape = {"__fobs_type__", "__fobs_data__", "__fobs_dc__"}
        if not isinstance(inner, dict) or set(tensor) != shape or set(inner) != {"type", "data"}:
            raise BlockedError("an answer with something else than tensors")
        if inner["type"] != "ref" or tensor["__fobs_type__"] != "torch.Tensor":
            raise BlockedError("an answer whose tensors are not fetched")
        if tensor["__fobs_dc__"] != "nvflare.app_opt.pt.decomposers.TensorDecomposer":
            raise BlockedError("an answer with something else than tensors")
        found.append((str(name), str(inner["data"])))
    return found


def _references(frame: Frame, behind: list[tuple[int, int, bytes, bytes]]) -> list[tuple[int, int, bytes, bytes]]:
    """Where the tensors are to be fetched: at this process, by a random identity, and nothing else."""
    if len(behind) > 1:
        raise BlockedError("more than one reference behind a result")
    for _, kind, _, data in behind:
        try:
            told = json.loads(data)
        except ValueError:
            told = None
        wanted = {"fqcn": frame.me, "ref_id": told.get("ref_id") if isinstance(told, dict) else None}
        if kind != _TENSOR_REFERENCE or told != wanted or not _text_fits(tables.UUID, wanted["ref_id"]):
            raise BlockedError("a reference of another form behind a result")
        if len(data) > len(json.dumps(wanted)):
            raise BlockedError("a reference of another form behind a result")
    return behind


def _is_chunk(main: Any, behind: list[tuple[int, int, bytes, bytes]], passed: PassedAnswer | None, value: Any) -> bool:
    """Whether the list of tensors in a chunk is the part of the answer that its state names, byte for byte."""
    state = main.get("state") if isinstance(main, dict) else None
    if passed is None or not isinstance(state, dict) or not isinstance(value, list):
        return False
    start, count = state.get("start"), state.get("count")
    if not isinstance(start, int) or not isinstance(count, int) or count != len(value) or start < 0:
        return False
    data = [*_in_place(value, behind)]
    return tuple(hashlib.sha256(item).hexdigest() for item in data) == passed.items[start : start + count]


def _in_place(value: list[Any], behind: list[tuple[int, int, bytes, bytes]]) -> Iterable[bytes]:
    """Long items stand behind the main part, in order."""
    later = iter(behind)
    for item in value:
        if isinstance(item, bytes):
            yield item
            continue
        marker, kind, _, data = next(later, (0, 0, b"", b""))
        if (marker, kind) != (BLOB, 0):
            raise BlockedError("a long tensor of another form")
        yield data
    if next(later, None) is not None:
        raise BlockedError("something stands behind the tensors")


_Rules = Callable[[str, str], bool]


def _clean(node: Any, path: str, fits: _Rules, taken: list[str], chunks: Callable[[Any], bool] | None = None) -> Any:
    """The part of `node` that the rules know; _DROP where nothing of it is. Notes what it left out."""
    if path in tables.ANSWER_ITSELF:
        return _DROP  # `_answer` judges it
    if path == "body/data" and chunks is not None:
        if not chunks(node):
            raise BlockedError("tensors that are no part of the answer that the guard passed")
        return node
    if isinstance(node, dict) and node:
        return _clean_mapping(node, path, fits, taken, chunks)
    if isinstance(node, list | tuple) and node:
        items = [_clean(item, f"{path}[]", fits, taken, chunks) for item in node]
        return _DROP if any(item is _DROP for item in items) else items
    if isinstance(node, dict):
        path, text = f"{path}/{{}}", ""
    elif isinstance(node, list | tuple):
        path, text = f"{path}[]", ""
    else:
        text = node.decode("latin-1") if isinstance(node, bytes) else str(node)
    if fits(path, text):
        return node
    taken.append(path)
    return _DROP


def _clean_mapping(
    node: Mapping[Any, Any],
    path: str,
    fits: _Rules,
    taken: list[str],
    chunks: Callable[[Any], bool] | None,
) -> Any:
    kept = {}
    for key, value in node.items():
        if not _is_name(key):
            taken.append(f"{path}/?")
            continue
        clean = _clean(value, f"{path}/{key}", fits, taken, chunks)
        if clean is not _DROP:
            kept[key] = clean
    return kept or _DROP


def _is_name(key: object) -> bool:
    return isinstance(key, str) and re.fullmatch(r"[\w.-]{1,100}", key) is not None


_KNOWN_WORDS = frozenset(
    word
    for table in (tables.HEADERS, *tables.JOB_MESSAGES.values(), *tables.PARENT_MESSAGES.values())
    for path in table
    for word in re.findall(r"\w+", path)
)


def _shown(path: str) -> str:
    """A field's path as it may be noted: a name that is in no table may be anything, a patient's too."""
    known = _KNOWN_WORDS | {"header", ""}
    return "/".join(part if part.rstrip("[]{}") in known else "?" for part in path.split("/"))


def _text_fits(pattern: str, value: object) -> bool:
    return re.fullmatch(pattern, str(value)) is not None


def _rules(frame: Frame, table: Mapping[str, str]) -> _Rules:
    compiled = _compiled(tuple(table.items()), frame.site, frame.job, frame.topic)

    def fits(path: str, text: str) -> bool:
        return any(rule.fullmatch(path) and value.fullmatch(text) for rule, value in compiled)

    return fits


@functools.lru_cache(maxsize=64)
def _compiled(
    table: tuple[tuple[str, str], ...], site: str, job: str, topic: str
) -> list[tuple[re.Pattern[str], re.Pattern[str]]]:
    words = {
        "SITE": re.escape(site),
        "JOB": re.escape(job) if job else tables.UUID,
        "ME": re.escape(f"{site}.{job}" if job else site),
        "TOPIC": re.escape(topic.partition(":")[2] or topic),
        "UUID": tables.UUID,
        "TIME": tables.TIME,
        "SIZE": tables.SIZE,
        "ADMIN_TOPIC": tables.ADMIN_TOPICS,
    }
    bodies = {**words, "ADMIN_BODY": tables.ADMIN_BODIES.replace("SITE", words["SITE"])}

    def filled(pattern: str) -> str:
        return re.sub(r"\b(ADMIN_BODY|ADMIN_TOPIC|SITE|JOB|ME|TOPIC|UUID|TIME|SIZE)\b", _group(bodies), pattern)

    return [(re.compile(path), re.compile(filled(value))) for path, value in table]


def _group(words: Mapping[str, str]) -> Callable[[re.Match[str]], str]:
    return lambda match: f"(?:{words[match.group()]})"
