"""Samplers: from noise to slices. Pure functions; each slice draws from a generator of its own."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from fedscan.diffusion.network import Precision, autocast
from fedscan.diffusion.process import Denoiser, Prediction, to_x0
from fedscan.diffusion.schedule import Schedule

SamplerName = Literal["ddpm", "ddim", "dpmpp"]
DEFAULT_STEPS: dict[SamplerName, int | None] = {"ddpm": None, "ddim": 50, "dpmpp": 25}
"""Network evaluations where none are asked for; None: every step of the schedule."""


@dataclass(frozen=True)
class Settings:
    """How to draw.

    steps: network evaluations (twice as many with guidance); None: `DEFAULT_STEPS`.
    variance: of `ddpm` (Ho et al. 2020, section 3.2): "beta", sigma^2 = beta_t (the larger), or "posterior",
    sigma^2 = (1 - abar_{t-1}) / (1 - abar_t) beta_t (the smaller).
    eta: of `ddim` (Song et al. 2021, eq. 16): 0 deterministic, 1 ancestral with the posterior variance.
    guidance: classifier-free guidance w (Ho and Salimans 2022): x0 = (1 + w) x0(label) - w x0(no label).
    clip: x0 into [-1, 1] at each step.
    """

    sampler: SamplerName = "dpmpp"
    steps: int | None = None
    variance: Literal["beta", "posterior"] = "posterior"
    eta: float = 0.0
    guidance: float = 0.0
    clip: bool = True

    def __post_init__(self) -> None:
        if self.sampler not in DEFAULT_STEPS:
            raise ValueError(f"sampler must be one of {', '.join(DEFAULT_STEPS)}, got {self.sampler!r}")
        if self.variance not in ("beta", "posterior"):
            raise ValueError(f"variance must be 'beta' or 'posterior', got {self.variance!r}")
        if self.steps is not None and self.steps < 1:
            raise ValueError(f"steps must be at least 1, got {self.steps}")
        if not 0.0 <= self.eta <= 1.0:
            raise ValueError(f"eta must lie in 0..1, got {self.eta}")
        if not (math.isfinite(self.guidance) and self.guidance >= 0.0):
            raise ValueError(f"guidance must be finite and not negative, got {self.guidance}")


def slice_generator(seed: int, index: int) -> torch.Generator:
    """The generator of slice number `index` of a draw with `seed`, on the CPU.

    Keyed by both through SHA-256, so that neighbouring seeds share nothing and a slice does not depend on the batch
    that it is drawn in.
    """
    key = hashlib.sha256(f"fedscan slice {seed} {index}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(key[:8], "big") >> 1)


@torch.inference_mode()
def sample(
    network: Denoiser,
    schedule: Schedule,
    prediction: Prediction,
    generators: Sequence[torch.Generator],
    settings: Settings = Settings(),
    *,
    size: int,
    labels: Tensor | None = None,
    device: torch.device | str = "cpu",
    precision: Precision = "fp32",
    progress: Callable[[int, int], None] | None = None,
) -> Tensor:
    """Draw one slice per generator: float32 [n, 1, size, size] on `device`.

    `network` lies on `device` already. Noise is drawn on the generators' device and moved, so that CPU and GPU start
    from the same. `labels` int64 [n] or None. `progress(done, all)` is called after each step.
    """
    times = step_times(schedule, settings)
    if settings.guidance and labels is None:
        raise ValueError("guidance needs labels: give labels, or set guidance to 0")
    if labels is not None:
        if labels.shape != (len(generators),) or labels.dtype != torch.int64:
            raise ValueError(f"labels must be int64 [{len(generators)}], got {labels.dtype} {list(labels.shape)}")
        labels = labels.to(device)

    def draw() -> Tensor:
        noise = [torch.randn((1, size, size), generator=g, device=g.device) for g in generators]
        return torch.stack([n.to(device) for n in noise]) if noise else torch.empty((0, 1, size, size), device=device)

    def x0_at(x: Tensor, t: int) -> Tensor:
        tt = torch.full((len(x),), t, dtype=torch.int64, device=x.device)

        def clean(given: Tensor | None) -> Tensor:
            with autocast(precision, x.device):
                output = network(x, tt, given)
            return to_x0(schedule, prediction, output.float(), x, tt)

        x0 = clean(labels)
        if settings.guidance:
            x0 = x0 + settings.guidance * (x0 - clean(None))
        return x0.clamp(-1.0, 1.0) if settings.clip else x0

    stepper = _STEPPERS[settings.sampler](schedule, settings)
    x = draw()
    for i, t in enumerate(times):
        x = stepper(x, x0_at(x, t), t, times[i + 1] if i + 1 < len(times) else None, draw)
        if progress is not None:
            progress(i + 1, len(times))
    return x


def step_times(schedule: Schedule, settings: Settings) -> list[int]:
    """The steps at which the network is asked: from T-1 down to 0, evenly, each once."""
    wanted = settings.steps or DEFAULT_STEPS[settings.sampler] or schedule.steps
    if wanted > schedule.steps:
        raise ValueError(f"steps must be at most {schedule.steps}, the schedule's, got {wanted}")
    if wanted == 1:
        return [schedule.steps - 1]
    return [round((schedule.steps - 1) * (wanted - 1 - i) / (wanted - 1)) for i in range(wanted)]


Draw = Callable[[], Tensor]
Stepper = Callable[[Tensor, Tensor, int, "int | None", Draw], Tensor]


def _levels(schedule: Schedule, t: int, following: int | None) -> tuple[float, float]:
    """abar here and at the true next level; 1 beyond the last step."""
    return float(schedule.abar[t]), 1.0 if following is None else float(schedule.abar[following])


def _ddpm(schedule: Schedule, settings: Settings) -> Stepper:
    """Ho et al. 2020, eq. 6 and 7, with beta_t = 1 - abar_t / abar_s for a jump from t to any s."""

    def step(x: Tensor, x0: Tensor, t: int, following: int | None, draw: Draw) -> Tensor:
        if following is None:
            return x0
        here, there = _levels(schedule, t, following)
        beta = 1.0 - here / there
        mean = math.sqrt(there) * beta / (1.0 - here) * x0 + math.sqrt(here / there) * (1.0 - there) / (1.0 - here) * x
        variance = beta if settings.variance == "beta" else (1.0 - there) / (1.0 - here) * beta
        return mean + math.sqrt(variance) * draw()

    return step


def _ddim(schedule: Schedule, settings: Settings) -> Stepper:
    """Song et al. 2021, eq. 12 and 16."""

    def step(x: Tensor, x0: Tensor, t: int, following: int | None, draw: Draw) -> Tensor:
        if following is None:
            return x0
        here, there = _levels(schedule, t, following)
        epsilon = (x - math.sqrt(here) * x0) / math.sqrt(1.0 - here)
        variance = settings.eta**2 * (1.0 - there) / (1.0 - here) * (1.0 - here / there)
        moved = math.sqrt(there) * x0 + math.sqrt(1.0 - there - variance) * epsilon
        return moved + math.sqrt(variance) * draw() if settings.eta else moved

    return step


def _dpmpp(schedule: Schedule, settings: Settings) -> Stepper:
    """DPM-Solver++(2M), Lu et al. 2022b, algorithm 2: second order from the previous step's x0."""
    before: list[tuple[Tensor, float]] = []

    def step(x: Tensor, x0: Tensor, t: int, following: int | None, draw: Draw) -> Tensor:
        if following is None:
            return x0
        here, there = _levels(schedule, t, following)
        half_log_snr = [0.5 * math.log(a / (1.0 - a)) for a in (here, there)]
        h = half_log_snr[1] - half_log_snr[0]
        data = x0
        if before:
            previous, h_before = before.pop()
            data = x0 + (x0 - previous) * (h / (2.0 * h_before))
        before.append((x0, h))
        return math.sqrt((1.0 - there) / (1.0 - here)) * x - math.sqrt(there) * math.expm1(-h) * data

    return step


_STEPPERS: dict[SamplerName, Callable[[Schedule, Settings], Stepper]] = {
    "ddpm": _ddpm,
    "ddim": _ddim,
    "dpmpp": _dpmpp,
}
