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


class _Departure(NamedTuple):
    """Where the last step began, and the noise that it added."""

    x: Tensor
    t: int
    noise: Tensor | None


def multistep(schedule: Schedule, order: int, corrector: bool, stochastic: bool) -> Stepper:
    """Exponential multistep solver of the reverse equation, clean-slice form: x0 as a polynomial in the level.

    Between two levels l = log(sqrt(abar) / sqrt(1 - abar)), h apart, exactly (Xue et al. 2023, SA-Solver, eq. 9;
    alpha = sqrt(abar), sigma = sqrt(1 - abar)):
    x' = sigma' / sigma exp(-tau h) x + alpha' int_0^h (1 + tau) exp((1 + tau) (u - h)) x0(l + u) du
    + sigma' sqrt(1 - exp(-2 tau h)) noise; tau = 1 is the equation that ddpm solves step by step, and tau = 0 the
    probability-flow equation. x0 goes through the last `order` estimates. With `corrector` the arrival is computed
    again, with the same noise, through the estimate at the arrival too, before going on from it: no further evaluation.
    Without noise and corrector, and with order 2, it is DPM-Solver++(2M) (Lu et al. 2022).
    """
    tau = 1.0 if stochastic else 0.0
    seen: list[_Seen] = []
    departures: list[_Departure] = []

    def move(start: _Departure, to: int, estimates: list[_Seen]) -> Tensor:
        here, there = float(schedule.abar[start.t]), float(schedule.abar[to])
        level = half_log_snr(here)
        h = half_log_snr(there) - level
        weights = integral_weights([estimate.level - level for estimate in estimates], h, 1.0 + tau)
        moved = math.sqrt((1.0 - there) / (1.0 - here)) * math.exp(-tau * h) * start.x
        for weight, estimate in zip(weights, estimates, strict=True):
            moved = moved + math.sqrt(there) * weight * estimate.x0
        if start.noise is not None:
            moved = moved + math.sqrt((1.0 - there) * -math.expm1(-2.0 * tau * h)) * start.noise
        return moved

    def step(x: Tensor, x0: Tensor, t: int, following: int | None, draw: Draw) -> Tensor:
        if following is None:
            return x0
        seen.insert(0, _Seen(half_log_snr(float(schedule.abar[t])), x0))
        del seen[order:]
        if corrector and departures:
            x = move(departures[0], t, seen)
        departures[:] = [_Departure(x, t, draw() if stochastic else None)]
        return move(departures[0], following, seen)

    return step


def half_log_snr(abar: float) -> float:
    """l = log(sqrt(abar) / sqrt(1 - abar))."""
    return 0.5 * (math.log(abar) - math.log1p(-abar))


def integral_weights(nodes: list[float], h: float, rate: float) -> list[float]:
    """w with int_0^h rate exp(rate (u - h)) p(u) du = sum_i w_i p(nodes_i) for every polynomial p below their number.

    The moments of u^k follow by parts: m_0 = 1 - exp(-rate h), m_k = h^k - k / rate m_{k-1}.
    """
    moments = [-math.expm1(-rate * h)]
    for k in range(1, len(nodes)):
        moments.append(h**k - k / rate * moments[-1])
    powers = torch.tensor(nodes, dtype=torch.float64)[None, :] ** torch.arange(len(nodes))[:, None]
    weights: list[float] = torch.linalg.solve(powers, torch.tensor(moments, dtype=torch.float64)).tolist()
    return weights
