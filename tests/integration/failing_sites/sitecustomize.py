"""Where this folder is on PYTHONPATH, sites fail in a round while a file in FEDSCAN_TEST_CAUSES holds its number.

`dies`: each trainer child is killed at its first step. `loses`: each job process says that it has no answer, once the
answer is trained, paid for and kept.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

sys.path.append(str(Path(__file__).resolve().parent.parent / "changing"))
from change_on_import import on_import

CAUSES = os.environ.get("FEDSCAN_TEST_CAUSES", "")


def _is_there(cause: str, number: int) -> bool:
    path = Path(CAUSES) / cause
    return path.exists() and int(path.read_text()) == number


_order = {"round": -1}


def _protocol(module: ModuleType) -> None:
    original = module.request

    def request(line: bytes) -> Any:
        order = original(line)
        if order.kind == "train":
            _order["round"] = order.round_number
        return order

    module.request = request  # type: ignore[attr-defined]


def _mechanism(module: ModuleType) -> None:
    original = module.Mechanism.draw

    def draw(self: Any, patients: int) -> Any:
        if _is_there("dies", _order["round"]):
            os.kill(os.getpid(), signal.SIGKILL)
        return original(self, patients)

    module.Mechanism.draw = draw


def _executor(module: ModuleType) -> None:
    original = module.DiffusionExecutor.execute

    def execute(self: Any, task_name: str, shareable: Any, *others: Any) -> Any:
        number = shareable["DXO"]["meta"]["fedscan"]["round_number"]
        reply = original(self, task_name, shareable, *others)
        if _is_there("loses", number):
            return module.make_reply(module.messages.REFUSED_BY_POLICY)
        return reply

    module.DiffusionExecutor.execute = execute


CHANGED: dict[str, Callable[[ModuleType], None]] = {
    "fedscan.training.trainer_protocol": _protocol,
    "fedscan.privacy.mechanism": _mechanism,
    "fedscan.federation.job.executor": _executor,
}


if CAUSES:
    on_import(CHANGED)
