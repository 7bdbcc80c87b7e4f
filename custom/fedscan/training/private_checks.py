"""What a private trainer makes sure of before its first round: patients' gradients are apart, to the bit, and fit
memory."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor, nn

from fedscan.diffusion.network import DiffusionNetwork
from fedscan.diffusion.process import Denoiser
from fedscan.plan import Plan
from fedscan.privacy.gradients import PatientGradients
from fedscan.privacy_plan import SiteSampling
from fedscan.training.round_trainer import TrainingError
from fedscan.training.seeds import derived_generator

TOLERANCE = 1e-6
"""Of a patient's gradient, in float64, relative to its norm."""
GRADIENT_BYTES = 2**30
"""Of all patients' gradients held at once."""
ACTIVATION_BYTES = 3 * 2**30
"""Of all rows' activations held at once."""
PEAK = 1.6
"""Most memory of a forward and backward over what autograd keeps between them (measured 1.0 to 1.9, presets)."""
LEAST_ROWS = 32
"""Of a batch: fewer do not use a processor well."""
PARTS = 8
"""Batches that a step of the expected number of patients takes, or fewer: the last is filled up, on average by half."""
_ROWS, _OTHERS = 2, 2


class Losses(Protocol):
    """`RoundTrainer.losses`."""

    def __call__(self, network: Denoiser, x0: Tensor, t: Tensor, noise: Tensor, labels: Tensor | None) -> Tensor:
        """float32 [n], unreduced."""
        ...


def check_independence(network: DiffusionNetwork, plan: Plan, losses: Losses) -> None:
    """The gradient of a patient of random data must stay the same when other patients join the batch.

    Raises TrainingError where it does not: a layer or the loss mixes rows, and clipping would bound nobody. A copy of
    `network` is used, with weights that are all away from zero: a fresh network's gradients vanish. The pictures are
    small: whether rows mix does not hang on their size.
    """
    probe = copy.deepcopy(network).double()
    generator = derived_generator("self-test", plan.seed)
    away_from_zero(probe, generator)
    smallest = plan.model.fold * 2 ** (len(plan.model.arguments.channels) - 1)
    rows = _random_rows(plan, min(plan.model.size, 4 * smallest), generator)
    alone = _first_gradient(probe, losses, rows, 1)
    beside = _first_gradient(probe, losses, rows, 1 + _OTHERS)
    apart = float((alone - beside).norm() / alone.norm())
    if not apart <= TOLERANCE:
        raise TrainingError(
            f"a patient's gradient changes by {apart:.1e} of its norm when others join the batch, wanted at most "
            f"{TOLERANCE:g}: a layer or the loss mixes rows, clipping would bound nobody; use a model of the presets"
        )


def away_from_zero(network: nn.Module, generator: torch.Generator) -> None:
    """Moves every weight: a fresh network's gradients vanish, and with them what a check looks for."""
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator).to(parameter), alpha=0.05)


def physical_patients(plan: Plan, rows_per_patient: int, trained: int, losses: Callable[[list[Tensor]], Tensor]) -> int:
    """Patients in memory at once: as many as fit a GiB of gradients (`trained` float32 values each) and one of
    activations, at least one. `losses` are those of one patient's rows (x0, t, noise, labels), with their graph.
    """
    rows = _random_rows(plan, plan.model.size, derived_generator("memory", plan.seed))
    kept: dict[int, int] = {}

    def count(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
        graph = losses([_of_first(part, 1) for part in rows])
    bytes_per_row = PEAK * sum(kept.values()) / _ROWS
    del graph
    fit = min(GRADIENT_BYTES / (4 * trained), ACTIVATION_BYTES / (bytes_per_row * rows_per_patient))
    return max(1, int(fit))


def patients_in_a_batch(sampling: SiteSampling, rows_per_patient: int, fit: int) -> int:
    """How many patients' rows make up each batch, at most the `fit` that memory has room for: a public number, as the
    plan's are. The expected patients fill their batches evenly."""
    expected = math.ceil(sampling.expected_patients_per_step)
    most = min(fit, max(-(-LEAST_ROWS // rows_per_patient), round(expected / PARTS)))
    return most if expected <= most else math.ceil(expected / math.ceil(expected / most))


def same_in_any_place(
    plan: Plan, patients: int, rows_per_patient: int, gradient: Callable[[list[Tensor], int], Tensor]
) -> bool:
    """Whether a patient's gradient is the same to the bit in the first and the last place of a batch of so many, and
    beside other others. `gradient` is that of the patient in a place, [D], of slice-major rows.

    Which sums a processor does in which order hangs on sizes and places, not on values: random ones show it.
    """
    generator = derived_generator("places", plan.seed)
    shape = (rows_per_patient, patients)
    first, last = ([part.clone() for part in _rows_of(plan, plan.model.size, shape, generator)] for _ in range(2))
    for ours, theirs in zip(first, last, strict=True):
        theirs[:, -1] = ours[:, 0]
    one = gradient([part.flatten(0, 1) for part in first], 0)
    other = gradient([part.flatten(0, 1) for part in last], patients - 1)
    return torch.equal(one, other)


def _random_rows(plan: Plan, size: int, generator: torch.Generator) -> list[Tensor]:
    """x0, t, noise and labels [_ROWS, 1 + _OTHERS, ...]; the others' values are a hundred times the first's."""
    x0, *others = _rows_of(plan, size, (_ROWS, 1 + _OTHERS), generator)
    x0[:, 1:] *= 100.0
    return [x0, *others]


def _rows_of(plan: Plan, size: int, shape: tuple[int, int], generator: torch.Generator) -> list[Tensor]:
    x0 = torch.randn((*shape, 1, size, size), generator=generator)
    t = torch.randint(plan.diffusion.num_train_timesteps, shape, generator=generator)
    noise = torch.randn(x0.shape, generator=generator)
    labels = torch.randint(len(plan.model.classes) + 1, shape, generator=generator)
    return [x0, t, noise, labels]


def _of_first(part: Tensor, patients: int) -> Tensor:
    """[_ROWS, all, ...] -> [_ROWS * patients, ...], slice-major."""
    return part[:, :patients].flatten(0, 1)


def _first_gradient(network: DiffusionNetwork, losses: Losses, rows: list[Tensor], patients: int) -> Tensor:
    """float64 [D] of patient 0 in a batch of the first so many."""
    x0, t, noise, labels = (_of_first(part, patients) for part in rows)
    gradients = PatientGradients(network)

    def denoiser(x: Tensor, t: Tensor, labels: Tensor | None = None) -> Tensor:
        prediction: Tensor = gradients(x.double(), t, labels, patients=patients)
        return prediction

    of_rows = losses(denoiser, x0, t, noise, labels if network.no_label else None)
    of_rows.sum().div(_ROWS).backward()  # type: ignore[no-untyped-call]
    of_first = [p.grad_sample[0].flatten() for p in gradients.trainable_parameters.values()]  # type: ignore[attr-defined]
    gradients.remove()
    return torch.cat(of_first)
