"""Noise schedules: how much of the slice is left at each step, in float64."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from fedscan.plan import DiffusionPlan

BETA_START, BETA_END = 1e-4, 2e-2
COSINE_OFFSET = 8e-3
COSINE_BETA_MAX = 0.999
SIGMOID_RANGE = 6.0


@dataclass(frozen=True, eq=False)
class Schedule:
    """`abar` float64 [T] on the CPU: the signal's share of the variance, abar_t = prod_{s<=t} (1 - beta_s).

    x_t = sqrt(abar_t) x_0 + sqrt(1 - abar_t) noise (Ho et al. 2020, eq. 4), with t counted from 0. Never rounded, never
    moved: functions take from it what they need in float64 and round the result.
    """

    abar: Tensor

    @classmethod
    def from_plan(cls, diffusion: DiffusionPlan) -> Self:
        """The plan's schedule; names and numbers as MONAI's NoiseSchedules of the same name."""
        betas = _BETAS[diffusion.schedule](diffusion.num_train_timesteps)
        return cls(torch.cumprod(1.0 - betas, dim=0))

    def __post_init__(self) -> None:
        abar = self.abar
        if abar.dtype != torch.float64 or abar.ndim != 1 or abar.device.type != "cpu":
            raise TypeError(
                f"abar must be float64 [T] on the CPU, got {abar.dtype} {list(abar.shape)} on {abar.device}"
            )
        if not (len(abar) >= 2 and abar[-1] > 0 and abar[0] < 1 and bool((abar[1:] < abar[:-1]).all())):
            raise ValueError("abar must fall from below 1 to above 0 over 2 or more steps")

    @property
    def steps(self) -> int:
        """T, the number of steps."""
        return len(self.abar)

    @property
    def terminal_signal(self) -> float:
        """sqrt(abar_T), the signal's amplitude in the last step; 0 would be a zero terminal SNR."""
        return math.sqrt(float(self.abar[-1]))

    def check(self, t: Tensor) -> None:
        """Raise unless `t` int64 [n] lies in 0..T-1. Costs a synchronisation on a GPU: for the edge, not the loop."""
        if t.dtype != torch.int64 or t.ndim != 1:
            raise TypeError(f"t must be int64 [n], got {t.dtype} {list(t.shape)}")
        if t.numel() == 0:
            return
        low, high = int(t.min()), int(t.max())
        if low < 0 or high >= self.steps:
            raise ValueError(f"t must lie in 0..{self.steps - 1}, got {low}..{high}")

    def signal(self, t: Tensor) -> Tensor:
        """sqrt(abar_t) float32 of t's shape, on t's device."""
        return _take(self.abar.sqrt(), t)

    def noise(self, t: Tensor) -> Tensor:
        """sqrt(1 - abar_t) float32 of t's shape, on t's device."""
        return _take((1.0 - self.abar).sqrt(), t)


def _take(table: Tensor, t: Tensor) -> Tensor:
    return table.to(torch.float32).to(t.device)[t]


def _linear(steps: int) -> Tensor:
    """Ho et al. 2020."""
    return torch.linspace(BETA_START, BETA_END, steps, dtype=torch.float64)


def _scaled_linear(steps: int) -> Tensor:
    """Linear in sqrt(beta): Rombach et al. 2022, their code."""
    return torch.linspace(BETA_START**0.5, BETA_END**0.5, steps, dtype=torch.float64) ** 2


def _sigmoid(steps: int) -> Tensor:
    """MONAI's sigmoid_beta (after GeoDiff, Xu et al. 2022)."""
    x = torch.linspace(-SIGMOID_RANGE, SIGMOID_RANGE, steps, dtype=torch.float64)
    return torch.sigmoid(x) * (BETA_END - BETA_START) + BETA_START


def _cosine(steps: int) -> Tensor:
    """Nichol and Dhariwal 2021, eq. 17; betas clipped at 0.999 as there."""
    x = torch.arange(steps + 1, dtype=torch.float64) / steps
    abar = torch.cos((x + COSINE_OFFSET) / (1 + COSINE_OFFSET) * (torch.pi / 2)) ** 2
    return (1.0 - abar[1:] / abar[:-1]).clamp(0.0, COSINE_BETA_MAX)


_BETAS: dict[str, Callable[[int], Tensor]] = {
    "linear_beta": _linear,
    "scaled_linear_beta": _scaled_linear,
    "sigmoid_beta": _sigmoid,
    "cosine": _cosine,
}
