"""The diffusion process: noising, targets, what a prediction says, loss weights. Pure functions, unreduced losses.

Slices, noise and predictions are float32 [n, 1, s, s], steps `t` int64 [n]; the schedule's float64 is never cast.
Values of t are checked in `add_noise` and `loss_per_slice`, the edge; the others compute only (they run under vmap).
"""

from __future__ import annotations

from typing import Literal, Protocol

import torch
from torch import Tensor

from fedscan.diffusion.network import Precision, autocast
from fedscan.diffusion.schedule import Schedule
from fedscan.plan import DiffusionPlan

Prediction = Literal["sample", "v_prediction", "epsilon"]
MIN_SNR_GAMMA = 5.0


class Denoiser(Protocol):
    """A `DiffusionNetwork`, or anything called like one (an analytic denoiser in tests)."""

    def __call__(self, x: Tensor, t: Tensor, labels: Tensor | None = None) -> Tensor:
        """Prediction float32 [n, 1, s, s] for `x` float32 [n, 1, s, s] at steps `t` int64 [n]."""
        ...


def add_noise(schedule: Schedule, x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
    """x_t = sqrt(abar_t) x0 + sqrt(1 - abar_t) noise, float32 (Ho et al. 2020, eq. 4)."""
    schedule.check(t)
    _check_float32(x0=x0, noise=noise)
    return _mix(schedule, x0, noise, t)


def velocity(schedule: Schedule, x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
    """v = sqrt(abar_t) noise - sqrt(1 - abar_t) x0 (Salimans and Ho 2022, section 4)."""
    return _spread(schedule.signal(t), x0) * noise - _spread(schedule.noise(t), x0) * x0


def target(schedule: Schedule, prediction: Prediction, x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
    """What the network should say at step t."""
    if prediction == "sample":
        return x0
    if prediction == "epsilon":
        return noise
    return velocity(schedule, x0, noise, t)


def to_x0(schedule: Schedule, prediction: Prediction, output: Tensor, x: Tensor, t: Tensor) -> Tensor:
    """The clean slice that `output` stands for, given the noised slice `x` at step t. Not clipped."""
    if prediction == "sample":
        return output
    signal, noise = _spread(schedule.signal(t), x), _spread(schedule.noise(t), x)
    if prediction == "epsilon":
        return (x - noise * output) / signal
    return signal * x - noise * output


def to_epsilon(schedule: Schedule, x0: Tensor, x: Tensor, t: Tensor) -> Tensor:
    """The noise in `x` at step t if the clean slice is `x0`."""
    return (x - _spread(schedule.signal(t), x) * x0) / _spread(schedule.noise(t), x)


def loss_weight(schedule: Schedule, diffusion: DiffusionPlan, t: Tensor) -> Tensor:
    """float32 [n]: weight of the squared error of the network's own target at step t.

    At a given x_t the errors of the three meanings are one error: |x0 error|^2 = (1 - abar) |v error|^2 and
    |epsilon error|^2 = abar |v error|^2 (Salimans and Ho 2022). `v` and `epsilon` ask for the plain error of that
    meaning; `min_snr` is min(SNR, 5) |x0 error|^2 (Hang et al. 2023). Denominators are at least `weight_floor`.
    """
    table = _weights(diffusion, schedule.abar).expand(schedule.steps)
    return table.to(torch.float32).to(t.device)[t]


def loss_per_slice(
    network: Denoiser,
    schedule: Schedule,
    diffusion: DiffusionPlan,
    x0: Tensor,
    t: Tensor,
    noise: Tensor,
    labels: Tensor | None = None,
    *,
    precision: Precision = "fp32",
) -> Tensor:
    """Weighted mean squared error of each slice, float32 [n], unreduced; `labels` int64 [n] or None.

    The network alone runs under autocast; noising and the loss are float32.
    """
    x = add_noise(schedule, x0, noise, t)
    with autocast(precision, x.device):
        output = network(x, t, labels)
    error = output.float() - target(schedule, diffusion.prediction, x0, noise, t)
    return error.square().flatten(1).mean(1) * loss_weight(schedule, diffusion, t)


def _weights(diffusion: DiffusionPlan, abar: Tensor) -> Tensor:
    """float64 [T] or [1]; the quotients are written out, so that what cancels needs no floor."""
    one, noise = torch.ones(1, dtype=abar.dtype), 1.0 - abar
    if diffusion.loss_weighting == "uniform":
        return one
    x0_share, epsilon_share = noise.clamp(min=diffusion.weight_floor), abar.clamp(min=diffusion.weight_floor)
    by_prediction = {
        "sample": {"v": 1.0 / x0_share, "epsilon": abar / x0_share, "min_snr": (abar / noise).clamp(max=MIN_SNR_GAMMA)},
        "v_prediction": {"v": one, "epsilon": abar, "min_snr": torch.minimum(abar, MIN_SNR_GAMMA * noise)},
        "epsilon": {"v": 1.0 / epsilon_share, "epsilon": one, "min_snr": (MIN_SNR_GAMMA * noise / abar).clamp(max=1.0)},
    }
    return by_prediction[diffusion.prediction][diffusion.loss_weighting]


def _mix(schedule: Schedule, x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
    return _spread(schedule.signal(t), x0) * x0 + _spread(schedule.noise(t), x0) * noise


def _spread(per_slice: Tensor, like: Tensor) -> Tensor:
    """[n] -> [n, 1, 1, 1]."""
    return per_slice.view(-1, *(1,) * (like.ndim - 1))


def _check_float32(**tensors: Tensor) -> None:
    for name, tensor in tensors.items():
        if tensor.dtype != torch.float32:
            raise TypeError(f"{name} must be float32, got {tensor.dtype}: autocast the network, not the slices")
