"""Which parameters train under a private plan; the others stay as in the start, and their update is exactly zero."""

from __future__ import annotations

from typing import Literal

from torch import nn

ATTENTION = frozenset({"attention", "attentions"})
"""What MONAI's DiffusionModelUNet calls its attention blocks, in the middle and at the levels."""


def trainable_names(network: nn.Module, subset: Literal["all", "attention_norm_bias"]) -> frozenset[str]:
    """Names of the parameters that train: all; or those of attention blocks and norms, and every bias."""
    names = frozenset(name for name, _ in network.named_parameters())
    if subset == "all":
        return names
    norms = {name for name, module in network.named_modules() if isinstance(module, nn.GroupNorm | nn.LayerNorm)}
    return frozenset(
        name
        for name in names
        if name.endswith(".bias") or name.rpartition(".")[0] in norms or ATTENTION & set(name.split("."))
    )
