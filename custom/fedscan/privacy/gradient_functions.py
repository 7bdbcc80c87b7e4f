"""Layers whose backward brings each patient's weight gradient in place of the sum: nothing is computed twice.

Each `torch.autograd.Function` saves what the plain layer saves, returns the input's gradient for the whole batch and
None for weight and bias (autograd then skips their sums), and hands the per-patient gradients to the `PatientBatch`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import Function, once_differentiable
from torch.nn import functional

from fedscan.privacy.gradient_rows import EvenRows, PatientBatch, Rows

GROUPED_MULTIPLE = 16
"""oneDNN's grouped weight gradient is fast for so many channels or a multiple; else a call for each patient wins."""


class _Conv2d(Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, layer: nn.Conv2d, batch: PatientBatch
    ) -> Tensor:
        x, cast_weight = _autocast(x), _autocast(weight)
        ctx.save_for_backward(x, cast_weight)
        ctx.layer, ctx.batch = layer, batch
        cast_bias = None if bias is None else _autocast(bias)
        return torch.conv2d(x, cast_weight, cast_bias, *_geometry(layer), layer.groups)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gy: Tensor) -> tuple[Tensor | None, None, None, None, None]:
        (x, weight), layer, batch = ctx.saved_tensors, ctx.layer, ctx.batch
        gy, gx = gy.contiguous(), None
        with _no_autocast(gy):
            if ctx.needs_input_grad[1]:
                batch.add(layer.weight, conv2d_weight_gradients(x, gy, layer, batch.rows))
            if ctx.needs_input_grad[2]:
                batch.add(layer.bias, batch.rows.sum(gy.sum((2, 3), dtype=layer.bias.dtype)))
            if ctx.needs_input_grad[0]:
                gx = _convolution_backward(gy, x, weight, layer, layer.groups, (True, False, False))[0]
        return gx, None, None, None, None


def conv2d_weight_gradients(x: Tensor, gy: Tensor, layer: nn.Conv2d, rows: Rows) -> Tensor:
    """[patients, *weight.shape] from inputs [rows, C, H, W] and output gradients [rows, O, H', W'].

    Slice-major rows of many channels: patients become groups of one convolution over [m, patients * C, H, W], a view.
    """
    shape = layer.weight.shape
    many = not (layer.in_channels % GROUPED_MULTIPLE or layer.out_channels % GROUPED_MULTIPLE)
    if isinstance(rows, EvenRows) and many:
        m, p = rows.per_patient, rows.patients
        grouped_x = x.contiguous().view(m, p * x.shape[1], *x.shape[2:])
        grouped_gy = gy.view(m, p * gy.shape[1], *gy.shape[2:])
        weight = gy.new_empty(p * shape[0], *shape[1:])  # the kernel reads its shape alone
        gradients = _convolution_backward(grouped_gy, grouped_x, weight, layer, p * layer.groups, (False, True, False))[
            1
        ]
        return gradients.view(p, *shape)
    weight = gy.new_empty(shape)
    parts = [
        _convolution_backward(gy[rows.of(p)], x[rows.of(p)], weight, layer, layer.groups, (False, True, False))[1]
        for p in range(rows.patients)
    ]
    return torch.stack(parts)


def _convolution_backward(
    gy: Tensor, x: Tensor, weight: Tensor, layer: nn.Conv2d, groups: int, wanted: tuple[bool, bool, bool]
) -> tuple[Tensor, Tensor, Tensor]:
    gradients: tuple[Tensor, Tensor, Tensor] = torch.ops.aten.convolution_backward(
        gy, x, weight, None, *_geometry(layer), False, [0, 0], groups, wanted
    )
    return gradients


def _geometry(layer: nn.Conv2d) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
    assert not isinstance(layer.padding, str)
    return layer.stride, layer.padding, layer.dilation


class _Linear(Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, layer: nn.Linear, batch: PatientBatch
    ) -> Tensor:
        x, cast_weight = _autocast(x), _autocast(weight)
        ctx.save_for_backward(x, cast_weight)
        ctx.layer, ctx.batch = layer, batch
        return functional.linear(x, cast_weight, None if bias is None else _autocast(bias))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gy: Tensor) -> tuple[Tensor | None, None, None, None, None]:
        (x, weight), layer, batch = ctx.saved_tensors, ctx.layer, ctx.batch
        with _no_autocast(gy):
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
    m, p = rows.per_patient, rows.patients
    if x.shape[1] == 1:
        return torch.bmm(gy.view(m, p, -1).permute(1, 2, 0), x.view(m, p, -1).transpose(0, 1))
    x, gy = x.view(m, p, *x.shape[1:]), gy.view(m, p, *gy.shape[1:]).transpose(2, 3)
    gradients = torch.bmm(gy[0], x[0])
    for j in range(1, m):
        gradients.baddbmm_(gy[j], x[j])
    return gradients


class _GroupNorm(Function):
    """Rows become channels of one picture, [1, rows * C, H * W]: the kernel's weight gradients are then by row."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, layer: nn.GroupNorm, batch: PatientBatch) -> Tensor:
        x = _norm_input(x).contiguous()
        rows, channels = x.shape[:2]
        ctx.sizes = (1, rows * channels, x[0, 0].numel(), rows * layer.num_groups)
        y, mean, rstd = torch.native_group_norm(x, weight.repeat(rows), bias.repeat(rows), *ctx.sizes, layer.eps)
        ctx.save_for_backward(x, weight, mean, rstd)
        ctx.layer, ctx.batch = layer, batch
        return y.view_as(x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gy: Tensor) -> tuple[Tensor | None, None, None, None, None]:
        (x, weight, mean, rstd), layer, batch = ctx.saved_tensors, ctx.layer, ctx.batch
        with _no_autocast(gy):
            wanted = (ctx.needs_input_grad[0], True, True)
            gx, by_row_weight, by_row_bias = torch.ops.aten.native_group_norm_backward(
                gy.contiguous(), x, mean, rstd, weight.repeat(len(x)), *ctx.sizes, wanted
            )
            for wants, parameter, by_row in zip(
                ctx.needs_input_grad[1:3], (layer.weight, layer.bias), (by_row_weight, by_row_bias), strict=True
            ):
                if wants:
                    batch.add(parameter, batch.rows.sum(by_row.view(len(x), -1)))
        return gx, None, None, None, None


class _LayerNorm(Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, layer: nn.LayerNorm, batch: PatientBatch
    ) -> Tensor:
        x = _norm_input(x)
        shape = list(layer.normalized_shape)
        y, mean, rstd = torch.native_layer_norm(x, shape, weight, bias, layer.eps)
        ctx.save_for_backward(x, weight, mean, rstd)
        ctx.layer, ctx.batch = layer, batch
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gy: Tensor) -> tuple[Tensor | None, None, None, None, None]:
        (x, weight, mean, rstd), layer, batch = ctx.saved_tensors, ctx.layer, ctx.batch
        shape, gx = list(layer.normalized_shape), None
        with _no_autocast(gy):
            if ctx.needs_input_grad[1]:
                by_row = (gy * ((x - mean) * rstd)).reshape(len(x), -1, *shape).sum(1, dtype=layer.weight.dtype)
                batch.add(layer.weight, batch.rows.sum(by_row))
            if ctx.needs_input_grad[2]:
                by_row = gy.reshape(len(x), -1, *shape).sum(1, dtype=layer.bias.dtype)
                batch.add(layer.bias, batch.rows.sum(by_row))
            if ctx.needs_input_grad[0]:
                gx = torch.ops.aten.native_layer_norm_backward(
                    gy, x, shape, mean, rstd, weight, layer.bias, (True, False, False)
                )[0]
        return gx, None, None, None, None


class _Embedding(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: None, layer: nn.Embedding, batch: PatientBatch) -> Tensor:
        ctx.save_for_backward(x)
        ctx.layer, ctx.batch = layer, batch
        return functional.embedding(x, weight)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gy: Tensor) -> tuple[None, None, None, None, None]:
        (x,), layer, batch = ctx.saved_tensors, ctx.layer, ctx.batch
        entries, features = layer.weight.shape
        index = x.reshape(len(x), -1) + batch.rows.patient_of_row(x.device)[:, None] * entries
        gradients = gy.new_zeros(batch.rows.patients * entries, features)
        gradients.index_add_(0, index.flatten(), gy.reshape(-1, features))
        batch.add(layer.weight, gradients.view(batch.rows.patients, entries, features))
        return None, None, None, None, None


def _autocast(tensor: Tensor) -> Tensor:
    """As autocast treats the operands of a product: float32 to its type, float64 left alone."""
    kind = tensor.device.type
    if torch.is_autocast_enabled(kind) and tensor.is_floating_point() and tensor.dtype != torch.float64:
        return tensor.to(torch.get_autocast_dtype(kind))
    return tensor


def _norm_input(x: Tensor) -> Tensor:
    """As autocast treats norms: on a GPU in float32, on the CPU in the input's own precision."""
    return x.float() if x.device.type == "cuda" and torch.is_autocast_enabled("cuda") else x


def _no_autocast(tensor: Tensor) -> torch.autocast:
    return torch.autocast(tensor.device.type, enabled=False)


def _refuse_conv2d(layer: nn.Conv2d) -> str | None:
    if layer.padding_mode != "zeros" or isinstance(layer.padding, str):
        return f"padding is {layer.padding!r} in mode {layer.padding_mode!r}: use numbers and zeros"
    return None


def _refuse_norm(layer: nn.GroupNorm | nn.LayerNorm) -> str | None:
    return (
        "it has a weight and no bias, or the other way round"
        if (layer.weight is None) != (layer.bias is None)
        else None
    )


def _refuse_embedding(layer: nn.Embedding) -> str | None:
    if layer.padding_idx is not None or layer.max_norm is not None or layer.scale_grad_by_freq or layer.sparse:
        return "padding_idx, max_norm, scale_grad_by_freq and sparse are not for per-patient gradients"
    return None


def _refuse_nothing(_: nn.Linear) -> None:
    return None


@dataclass(frozen=True)
class LayerKind:
    """How a kind of layer is treated, and which settings of it are refused (the reason, or None)."""

    function: type[Function]
    refuse: Callable[[Any], str | None]


LAYER_KINDS: dict[type[nn.Module], LayerKind] = {
    nn.Conv2d: LayerKind(_Conv2d, _refuse_conv2d),
    nn.Linear: LayerKind(_Linear, _refuse_nothing),
    nn.GroupNorm: LayerKind(_GroupNorm, _refuse_norm),
    nn.LayerNorm: LayerKind(_LayerNorm, _refuse_norm),
    nn.Embedding: LayerKind(_Embedding, _refuse_embedding),
}
"""By exact type: a subclass may do anything in its forward."""
