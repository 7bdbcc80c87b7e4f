"""The guard's word to the gate, inside one job process: which answer it let pass, as it will be on the wire."""

from __future__ import annotations

import copy
import hashlib
import threading
from collections.abc import Mapping

import torch
from nvflare.apis.shareable import ReservedHeaderKey, Shareable, make_reply
from safetensors.torch import save

from fedscan.federation.gate_answer import PassedAnswer
from fedscan.federation.messages import META_KEY

_lock = threading.Lock()
_reply: Shareable | None = None
_answer: PassedAnswer | None = None


def note_passed(reply: Shareable) -> None:
    """The guard's fresh reply: from now on this answer may leave, and no other. A reply without answer ends that."""
    global _reply, _answer
    answer = None
    if "DXO" in reply:
        tensors = reply["DXO"]["data"]
        answer = PassedAnswer(
            record=copy.deepcopy(reply["DXO"]["meta"][META_KEY]),
            names=tuple(tensors),
            items=_items(tensors),
        )
    with _lock:
        _reply, _answer = _copy(reply), answer


def passed_answer() -> PassedAnswer | None:
    """What may leave."""
    with _lock:
        return _answer


def restore(result: Shareable, code_if_none: str, *, whole: bool) -> bool:
    """Makes `result` in place what the guard passed; a bare code where it passed nothing, or where the tensors were
    changed since. Not `whole`: its headers stay as they are. True: it was changed.
    """
    with _lock:
        wanted = _copy(_reply) if _reply is not None and _intact() else make_reply(code_if_none)
    changed = not _same(result, wanted, whole)
    headers = result.get(ReservedHeaderKey.HEADERS)
    result.clear()
    result.update(wanted)
    if not whole and isinstance(headers, dict):
        result[ReservedHeaderKey.HEADERS] = headers | wanted[ReservedHeaderKey.HEADERS]
    return changed


def _intact() -> bool:
    return _answer is None or _reply is None or _items(_reply["DXO"]["data"]) == _answer.items


def _items(tensors: Mapping[str, torch.Tensor]) -> tuple[str, ...]:
    """SHA-256 of each tensor as NVFlare hands it out."""
    return tuple(hashlib.sha256(save({f"T{k}": tensor})).hexdigest() for k, tensor in enumerate(tensors.values()))


def _copy(reply: Shareable) -> Shareable:
    """All of it anew but the tensors: their bytes are held against their hashes at the door."""
    fresh = Shareable()
    fresh.clear()
    for key, value in reply.items():
        if key == "DXO":
            fresh[key] = {**copy.deepcopy({k: v for k, v in value.items() if k != "data"}), "data": dict(value["data"])}
        else:
            fresh[key] = copy.deepcopy(value)
    return fresh


def _same(result: Shareable, wanted: Shareable, whole: bool) -> bool:
    if set(result) != set(wanted):
        return False
    if whole and result.get(ReservedHeaderKey.HEADERS) != wanted.get(ReservedHeaderKey.HEADERS):
        return False
    ours, theirs = wanted.get("DXO"), result.get("DXO")
    if ours is None or theirs is None:
        return ours is theirs
    if set(ours) != set(theirs) or ours["kind"] != theirs["kind"] or ours["meta"] != theirs["meta"]:
        return False
    return list(ours["data"]) == list(theirs["data"]) and all(
        ours["data"][name] is theirs["data"][name] for name in ours["data"]
    )
