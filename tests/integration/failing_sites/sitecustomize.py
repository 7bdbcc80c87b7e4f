"""Where this folder is on PYTHONPATH, sites fail in a round while a file in FEDSCAN_TEST_CAUSES holds its number.

`dies`: each trainer child is killed at its first step. `loses`: each job process says that it has no answer, once the
answer is trained, paid for and kept.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import os
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

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


class _Finder(importlib.abc.MetaPathFinder):
    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> Any:
        if name not in CHANGED:
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path, target)
        if spec is not None and spec.loader is not None:
            execute = spec.loader.exec_module

            def exec_module(module: ModuleType) -> None:
                execute(module)
                CHANGED[name](module)

            spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


if CAUSES:
    sys.meta_path.insert(0, _Finder())
