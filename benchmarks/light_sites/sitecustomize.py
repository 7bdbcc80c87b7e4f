"""Where this folder is on PYTHONPATH: sites that do not train, to measure what a round costs beside training.

FEDSCAN_LIGHT=child: the trainer child answers an update of small random numbers at once; all else is real.
FEDSCAN_LIGHT=none: there is no child either, and the site's own process writes that update: for many sites. It does
not load MONAI for the form of an update, but reads it from the file FEDSCAN_LIGHT_FORM.
FEDSCAN_LIGHT_S: seconds that each training takes, asleep.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

SWITCH = "FEDSCAN_LIGHT"


def update_of(weights: dict[str, Any]) -> dict[str, Any]:
    """float32 noise of every parameter's shape, after FEDSCAN_LIGHT_S seconds."""
    import torch

    time.sleep(float(os.environ.get(f"{SWITCH}_S", "0")))
    return {name: torch.empty_like(tensor).bernoulli_(0.5).mul_(1e-4) for name, tensor in weights.items()}


def without_steps(module: ModuleType) -> None:
    """The child's training."""

    def round_(self: Any, weights: dict[str, Any], *_args: Any, **_named: Any) -> Any:
        return module.RoundResult(
            update=update_of(weights), loss=1.0, epoch_losses=(1.0,), examples=1, patients=1, steps=1, state=None
        )

    module.LocalTrainer.round = round_  # type: ignore[attr-defined]


def without_child(module: ModuleType) -> None:
    """The site's side of the child."""
    from fedscan.training import tensor_file
    from fedscan.training.trainer_replies import Answer

    def train(self: Any, _round: int, received: Path, out: Path, *_args: Any, **_named: Any) -> Answer:
        started = time.monotonic()
        weights, _ = tensor_file.load_tensors(received)
        tensor_file.save_tensors(out, update_of(weights), {})
        seconds = time.monotonic() - started
        return Answer(out, 1.0, (1.0,), 1, 1, "patient", "hu", None, 1, seconds, None)

    module.Trainer.train = train  # type: ignore[attr-defined]
    module.Trainer.start = lambda self: None  # type: ignore[attr-defined]


def without_monai(module: ModuleType) -> None:
    """The form of the plan's model."""
    import torch
    from safetensors import safe_open

    def shapes_of(_model: Any) -> dict[str, Any]:
        with safe_open(os.environ[f"{SWITCH}_FORM"], "pt") as file:
            shapes = {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118 - no mapping
        return {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}

    module.shapes_of = shapes_of  # type: ignore[attr-defined]


CHANGED: dict[str, dict[str, Callable[[ModuleType], None]]] = {
    "child": {"fedscan.training.local": without_steps},
    "none": {"fedscan.training.trainer_client": without_child, "fedscan.training.weights": without_monai},
}


class _Finder(importlib.abc.MetaPathFinder):
    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> Any:
        change = CHANGED[os.environ[SWITCH]].get(name)
        if change is None:
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path, target)
        if spec is not None and spec.loader is not None:
            execute = spec.loader.exec_module

            def exec_module(module: ModuleType) -> None:
                execute(module)
                change(module)

            spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


if SWITCH in os.environ:
    sys.meta_path.insert(0, _Finder())
