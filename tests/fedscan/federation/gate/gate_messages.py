"""Messages of a site's processes as NVFlare 2.9 writes them, for the tests of the gate."""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Callable
from typing import Any

import torch
from nvflare.apis.dxo import DXO, DataKind
from nvflare.apis.shareable import Shareable
from nvflare.app_opt.pt.decomposers import TensorDecomposer
from nvflare.fuel.utils import fobs
from nvflare.private.fed.utils.fed_utils import nvflare_fobs_initialize
from safetensors.torch import save

from fedscan.federation.gate_answer import PassedAnswer
from fedscan.federation.gate_frames import Frame, pack, unpack

nvflare_fobs_initialize()
fobs.register(TensorDecomposer)

SITE, JOB = "hosp-a", str(uuid.UUID(int=7))
ME = f"{SITE}.{JOB}"
PATIENT = "P-4711"
RECORD = {"plan_digest": "a" * 64, "run_id": "b" * 32, "round_number": 3, "model_digest": "c" * 64, "weight": 1.0}
TENSORS = {"net.a": torch.arange(4.0), "net.b": torch.ones(2, 3)}
ITEMS = [save({f"T{k}": tensor}) for k, tensor in enumerate(TENSORS.values())]
PASSED = PassedAnswer(RECORD, tuple(TENSORS), tuple(hashlib.sha256(item).hexdigest() for item in ITEMS))
REFERENCE = (101, 6, b"i" * 16)


def frame(channel: str, topic: str, payload: bytes = b"", kind: str = "req", me: str = ME, **headers: Any) -> Frame:
    """As NVFlare's cell fills it in."""
    own = {
        "cn__channel": channel,
        "cn__topic": topic,
        "cn__msg_type": kind,
        "cn__from": me,
        "cn__origin": me,
        "cn__to": "server",
        "cn__destination": f"server.{JOB}" if "." in me else "server",
        "cn__route": [[me, 1795539145.03]],
        "cn__payload_encoding": "fobs",
        "cn__payload_len": len(payload),
        "cn__req_id": str(uuid.UUID(int=1)),
        "cn__reply_expected": True,
        "cn__secure": False,
        "cn__optional": True,
    }
    return Frame("data", me, "server", "CN1", own | headers, payload)


def streamed(channel: str, topic: str, payload: bytes, **headers: Any) -> Frame:
    stream = {"sm__ch": channel, "sm__tp": topic, "sm__dt": 2, "sm__sq": 0, "sm__os": 0, "sm__id": 5}
    sizes = {"sm__sz": len(payload), "sm__rs": False, "sm__pe": "fobs"}
    return frame("sm__STREAM", "sm__DATA", payload, **stream, **sizes, **headers)


def contextual(**props: Any) -> Shareable:
    message = Shareable()
    own = {"__run_num__": JOB, "__identity_name__": SITE, "__client_name__": SITE, "__is_leaf__": True}
    message.set_header("__peer_props__", own | props)
    message.set_header("__topic__", "__task_check__")
    message.set_header("__task_id__", str(uuid.UUID(int=2)))
    return message


def result(change: Callable[[Any], object] = lambda _: None, *, round_number: int = 3) -> bytes:
    """An answer as it is on the wire: its tensors are references."""
    message = DXO(DataKind.WEIGHT_DIFF, data={"x": torch.zeros(1)}, meta={"fedscan": RECORD}).to_shareable()
    message.set_header("__task_name__", "train")
    message.set_cookie_jar({"__workflow__": "fedavg", "contribution_round": round_number})
    main, _ = unpack(fobs.dumps(message))
    shape = {"__fobs_type__": "torch.Tensor", "__fobs_dc__": "nvflare.app_opt.pt.decomposers.TensorDecomposer"}
    main["__fobs_data__"]["DXO"]["data"] = {
        name: {**shape, "__fobs_data__": {"type": "ref", "data": f"T{k}"}} for k, name in enumerate(TENSORS)
    }
    change(main["__fobs_data__"])
    reference = b'{"fqcn": "%s", "ref_id": "%s"}' % (ME.encode(), str(uuid.UUID(int=9)).encode())
    return pack(main, [(*REFERENCE, reference)])


def submit(payload: bytes) -> Frame:
    return streamed("server_command", "submit_update", payload)


def chunk(items: list[bytes], start: int = 0, **more: Any) -> Frame:
    body = {"status": "ok", "state": {"start": start, "count": len(items)}, "data": items, **more}
    payload = pack(body, [])
    return streamed("return_only", "download_service__:download_service__download", payload)


def parent(channel: str, topic: str, payload: bytes, kind: str = "req") -> Frame:
    return frame(channel, topic, payload, kind=kind, me=SITE)
