"""What a private trainer makes sure of before its first round: patients' gradients are each their own, and fit memory."""

from __future__ import annotations

import copy
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from fedscan.diffusion.network import DiffusionNetwork
from fedscan.diffusion.process import loss_per_slice
from fedscan.diffusion.schedule import Schedule
from fedscan.plan import Plan
from fedscan.privacy.gradients import PatientGradients
from fedscan.privacy_plan import PrivacyPlan
from fedscan.training.round_trainer import TrainingError
from fedscan.training.seeds import derived_generator

GRADIENT_BYTES = 2**30
"""Of all patients' gradients held at once."""
TOLERANCE = 1e-6
"""Of a patient's gradient, in float64, relative to its norm."""
_ROWS, _OTHERS = 2, 2


def physical_patients(privacy: PrivacyPlan, trained: Iterable[nn.Parameter]) -> int:
    """Patients whose gradients are held at once: as many as fit 1 GiB in float32, at least one."""
    return max(1, GRADIENT_BYTES // (4 * sum(parameter.numel() for parameter in trained)))


def check_independence(network: DiffusionNetwork, plan: Plan) -> None:
    """Trains nothing: the gradient of a patient of random data must stay the same when other patients join the batch.

    Raises TrainingError where it does not: a layer or a loss mixes rows, and clipping would bound nobody. A copy of
    `network` is used, with weights that are all away from zero: a fresh network's gradients vanish. The pictures are
    small: whether rows mix does not hang on their size.
    """
    probe = copy.deepcopy(network).cpu().double()
    generator = derived_generator("self-test", plan.seed)
    with torch.no_grad():
        for parameter in probe.parameters():
            parameter += 0.05 * torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
    rows = _random_rows(plan, probe, generator)
    alone = _first_gradient(probe, plan, rows, 1)
    beside = _first_gradient(probe, plan, rows, 1 + _OTHERS)
    apart = float((alone - beside).norm() / alone.norm())
    if not apart <= TOLERANCE:
        raise TrainingError(
            f"a patient's gradient changes by {apart:.1e} of its norm when others join the batch, wanted at most "
            f"{TOLERANCE:g}: a layer or the loss mixes rows, clipping would bound nobody; use a model of the presets"
        )


def _random_rows(plan: Plan, network: DiffusionNetwork, generator: torch.Generator) -> list[Tensor]:
    """x0, t, noise and labels [_ROWS, 1 + _OTHERS, ...] of patients whose values differ a hundredfold."""
    shape = (_ROWS, 1 + _OTHERS)
    size = min(plan.model.size, 4 * plan.model.fold * 2 ** (len(plan.model.arguments.channels) - 1))
    x0 = torch.randn((*shape, 1, size, size), generator=generator)
    x0[:, 1:] *= 100.0
    t = torch.randint(plan.diffusion.num_train_timesteps, shape, generator=generator)
    noise = torch.randn(x0.shape, generator=generator)
    return [x0, t, noise, torch.randint(network.no_label + 1, shape, generator=generator)]


def _first_gradient(network: DiffusionNetwork, plan: Plan, rows: list[Tensor], patients: int) -> Tensor:
    """float64 [D] of patient 0 in a batch of the first so many."""
    x0, t, noise, labels = (part[:, :patients].flatten(0, 1) for part in rows)
    gradients = PatientGradients(network)

    def denoiser(x: Tensor, t: Tensor, labels: Tensor | None = None) -> Tensor:
        prediction: Tensor = gradients(x.double(), t, labels, patients=patients)
        return prediction

    given = labels if plan.model.classes else None
    losses = loss_per_slice(denoiser, Schedule.from_plan(plan.diffusion), plan.diffusion, x0, t, noise, given)
    losses.sum().div(_ROWS).backward()  # type: ignore[no-untyped-call]
    first = torch.cat([parameter.grad_sample[0].double().flatten() for parameter in network.parameters()])  # type: ignore[union-attr]
    gradients.remove()
    return first
