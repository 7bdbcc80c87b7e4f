"""Per-patient gradients the plain way: one forward and one backward a patient. Slower; no rule for any layer in it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import Function, once_differentiable

from fedscan.privacy.gradient_rows import GradientError, PatientBatch


class _Loop(Function):
    """Keeps a graph for each patient; parameters are inputs only so that autograd calls backward."""

    @staticmethod
    def forward(ctx: Any, forward: Callable[[slice], Tensor], batch: PatientBatch, *parameters: nn.Parameter) -> Tensor:
        rows = batch.rows
        with torch.enable_grad():
            outputs = [forward(rows.of(patient)) for patient in range(rows.patients)]
        ctx.outputs, ctx.batch, ctx.parameters = outputs, batch, parameters
        whole = outputs[0].new_empty(rows.total, *outputs[0].shape[1:])
        for patient, output in enumerate(outputs):
            whole[rows.of(patient)] = output.detach()
        return whole

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gy: Tensor) -> tuple[None, ...]:
        rows, parameters = ctx.batch.rows, ctx.parameters
        outputs, ctx.outputs = ctx.outputs, None
        gradients: dict[int, Tensor] = {}
        for patient in range(rows.patients):
            output, outputs[patient] = outputs[patient], None  # frees the patient's graph when done
            one = torch.autograd.grad(output, parameters, gy[rows.of(patient)], allow_unused=True)
            for at, gradient in enumerate(one):
                if gradient is not None:
                    whole = gradients.setdefault(at, gradient.new_zeros(rows.patients, *gradient.shape))
                    whole[patient] = gradient
        for at, whole in gradients.items():
            ctx.batch.add(parameters[at], whole)
        return (None,) * (2 + len(parameters))


def looped(
    module: nn.Module,
    parameters: Sequence[nn.Parameter],
    batch: PatientBatch,
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
) -> Tensor:
    """`module(*args, **kwargs)` [rows, ...] whose backward hands each patient's gradients to `batch`."""
    total = batch.rows.total

    def part(value: Any, rows: slice) -> Any:
        return value[rows] if isinstance(value, Tensor) else value

    def forward(rows: slice) -> Tensor:
        output: Tensor = module(*(part(a, rows) for a in args), **{k: part(v, rows) for k, v in kwargs.items()})
        return output

    for value in (*args, *kwargs.values()):
        if isinstance(value, Tensor) and (value.ndim == 0 or len(value) != total or value.requires_grad):
            raise GradientError(
                "the loop needs tensors of one entry a row that need no gradient of their own: pass constants as "
                "numbers, or use the other engine"
            )
    result: Tensor = _Loop.apply(forward, batch, *parameters)  # type: ignore[no-untyped-call]
    return result
