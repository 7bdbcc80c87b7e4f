"""The network that a plan asks for, and the arithmetic precision it runs in."""

from __future__ import annotations

import warnings
from contextlib import AbstractContextManager, nullcontext
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from fedscan.plan import ModelPlan

with warnings.catch_warnings():  # MONAI warns about optional packages that nothing here uses
    warnings.simplefilter("ignore")
    from monai.networks.nets import DiffusionModelUNet

Precision = Literal["fp32", "bf16"]


class DiffusionNetwork(nn.Module):
    """MONAI's DiffusionModelUNet on space-to-depth input; parameters only, no buffers (all of it may be averaged).

    A class-conditional network has one embedding more than classes: the last index, `no_label`, says "no label", for
    slices without one and for classifier-free guidance (Ho and Salimans 2022).
    """

    def __init__(self, model: ModelPlan) -> None:
        super().__init__()
        self.fold = model.fold
        self.size = model.size
        self.no_label = len(model.classes)
        arguments = model.arguments
        self.net = DiffusionModelUNet(
            spatial_dims=2,
            in_channels=model.fold**2,
            out_channels=model.fold**2,
            channels=arguments.channels,
            attention_levels=arguments.attention_levels,
            num_res_blocks=arguments.num_res_blocks,
            norm_num_groups=arguments.norm_num_groups,
            num_head_channels=arguments.num_head_channels,
            num_class_embeds=self.no_label + 1 if model.classes else None,
        )

    def forward(self, x: Tensor, t: Tensor, labels: Tensor | None = None) -> Tensor:
        """float32 [n, 1, s, s] from noised slices `x` float32 [n, 1, s, s], steps `t` int64 [n], `labels` int64 [n].

        The result means what the plan's `diffusion.prediction` says. Labels lie in 0..`no_label`; None: no label for
        any slice (the only choice where the plan has no classes). Autocast is the caller's: see `autocast`.
        """
        if self.no_label == 0:
            if labels is not None:
                raise ValueError("got labels for a network without classes: pass None, or set model.classes")
        elif labels is None:
            labels = torch.full((len(x),), self.no_label, dtype=torch.int64, device=x.device)
        folded = functional.pixel_unshuffle(x, self.fold)
        out = self.net(folded, t, class_labels=labels)
        return functional.pixel_shuffle(out.float(), self.fold)


def build_network(model: ModelPlan, generator: torch.Generator) -> DiffusionNetwork:
    """A fresh network on the CPU whose weights follow from the generator's state alone; it outputs exactly 0.

    One number is drawn from `generator`; the global random state is as before afterwards. Not for several threads at
    once: meanwhile the global state is in use.
    """
    seed = int(torch.randint(2**63 - 1, (1,), generator=generator, device=generator.device).item())
    with torch.random.fork_rng(devices=[]):  # PyTorch's initialisers know no generator argument
        torch.default_generator.manual_seed(seed)
        return DiffusionNetwork(model)


def resolve_precision(precision: Literal["auto", "fp32", "bf16"], device: torch.device | str = "cpu") -> Precision:
    """What `auto` means on `device`: bf16 where the hardware multiplies it natively, else fp32."""
    if precision != "auto":
        return precision
    kind = torch.device(device).type
    if kind == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    if kind == "cpu":
        return "bf16" if torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported() else "fp32"
    return "fp32"


def autocast(precision: Precision, device: torch.device | str = "cpu") -> AbstractContextManager[object]:
    """The context in which to call a network; weights, input and output stay float32 either way."""
    if precision == "fp32":
        return nullcontext()
    return torch.autocast(torch.device(device).type, dtype=torch.bfloat16)
