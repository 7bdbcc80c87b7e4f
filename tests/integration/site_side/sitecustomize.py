"""Where this folder is on PYTHONPATH: every DP step that a process begins is noted in FEDSCAN_TEST_STEPS, from outside.

A line is appended before the step's patients are drawn: not all that is noted was taken, all that was taken is noted.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

sys.path.append(str(Path(__file__).resolve().parent.parent / "changing"))
from change_on_import import on_import

LOG = "FEDSCAN_TEST_STEPS"
_order: dict[str, Any] = {}


def note(line: dict[str, Any]) -> None:
    """Appends one line, whole."""
    file = os.open(os.environ[LOG], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    try:
        os.write(file, json.dumps({"pid": os.getpid(), **line}).encode() + b"\n")
    finally:
        os.close(file)


def watch_protocol(module: ModuleType) -> None:
    """Which run, round and charge the trainer is ordered to train."""
    original = module.request

    def request(line: bytes) -> Any:
        order = original(line)
        if order.kind == "start":
            _order.update(site=order.site, run=order.run_id)
        elif order.kind == "train":
            _order.update(round=order.round_number, charge=order.charge)
        return order

    module.request = request  # type: ignore[attr-defined]


def watch_mechanism(module: ModuleType) -> None:
    """Each draw, which begins a step."""
    original = module.Mechanism.draw

    def draw(self: Any, patients: int) -> Any:
        note(
            {
                **_order,
                "noise_multiplier": self._optimiser.noise_multiplier,
                "sample_rate": self._sampling.sample_rate,
                "unit": self.event.unit,
            }
        )
        return original(self, patients)

    module.Mechanism.draw = draw


WATCHED: dict[str, Callable[[ModuleType], None]] = {
    "fedscan.training.trainer_protocol": watch_protocol,
    "fedscan.privacy.mechanism": watch_mechanism,
}


if LOG in os.environ:
    on_import(WATCHED)
