"""A convolution whose backward brings each patient's weight gradient in place of the sum."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import Function, once_differentiable

from fedscan.privacy.gradient_functions import as_autocast, linear_weight_gradients, no_autocast
from fedscan.privacy.gradient_rows import EvenRows, PatientBatch, Rows

GROUPED_MULTIPLE = 16
"""oneDNN's grouped weight gradient is fast for so many channels or a multiple; else a call for each patient wins."""


class Conv2dFunction(Function):
    """Of nn.Conv2d on [rows, C, H, W], with numbers for padding and zeros in it."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, layer: nn.Conv2d, batch: PatientBatch
    ) -> Tensor:
        x, cast_weight = as_autocast(x), as_autocast(weight)
        cast_bias = None if bias is None else as_autocast(bias)
        ctx.save_for_backward(x, cast_weight)
        ctx.layer, ctx.batch = layer, batch
        if _is_product(layer, x):
            return _product(x, cast_weight, cast_bias)
        return torch.conv2d(x, cast_weight, cast_bias, *_geometry(layer), layer.groups)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gy: Tensor) -> tuple[Tensor | None, None, None, None, None]:
        (x, weight), layer, batch = ctx.saved_tensors, ctx.layer, ctx.batch
        gy, gx = gy.contiguous(), None
        with no_autocast(gy):
            wanted = ctx.needs_input_grad[1:3]
            gradients = conv2d_gradients(x, gy, layer, batch.rows, wanted)
            for parameter, gradient in zip((layer.weight, layer.bias), gradients, strict=True):
                if gradient is not None:
                    batch.add(parameter, gradient)
            if ctx.needs_input_grad[0] and _is_product(layer, x):
                gx = torch.matmul(weight.flatten(1).T, gy.flatten(2)).view_as(x)
            elif ctx.needs_input_grad[0]:
                gx = _convolution_backward(gy, x, weight, layer, layer.groups, (True, False, False))[0]
        return gx, None, None, None, None


def conv2d_gradients(
    x: Tensor, gy: Tensor, layer: nn.Conv2d, rows: Rows, wanted: tuple[bool, bool]
) -> tuple[Tensor | None, Tensor | None]:
    """The weight's gradients [patients, *weight.shape] and the bias's [patients, O], those that are `wanted`.

    `x` [rows, C, H, W] is the input, `gy` [rows, O, H', W'] the output's gradient.
    """
    if not wanted[0] or _is_pointwise(layer):
        bias = rows.sum(gy.sum((2, 3), dtype=torch.promote_types(gy.dtype, torch.float32))) if wanted[1] else None
        return (_pointwise(x, gy, layer, rows) if wanted[0] else None), bias
    many_channels = not (layer.in_channels % GROUPED_MULTIPLE or layer.out_channels % GROUPED_MULTIPLE)
    if isinstance(rows, EvenRows) and many_channels:
        return _grouped(x, gy, layer, rows, wanted)
    weight = gy.new_empty(layer.weight.shape)
    parts = [
        _convolution_backward(gy[rows.of(p)], x[rows.of(p)], weight, layer, layer.groups, (False, *wanted))
        for p in range(rows.patients)
    ]
    return torch.stack([part[1] for part in parts]), torch.stack([part[2] for part in parts]) if wanted[1] else None


def _grouped(
    x: Tensor, gy: Tensor, layer: nn.Conv2d, rows: EvenRows, wanted: tuple[bool, bool]
) -> tuple[Tensor, Tensor | None]:
    """Patients become groups of one convolution over [m, patients * C, H, W]: views, and one call for all."""
    m, patients, shape = rows.per_patient, rows.patients, layer.weight.shape
    x = x.contiguous().view(m, patients * x.shape[1], *x.shape[2:])
    gy = gy.view(m, patients * gy.shape[1], *gy.shape[2:])
    weight = gy.new_empty(patients * shape[0], *shape[1:])  # the kernel reads its shape alone
    _, weights, biases = _convolution_backward(gy, x, weight, layer, patients * layer.groups, (False, *wanted))
    return weights.view(patients, *shape), biases.view(patients, -1) if wanted[1] else None


def _pointwise(x: Tensor, gy: Tensor, layer: nn.Conv2d, rows: Rows) -> Tensor:
    """A 1 x 1 convolution is a linear layer over the pixels."""
    weights = linear_weight_gradients(x.flatten(2).transpose(1, 2), gy.flatten(2).transpose(1, 2), rows)
    return weights.view(rows.patients, *layer.weight.shape)


def _is_pointwise(layer: nn.Conv2d) -> bool:
    return (layer.kernel_size, layer.stride, layer.padding, layer.groups) == ((1, 1), (1, 1), (0, 0), 1)


def _is_product(layer: nn.Conv2d, x: Tensor) -> bool:
    """In bf16 oneDNN's 1 x 1 convolution takes two to three times as long as the matrix product that it is."""
    return x.dtype == torch.bfloat16 and x.device.type == "cpu" and _is_pointwise(layer)


def _product(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """A 1 x 1 convolution, rounded once, as oneDNN does it."""
    pixels, matrix = x.flatten(2), weight.flatten(1)
    if bias is None:
        y = torch.matmul(matrix, pixels)
    else:
        y = torch.baddbmm(bias.view(1, -1, 1), matrix.expand(len(x), -1, -1), pixels)
    return y.view(len(x), -1, *x.shape[2:])


def _convolution_backward(
    gy: Tensor, x: Tensor, weight: Tensor, layer: nn.Conv2d, groups: int, wanted: tuple[bool, bool, bool]
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of input, weight and bias, where `wanted`."""
    gradients: tuple[Tensor, Tensor, Tensor] = torch.ops.aten.convolution_backward(
        gy, x, weight, [len(weight)], *_geometry(layer), False, [0, 0], groups, wanted
    )
    return gradients


def _geometry(layer: nn.Conv2d) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
    assert not isinstance(layer.padding, str)
    return layer.stride, layer.padding, layer.dilation
