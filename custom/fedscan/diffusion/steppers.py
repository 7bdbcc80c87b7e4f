"""The updates of the samplers: from a noised slice and the clean slice that it seems to be, to the next level.

Each stepper is called down the list of steps, with `following` the true next step; None after the last, where the
clean slice is the result. Levels are float64 numbers from the schedule; slices stay float32.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from fedscan.diffusion.schedule import Schedule

Draw = Callable[[], Tensor]


class Stepper(Protocol):
    """x float32 [n, 1, s, s] at step `t`, its estimated clean slice `x0`, the next step: x there."""

    def __call__(self, x: Tensor, x0: Tensor, t: int, following: int | None, draw: Draw) -> Tensor: ...


def ddpm(schedule: Schedule, variance: str) -> Stepper:
    """Ho et al. 2020, eq. 6 and 7, and their section 3.2 for the two variances, "beta" and "posterior".

    A jump from t to any earlier s is one step of a chain with beta = 1 - abar_t / abar_s.
    """

    def step(x: Tensor, x0: Tensor, t: int, following: int | None, draw: Draw) -> Tensor:
        if following is None:
            return x0
        here, there = float(schedule.abar[t]), float(schedule.abar[following])
        beta = 1.0 - here / there
        posterior = (1.0 - there) / (1.0 - here) * beta
        mean = math.sqrt(there) * beta / (1.0 - here) * x0 + math.sqrt(here / there) * (1.0 - there) / (1.0 - here) * x
        return mean + math.sqrt(beta if variance == "beta" else posterior) * draw()

    return step


def ddim(schedule: Schedule, eta: float) -> Stepper:
    """Song et al. 2021, eq. 12 and 16."""

    def step(x: Tensor, x0: Tensor, t: int, following: int | None, draw: Draw) -> Tensor:
        if following is None:
            return x0
        here, there = float(schedule.abar[t]), float(schedule.abar[following])
        noise = (x - math.sqrt(here) * x0) / math.sqrt(1.0 - here)
        variance = eta**2 * (1.0 - there) / (1.0 - here) * (1.0 - here / there)
        moved = math.sqrt(there) * x0 + math.sqrt(1.0 - there - variance) * noise
        return moved + math.sqrt(variance) * draw() if eta else moved

    return step


class _Seen(NamedTuple):
    """A clean slice, and where (half the log SNR) it was estimated."""

    level: float
    x0: Tensor


def multistep(schedule: Schedule, order: int, corrector: bool) -> Stepper:
    """Exponential multistep solver of the probability-flow equation, clean-slice form.

    Between two levels, in l = log(sqrt(abar) / sqrt(1 - abar)), exactly (Lu et al. 2022, DPM-Solver++, eq. 8):
    x' = sigma' / sigma x + alpha' int_0^h exp(u - h) x0(l + u) du. x0 is the polynomial through the last `order`
    estimates. With `corrector` the arrival is computed again, through the estimate at the arrival too, before going on
    from it: no further evaluation (Zhao et al. 2023, UniPC, algorithm 1).
    """
    seen: list[_Seen] = []
    departure: list[tuple[Tensor, int]] = []

    def move(x: Tensor, t: int, to: int, estimates: list[_Seen]) -> Tensor:
        here, there = float(schedule.abar[t]), float(schedule.abar[to])
        start, end = half_log_snr(here), half_log_snr(there)
        weights = _integral_weights([s.level - start for s in estimates], end - start)
        moved = math.sqrt((1.0 - there) / (1.0 - here)) * x
        for weight, estimate in zip(weights, estimates, strict=True):
            moved = moved + math.sqrt(there) * weight * estimate.x0
        return moved

    def step(x: Tensor, x0: Tensor, t: int, following: int | None, draw: Draw) -> Tensor:
        if following is None:
            return x0
        seen.insert(0, _Seen(half_log_snr(float(schedule.abar[t])), x0))
        if corrector and departure:
            x = move(*departure.pop(), t, seen[:order])
        del seen[order:]
        departure[:] = [(x, t)]
        return move(x, t, following, seen)

    return step


def half_log_snr(abar: float) -> float:
    """l = log(sqrt(abar) / sqrt(1 - abar))."""
    return 0.5 * (math.log(abar) - math.log1p(-abar))


def _integral_weights(nodes: list[float], h: float) -> list[float]:
    """w with int_0^h exp(u - h) p(u) du = sum_i w_i p(nodes_i) for every polynomial p of degree < len(nodes).

    The moments m_k of u^k follow by parts: m_0 = 1 - exp(-h), m_k = h^k - k m_{k-1}.
    """
    moments = [-math.expm1(-h)]
    for k in range(1, len(nodes)):
        moments.append(h**k - k * moments[-1])
    powers = torch.tensor(nodes, dtype=torch.float64)[None, :] ** torch.arange(len(nodes))[:, None]
    weights: list[float] = torch.linalg.solve(powers, torch.tensor(moments, dtype=torch.float64)).tolist()
    return weights
