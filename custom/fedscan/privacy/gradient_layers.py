"""Which layers have a rule for per-patient gradients, and why a module is refused."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from opacus.validators import ModuleValidator
from torch import nn
from torch.autograd.function import Function
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd

from fedscan.privacy.gradient_convolution import Conv2dFunction
from fedscan.privacy.gradient_functions import EmbeddingFunction, GroupNormFunction, LayerNormFunction, LinearFunction


def _refuse_conv2d(layer: nn.Conv2d) -> str | None:
    if layer.padding_mode != "zeros" or isinstance(layer.padding, str):
        return f"padding {layer.padding!r} in mode {layer.padding_mode!r} has no rule: use numbers, and zeros"
    return None


def _refuse_norm(layer: nn.GroupNorm | nn.LayerNorm) -> str | None:
    return None if layer.bias is not None else "a norm with a weight and no bias has no rule: use both"


def _refuse_embedding(layer: nn.Embedding) -> str | None:
    if layer.padding_idx is not None or layer.max_norm is not None or layer.scale_grad_by_freq or layer.sparse:
        return "padding_idx, max_norm, scale_grad_by_freq and sparse have no rule: use none of them"
    return None


def _refuse_nothing(_: nn.Module) -> None:
    return None


@dataclass(frozen=True)
class LayerKind:
    """The rule for a kind of layer, and the settings of it that are refused (a reason, or None)."""

    function: type[Function]
    refuse: Callable[[Any], str | None]


LAYER_KINDS: dict[type[nn.Module], LayerKind] = {
    nn.Conv2d: LayerKind(Conv2dFunction, _refuse_conv2d),
    nn.Embedding: LayerKind(EmbeddingFunction, _refuse_embedding),
    nn.GroupNorm: LayerKind(GroupNormFunction, _refuse_norm),
    nn.LayerNorm: LayerKind(LayerNormFunction, _refuse_norm),
    nn.Linear: LayerKind(LinearFunction, _refuse_nothing),
}
"""By exact type: a subclass may do anything in its forward."""


def refusals(module: nn.Module) -> list[str]:
    """Why per-patient gradients of `module` cannot be had, all reasons at once; empty: they can."""
    reasons = [str(error) for error in ModuleValidator.validate(module, strict=False)]
    for name, layer in module.named_modules():
        reasons += [f"{name or 'the module'} ({type(layer).__name__}): {reason}" for reason in _of_layer(layer)]
    return reasons


def _of_layer(layer: nn.Module) -> list[str]:
    reasons = []
    if isinstance(layer, _BatchNorm):
        reasons.append("it mixes rows: use GroupNorm")
    if isinstance(layer, _DropoutNd) and layer.p > 0.0:
        reasons.append("its random stream is shared by all rows, so that one patient moves the others': set p to 0")
    if any(True for _ in layer.buffers(recurse=False)):
        reasons.append("it has buffers, which may gather what rows have in common: use parameters only")
    if own := {name for name, _ in layer.named_parameters(recurse=False)}:
        reasons += _of_parameters(layer, own)
    return reasons


def _of_parameters(layer: nn.Module, own: set[str]) -> list[str]:
    kind = LAYER_KINDS.get(type(layer))
    if kind is None:
        known = ", ".join(known.__name__ for known in LAYER_KINDS)
        return [f"its parameters {sorted(own)} have no rule: use {known}"]
    if not own <= {"weight", "bias"}:
        return [f"its parameters are {sorted(own)}: only weight and bias have a rule"]
    if "forward" in vars(layer):
        return ["its forward was replaced: if the module is wrapped already, remove() that first"]
    reason = kind.refuse(layer)
    return [] if reason is None else [reason]
