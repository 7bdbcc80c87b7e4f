"""Samplers: from noise to slices. Pure functions; each slice draws from a generator of its own."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from fedscan.diffusion import steppers
from fedscan.diffusion.network import Precision, autocast
from fedscan.diffusion.process import Denoiser, Prediction, to_x0
from fedscan.diffusion.schedule import Schedule

SamplerName = Literal["sa_solver", "dpmpp", "ddim", "ddpm"]
Variance = Literal["beta", "posterior"]
DEFAULT_STEPS: dict[SamplerName, int | None] = {"sa_solver": 25, "dpmpp": 25, "ddim": 50, "ddpm": None}
"""Network evaluations where none are asked for; None: every step of the schedule."""
BATCH = 8
LEVEL_SCALE = 4.0


@dataclass(frozen=True)
class Settings:
    """How to draw.

    sampler: `sa_solver`, stochastic, third order with corrector: what `ddpm` draws, in 20 to 30 evaluations; `dpmpp`,
    deterministic, second order; `ddim`; `ddpm`.
    steps: network evaluations (twice as many with guidance); None: `DEFAULT_STEPS`.
    variance: of `ddpm` (Ho et al. 2020, section 3.2): "beta", sigma^2 = beta_t (the larger), or "posterior",
    sigma^2 = (1 - abar_{t-1}) / (1 - abar_t) beta_t (the smaller).
    eta: of `ddim` (Song et al. 2021, eq. 16): 0 deterministic, 1 ancestral with the posterior variance.
    guidance: classifier-free guidance w (Ho and Salimans 2022): x0 = (1 + w) x0(label) - w x0(no label).
    clip: x0 into [-1, 1] at each step.
    """

    sampler: SamplerName = "sa_solver"
    steps: int | None = None
    variance: Variance = "posterior"
    eta: float = 0.0
    guidance: float = 0.0
    clip: bool = True

    def __post_init__(self) -> None:
        if self.sampler not in get_args(SamplerName):
            raise ValueError(f"sampler must be one of {', '.join(get_args(SamplerName))}, got {self.sampler!r}")
        if self.variance not in get_args(Variance):
            raise ValueError(f"variance must be 'beta' or 'posterior', got {self.variance!r}")
        if self.steps is not None and self.steps < 1:
            raise ValueError(f"steps must be at least 1, got {self.steps}")
        if not 0.0 <= self.eta <= 1.0:
            raise ValueError(f"eta must lie in 0..1, got {self.eta}")
        if not (math.isfinite(self.guidance) and self.guidance >= 0.0):
            raise ValueError(f"guidance must be finite and not negative, got {self.guidance}")


def slice_generator(seed: int, index: int) -> torch.Generator:
    """The generator of slice number `index` of a draw with `seed`, on the CPU.

    Keyed by both through SHA-256, so that neighbouring seeds share nothing and a slice does not depend on the slices
    that it is drawn with.
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
    batch: int = BATCH,
    progress: Callable[[int, int], None] | None = None,
) -> Tensor:
    """Draw one slice per generator: float32 [n, 1, size, size] on `device`, where `network` lies already.

    Noise is drawn on the generators' device and moved, so that CPU and GPU start from the same. The network always
    sees exactly `batch` slices, the last ones filled up: libraries choose their arithmetic by the shape, so a slice is
    the same to the bit however many are drawn, at one `batch`, device and number of threads. `labels` int64 [n] or
    None. `progress(done, all)` counts network evaluations of a batch (two as one with guidance).

    Sampling starts from pure noise. Where the schedule's `terminal_signal` is not negligible, training never saw that:
    overall brightness is drawn towards 0 and air comes out grey (Lin et al. 2024). The default, cosine, ends at 5e-5.
    """
    if settings.guidance and labels is None:
        raise ValueError("guidance needs labels: give labels, or set guidance to 0")
    if labels is not None and (labels.shape != (len(generators),) or labels.dtype != torch.int64):
        raise ValueError(f"labels must be int64 [{len(generators)}], got {labels.dtype} {list(labels.shape)}")
    if batch < 1:
        raise ValueError(f"batch must be at least 1, got {batch}")
    times = step_times(schedule, settings)
    starts = range(0, len(generators), batch)
    drawn = [torch.empty((0, 1, size, size), device=device)]
    for number, start in enumerate(starts):
        part = generators[start : start + batch]
        draw = _draw(part, batch, size, device)
        clean = _clean(network, schedule, prediction, settings, _filled(labels, start, batch, device), precision)
        stepper = _stepper(schedule, settings)
        x = draw()
        for i, t in enumerate(times):
            x = stepper(x, clean(x, t), t, times[i + 1] if i + 1 < len(times) else None, draw)
            if progress is not None:
                progress(number * len(times) + i + 1, len(starts) * len(times))
        drawn.append(x[: len(part)])
    return torch.cat(drawn)


def step_times(schedule: Schedule, settings: Settings) -> list[int]:
    """The steps at which the network is asked, falling, each once: from T-1 to 0.

    Evenly in t for ddpm and ddim. The multistep solvers want them even in the log SNR where noise and signal are alike
    and sparser towards both ends: even in asinh(l / 4), l half the log SNR.
    """
    wanted = settings.steps or DEFAULT_STEPS[settings.sampler] or schedule.steps
    last = schedule.steps - 1
    if wanted > schedule.steps:
        raise ValueError(f"steps must be at most {schedule.steps}, the schedule's, got {wanted}")
    if wanted == 1:
        return [last]
    if settings.sampler in ("ddpm", "ddim"):
        return [round(last * (wanted - 1 - i) / (wanted - 1)) for i in range(wanted)]
    level = [math.asinh(steppers.half_log_snr(float(a)) / LEVEL_SCALE) for a in schedule.abar]
    times: list[int] = []
    for i in range(wanted):
        aim = level[last] + (level[0] - level[last]) * i / (wanted - 1)
        nearest = min(range(schedule.steps), key=lambda t: abs(level[t] - aim))
        highest = times[-1] - 1 if times else last
        times.append(max(min(nearest, highest), wanted - 1 - i))
    return times


def _stepper(schedule: Schedule, settings: Settings) -> steppers.Stepper:
    """A fresh one for each batch: the multistep solvers remember."""
    if settings.sampler == "ddpm":
        return steppers.ddpm(schedule, settings.variance)
    if settings.sampler == "ddim":
        return steppers.ddim(schedule, settings.eta)
    if settings.sampler == "dpmpp":
        return steppers.multistep(schedule, order=2, corrector=False, stochastic=False)
    return steppers.multistep(schedule, order=3, corrector=True, stochastic=True)


def _draw(
    generators: Sequence[torch.Generator], batch: int, size: int, device: torch.device | str
) -> Callable[[], Tensor]:
    """Noise float32 [batch, 1, size, size]; zeros where `batch` is more than the generators."""

    def draw() -> Tensor:
        noise = torch.zeros((batch, 1, size, size))
        for row, generator in enumerate(generators):
            noise[row] = torch.randn((1, size, size), generator=generator, device=generator.device)
        return noise.to(device)

    return draw


def _filled(labels: Tensor | None, start: int, batch: int, device: torch.device | str) -> Tensor | None:
    """The batch's labels int64 [batch], filled up with its first."""
    if labels is None:
        return None
    part = labels[start : start + batch]
    return torch.cat([part, part[:1].expand(batch - len(part))]).to(device)


def _clean(
    network: Denoiser,
    schedule: Schedule,
    prediction: Prediction,
    settings: Settings,
    labels: Tensor | None,
    precision: Precision,
) -> Callable[[Tensor, int], Tensor]:
    """The estimate of the clean slice at a step: guided, then clipped."""

    def clean(x: Tensor, t: int) -> Tensor:
        steps = torch.full((len(x),), t, dtype=torch.int64, device=x.device)

        def estimate(given: Tensor | None) -> Tensor:
            with autocast(precision, x.device):
                output = network(x, steps, given)
            return to_x0(schedule, prediction, output.float(), x, steps)

        x0 = estimate(labels)
        if settings.guidance:
            x0 = x0 + settings.guidance * (x0 - estimate(None))
        return x0.clamp(-1.0, 1.0) if settings.clip else x0

    return clean
