"""Per-patient gradients against explicit autograd, one call a patient."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import pytest
import torch
from fedscan.diffusion.network import DiffusionNetwork, autocast, build_network
from fedscan.plan import ModelPlan
from fedscan.privacy.gradient_rows import EvenRows, GradientError, Rows, UnevenRows
from fedscan.privacy.gradients import Engine, PatientGradients
from torch import Tensor, nn

RELATIVE = 1e-6
"""Of the issue: float64 against explicit per-patient autograd."""
ENGINES: tuple[Engine, ...] = ("kernels", "loop")

Gradients = dict[str, Tensor]


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def perturbed(module: nn.Module, seed: int = 0) -> nn.Module:
    """A fresh network outputs exactly 0 and has almost no gradients: tests on it would say nothing."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter += 0.05 * torch.randn(parameter.shape, generator=generator, dtype=torch.float32).to(parameter)
    return module


def network(preset: Literal["tiny", "small", "medium"], fold: Literal[1, 2], classes: int = 0) -> DiffusionNetwork:
    plan = ModelPlan(preset=preset, fold=fold, size=16, classes=tuple(f"class{i}" for i in range(classes)))
    built = perturbed(build_network(plan, torch.Generator().manual_seed(1)))
    assert isinstance(built, DiffusionNetwork)
    return built


def inputs(rows: int, classes: int = 0, size: int = 16) -> tuple[Any, ...]:
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(rows, 1, size, size, generator=generator)
    t = torch.randint(1000, (rows,), generator=generator)
    return (x, t, torch.randint(classes + 1, (rows,), generator=generator)) if classes else (x, t)


def mean_losses(output: Tensor, rows: Rows) -> Tensor:
    """[patients]: each patient's mean over its rows of a loss that is not linear in the output."""
    by_row = (output.float() if output.dtype == torch.bfloat16 else output).sin().square().flatten(1).sum(1)
    return torch.stack([by_row[rows.of(p)].mean() for p in range(rows.patients)])


def oracle(module: nn.Module, args: Sequence[Any], rows: Rows, names: Sequence[str] | None = None) -> Gradients:
    """One forward and one `torch.autograd.grad` a patient, on that patient's rows alone, without the code under test."""
    parameters = {n: p for n, p in module.named_parameters() if names is None or n in names}
    by_patient = []
    for p in range(rows.patients):
        output = module(*(a[rows.of(p)] for a in args))
        loss = mean_losses(output, EvenRows(1, len(output)))[0]
        by_patient.append(torch.autograd.grad(loss, list(parameters.values())))
    return {name: torch.stack(parts) for name, parts in zip(parameters, zip(*by_patient, strict=True), strict=True)}


def ours(wrapped: PatientGradients, args: Sequence[Any], rows: Rows) -> Gradients:
    keywords: dict[str, Any] = {"groups": rows.groups} if isinstance(rows, UnevenRows) else {"patients": rows.patients}
    mean_losses(wrapped(*args, **keywords), rows).sum().backward()
    parameters = wrapped.trainable_parameters
    assert all(p.grad is None for p in parameters.values()), "a summed gradient was computed too"
    return {name: p.grad_sample for name, p in parameters.items()}  # type: ignore[attr-defined]


def worst(got: Gradients, wanted: Gradients) -> float:
    """Largest error of any patient's gradient of any parameter, relative to that gradient's norm (or to 1e-9 of the
    patient's whole norm: a key's bias has exactly no gradient)."""
    assert got.keys() == wanted.keys()
    whole = torch.stack([w.flatten(1).norm(dim=1) for w in wanted.values()]).norm(dim=0)
    errors = [
        (got[n].to(w.dtype) - w).flatten(1).norm(dim=1) / torch.maximum(w.flatten(1).norm(dim=1), 1e-9 * whole)
        for n, w in wanted.items()
    ]
    return float(torch.stack(errors).max())


def whole_error(got: Gradients, wanted: Gradients) -> float:
    """Largest error of a patient's whole gradient, relative to its norm."""
    error = torch.stack([(got[n].to(w.dtype) - w).flatten(1).norm(dim=1) for n, w in wanted.items()]).norm(dim=0)
    return float((error / torch.stack([w.flatten(1).norm(dim=1) for w in wanted.values()]).norm(dim=0)).max())


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("rows", [EvenRows(3, 2), EvenRows(3, 1), EvenRows(1, 3), UnevenRows((3, 1, 2))], ids=str)
@pytest.mark.parametrize("fold", [1, 2])
def test_tiny_network_with_classes(engine: Engine, rows: Rows, fold: Literal[1, 2]) -> None:
    net = network("tiny", fold, classes=3).double()
    x, t, labels = inputs(rows.total, classes=3)
    args = (x.double(), t, labels)
    wanted = oracle(net, args, rows)
    assert worst(ours(PatientGradients(net, engine=engine), args, rows), wanted) < RELATIVE
