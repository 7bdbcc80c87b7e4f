"""The answer of a round in a message: its record, its tensors' references and its chunks, held against what the guard
let pass."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from fedscan.federation import gate_tables as tables
from fedscan.federation.gate_clean import text_fits
from fedscan.federation.gate_frames import BLOB, TEXT, BlockedError, Frame

_META_KEY = "fedscan"
_TENSOR_REFERENCE = 6  # NVFlare's object type of a section that says where tensors are to be fetched


@dataclass(frozen=True)
class PassedAnswer:
    """What the guard let pass, in the form in which NVFlare sends it."""

    record: Mapping[str, Any]
    names: tuple[str, ...]
    """Of the tensors, in their order in the reply."""
    items: tuple[str, ...]
    """SHA-256 of each tensor as it is fetched: one safetensors file with the tensor `T<number>`."""


def put_back(clean: Any, main: Any, passed: PassedAnswer | None) -> Any:
    """Puts the answer back that `known_part` left out, if it is the one that the guard passed. Raises BlockedError."""
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
    answer = {"kind": kept.get("kind"), "data": original["data"], "meta": original["meta"]}
    body["DXO"] = _in_order_of(original, answer)
    clean["__fobs_data__"] = _in_order_of(main["__fobs_data__"], body)
    return clean


def _in_order_of(sent: Mapping[str, Any], known: Mapping[str, Any]) -> dict[str, Any]:
    """As it was sent: a message of which nothing was taken out goes byte for byte."""
    return {key: known[key] for key in sent if key in known}


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


def references(frame: Frame, behind: list[tuple[int, int, bytes, bytes]]) -> list[tuple[int, int, bytes, bytes]]:
    """Where the tensors are to be fetched: at this process, by a random identity, and nothing else. Or BlockedError."""
    if len(behind) > 1:
        raise BlockedError("more than one reference behind a result")
    for marker, kind, _, data in behind:
        try:
            told = json.loads(data)
        except ValueError:
            told = None
        wanted = {"fqcn": frame.me, "ref_id": told.get("ref_id") if isinstance(told, dict) else None}
        if (
            (marker, kind) != (TEXT, _TENSOR_REFERENCE)
            or told != wanted
            or not text_fits(tables.UUID, wanted["ref_id"])
        ):
            raise BlockedError("a reference of another form behind a result")
        if len(data) > len(json.dumps(wanted)):
            raise BlockedError("a reference of another form behind a result")
    return behind


def is_chunk(main: Any, behind: list[tuple[int, int, bytes, bytes]], passed: PassedAnswer | None, value: Any) -> bool:
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
