"""Layers whose backward brings each patient's weight gradient in place of the sum: nothing is computed twice.

Each `torch.autograd.Function` saves what the plain layer saves, returns the input's gradient for the whole batch and
None for weight and bias (autograd then skips their sums), and hands the per-patient gradients to the `PatientBatch`.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import Function, once_differentiable
from torch.nn import functional

from fedscan.privacy.gradient_rows import EvenRows, PatientBatch, Rows


class LinearFunction(Function):
    """Of nn.Linear on [rows, ..., C]."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, layer: nn.Linear, batch: PatientBatch
    ) -> Tensor:
        x, cast_weight = as_autocast(x), as_autocast(weight)
        ctx.save_for_backward(x, cast_weight)
        ctx.layer, ctx.batch = layer, batch
        return functional.linear(x, cast_weight, None if bias is None else as_autocast(bias))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gy: Tensor) -> tuple[Tensor | None, None, None, None, None]:
        (x, weight), layer, batch = ctx.saved_tensors, ctx.layer, ctx.batch
        with no_autocast(gy):
            by_row = gy.reshape(len(gy), -1, gy.shape[-1])  # [rows, T, O]
            if ctx.needs_input_grad[1]:
                x_by_row = x.reshape(len(x), -1, x.shape[-1])
                batch.add(layer.weight, linear_weight_gradients(x_by_row, by_row, batch.rows))
            if ctx.needs_input_grad[2]:
                batch.add(layer.bias, batch.rows.sum(by_row.sum(1, dtype=layer.bias.dtype)))
            gx = gy @ weight if ctx.needs_input_grad[0] else None
        return gx, None, None, None, None


def linear_weight_gradients(x: Tensor, gy: Tensor, rows: Rows) -> Tensor:
    """[patients, O, C] from inputs [rows, T, C] and output gradients [rows, T, O]."""
    if not isinstance(rows, EvenRows):
        parts = [gy[rows.of(p)].flatten(0, 1).T @ x[rows.of(p)].flatten(0, 1) for p in range(rows.patients)]
        return torch.stack(parts)
    m, patients = rows.per_patient, rows.patients
    if x.shape[1] == 1:
        return torch.bmm(gy.view(m, patients, -1).permute(1, 2, 0), x.view(m, patients, -1).transpose(0, 1))
    x, gy = x.view(m, patients, *x.shape[1:]), gy.view(m, patients, *gy.shape[1:]).transpose(2, 3)
    gradients = torch.bmm(gy[0], x[0])
    for j in range(1, m):
        gradients.baddbmm_(gy[j], x[j])
    return gradients


class GroupNormFunction(Function):
    """Of nn.GroupNorm on [rows, C, ...].

    In the backward rows become channels of one picture, [1, rows * C, ...]: the kernel's weight gradients are by row.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, layer: nn.GroupNorm, batch: PatientBatch) -> Tensor:
        x = _as_norm_input(x).contiguous()
        rows, channels, area = len(x), x.shape[1], x[0, 0].numel()
        y, mean, rstd = torch.native_group_norm(x, weight, bias, rows, channels, area, layer.num_groups, layer.eps)
        ctx.save_for_backward(x, weight, mean, rstd)
        ctx.sizes = (1, rows * channels, area, rows * layer.num_groups)
        ctx.layer, ctx.batch = layer, batch
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gy: Tensor) -> tuple[Tensor | None, None, None, None, None]:
        (x, weight, mean, rstd), layer, batch = ctx.saved_tensors, ctx.layer, ctx.batch
        with no_autocast(gy):
            wanted = (ctx.needs_input_grad[0], True, True)
            gx, *by_row = torch.ops.aten.native_group_norm_backward(
                gy.contiguous(), x, mean, rstd, weight.repeat(len(x)), *ctx.sizes, wanted
            )
            for at, parameter in enumerate((layer.weight, layer.bias)):
                if ctx.needs_input_grad[1 + at]:
                    batch.add(parameter, batch.rows.sum(by_row[at].view(len(x), -1)))
        return gx, None, None, None, None


class LayerNormFunction(Function):
    """Of nn.LayerNorm on [rows, ..., *normalized_shape]."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, layer: nn.LayerNorm, batch: PatientBatch) -> Tensor:
        x = _as_norm_input(x)
        y, mean, rstd = torch.native_layer_norm(x, list(layer.normalized_shape), weight, bias, layer.eps)
        ctx.save_for_backward(x, weight, bias, mean, rstd)
        ctx.layer, ctx.batch = layer, batch
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gy: Tensor) -> tuple[Tensor | None, None, None, None, None]:
        (x, weight, bias, mean, rstd), layer, batch = ctx.saved_tensors, ctx.layer, ctx.batch
        shape, gx = list(layer.normalized_shape), None
        with no_autocast(gy):
            if ctx.needs_input_grad[1]:
                by_row = (gy * ((x - mean) * rstd)).reshape(len(x), -1, *shape).sum(1, dtype=weight.dtype)
                batch.add(layer.weight, batch.rows.sum(by_row))
            if ctx.needs_input_grad[2]:
                by_row = gy.reshape(len(x), -1, *shape).sum(1, dtype=bias.dtype)
                batch.add(layer.bias, batch.rows.sum(by_row))
            if ctx.needs_input_grad[0]:
                wanted = (True, False, False)
                gx = torch.ops.aten.native_layer_norm_backward(gy, x, shape, mean, rstd, weight, bias, wanted)[0]
        return gx, None, None, None, None


class EmbeddingFunction(Function):
    """Of nn.Embedding on int64 [rows, ...]."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: None, layer: nn.Embedding, batch: PatientBatch) -> Tensor:
        ctx.save_for_backward(x)
        ctx.layer, ctx.batch = layer, batch
        return functional.embedding(x, weight)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gy: Tensor) -> tuple[None, None, None, None, None]:
        (x,), layer, batch = ctx.saved_tensors, ctx.layer, ctx.batch
        patients, (entries, features) = batch.rows.patients, layer.weight.shape
        index = x.reshape(len(x), -1) + batch.rows.patient_of_row(x.device)[:, None] * entries
        gradients = gy.new_zeros(patients * entries, features)
        gradients.index_add_(0, index.flatten(), gy.reshape(-1, features))
        batch.add(layer.weight, gradients.view(patients, entries, features))
        return None, None, None, None, None


def as_autocast(tensor: Tensor) -> Tensor:
    """As autocast treats the operands of a product: float32 to its type, float64 left alone."""
    kind = tensor.device.type
    if tensor.dtype != torch.float64 and torch.is_autocast_enabled(kind):
        return tensor.to(torch.get_autocast_dtype(kind))
    return tensor


def no_autocast(tensor: Tensor) -> AbstractContextManager[object]:
    """For a backward: a caller may run it under autocast, which would cast what must stay float32."""
    kind = tensor.device.type
    return torch.autocast(kind, enabled=False) if torch.is_autocast_enabled(kind) else nullcontext()


def _as_norm_input(x: Tensor) -> Tensor:
    """As autocast treats norms: on a GPU in float32, on the CPU in the input's own precision."""
    return x.float() if x.device.type == "cuda" and torch.is_autocast_enabled("cuda") else x
