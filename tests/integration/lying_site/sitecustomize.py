"""Where this folder is on PYTHONPATH: the job process of FEDSCAN_TEST_LIAR answers round N with the lie of that number.

The lie comes after training and keeping, in the place of the answer; a site that lies has neither guard nor gate.
"""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

sys.path.append(str(Path(__file__).resolve().parent.parent / "changing"))
from change_on_import import on_import

LIAR = os.environ.get("FEDSCAN_TEST_LIAR", "")
_next = {"payloads": 0, "tensors": 0}
"""How many of the next ones are broken."""
_earlier: list[Any] = []


def honest(reply: Any) -> Any:
    _earlier.append(reply)
    return reply


def nan(reply: Any) -> Any:
    first = next(iter(reply["DXO"]["data"].values()))
    first.view(-1)[0] = float("nan")
    return reply


def shapes(reply: Any) -> Any:
    data = reply["DXO"]["data"]
    reply["DXO"]["data"] = {name: tensor.reshape(-1) for name, tensor in data.items()}
    return reply


def missing(reply: Any) -> Any:
    reply["DXO"]["data"].popitem()
    return reply


def huge(reply: Any) -> Any:
    data = reply["DXO"]["data"]
    reply["DXO"]["data"] = {name: tensor * 100.0 for name, tensor in data.items()}
    return reply


def stale(reply: Any) -> Any:
    return _earlier[0]


def record(reply: Any) -> Any:
    reply["DXO"]["meta"]["fedscan"] = os.urandom(500)
    return reply


def bytes_for_tensors(reply: Any) -> Any:
    reply["DXO"]["data"] = os.urandom(2**20)
    return reply


def bytes_in_tensors(reply: Any) -> Any:
    reply["DXO"]["data"] = {name: os.urandom(1000) for name in reply["DXO"]["data"]}
    return reply


def no_update(reply: Any) -> Any:
    from nvflare.apis.shareable import Shareable

    return Shareable({"x": os.urandom(2**20)})


def no_shareable(reply: Any) -> Any:
    return os.urandom(2**20)


def unknown(reply: Any) -> Any:
    import torch

    reply["DXO"]["data"]["more"] = torch.zeros(10)
    return reply


def large(reply: Any) -> Any:
    import torch

    reply["DXO"]["data"]["more"] = torch.zeros(2**26)  # 256 MiB
    return reply


def many(reply: Any) -> Any:
    import torch

    reply["DXO"]["data"] |= {f"more-{number}": torch.zeros(2**22) for number in range(16)}  # 16 MiB each
    return reply


def large_message(reply: Any) -> Any:
    """Beside the tensors, which are fetched: in the message itself, past the bound of this site's own kit, too."""
    from nvflare.fuel.f3.streaming import blob_streamer

    for handler in [h for h in gc.get_objects() if isinstance(h, blob_streamer.BlobHandler)]:
        handler.max_blob_size = 0
    reply["DXO"]["data"] = os.urandom(2**28)
    return reply


def payload(reply: Any) -> Any:
    _next["payloads"] = 1000
    return reply


def payload_once(reply: Any) -> Any:
    """As when a line breaks an answer: NVFlare sends it again."""
    _next["payloads"] = 1
    return reply


def truncated(reply: Any) -> Any:
    _next["tensors"] = 10**6
    return reply


def frames(reply: Any) -> Any:
    """The answer is as it should be; on this process's own connection to the server random bytes come before it."""
    for connection in [c for c in gc.get_objects() if type(c).__name__ == "SfmConnection"]:
        if type(connection.conn).__name__ == "SocketConnection":  # to its own parent
            continue
        for size in (0, 1, 16, 1000, 2**20):
            connection.conn.send_frame(os.urandom(size))
        length, header = 100, 60000  # a head that is longer than its frame
        connection.conn.send_frame(length.to_bytes(4, "big") + header.to_bytes(2, "big") + b"\x01" + os.urandom(93))
    return reply


LIES: tuple[Callable[[Any], Any], ...] = (
    honest,
    nan,
    shapes,
    missing,
    huge,
    stale,
    record,
    bytes_for_tensors,
    bytes_in_tensors,
    no_update,
    no_shareable,
    unknown,
    large,
    many,
    large_message,
    truncated,
    payload,
    payload_once,
    frames,
    honest,
)


def _executor(module: ModuleType) -> None:
    original = module.DiffusionExecutor.execute

    def execute(self: Any, task_name: str, shareable: Any, *others: Any) -> Any:
        number = shareable["DXO"]["meta"]["fedscan"]["round_number"]
        reply = original(self, task_name, shareable, *others)
        _next.update(payloads=0, tensors=0)
        lie = LIES[number]
        print(f"round {number}: {lie.__name__}", flush=True)
        return lie(reply)

    module.DiffusionExecutor.execute = execute


def _cell(module: ModuleType) -> None:
    original = module.encode_payload

    def encode_payload(message: Any, *others: Any, **named: Any) -> int:
        is_answer = isinstance(message.payload, dict) and "DXO" in message.payload
        size: int = original(message, *others, **named)
        if is_answer and _next["payloads"]:
            _next["payloads"] -= 1
            message.payload = [os.urandom(size)]
        return size

    module.encode_payload = encode_payload  # type: ignore[attr-defined]


def _tensors(module: ModuleType) -> None:
    original = module.save_tensors

    def save_tensors(tensors: Any) -> bytes:
        whole: bytes = original(tensors)
        if not _next["tensors"]:
            return whole
        _next["tensors"] -= 1
        return whole[: len(whole) // 2]

    module.save_tensors = save_tensors  # type: ignore[attr-defined]


CHANGED: dict[str, Callable[[ModuleType], None]] = {
    "fedscan.federation.job.executor": _executor,
    "nvflare.fuel.f3.cellnet.cell": _cell,
    "nvflare.app_opt.pt.tensor_downloader": _tensors,
}


def _is_liar() -> bool:
    is_job = any(part.endswith("worker_process") for part in sys.orig_argv)
    return bool(LIAR) and is_job and any(part.endswith((f"/{LIAR}", f"uid={LIAR}")) for part in sys.orig_argv)


if _is_liar():
    on_import(CHANGED)
