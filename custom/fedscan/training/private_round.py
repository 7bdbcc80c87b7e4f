"""One round of local training under DP: patients drawn, clipped and noised by the mechanism.

Nothing that follows from data is in a result but the update, the optimiser's moments and, where the plan asks for it,
the loss, all made of noised sums.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedscan.plan import Plan
from fedscan.privacy.gradients import PatientGradients
from fedscan.privacy.mechanism import Mechanism
from fedscan.privacy.noise import NoiseSource
from fedscan.privacy_plan import PrivacyPlan, SiteSampling
from fedscan.training.data import DataError, TrainingSet
from fedscan.training.optimiser import OptimiserState, build_optimiser, learning_rate, state_of
from fedscan.training.patient_draws import PatientRows
from fedscan.training.private_checks import (
    away_from_zero,
    check_independence,
    patients_in_a_batch,
    physical_patients,
    same_in_any_place,
)
from fedscan.training.round_trainer import RoundTrainer, TrainingError
from fedscan.training.seeds import derived_generator
from fedscan.training.trainable import trainable_names
from fedscan.training.weights import Weights


@dataclass(frozen=True)
class PrivateResult:
    """What a private round came to."""

    update: Weights
    """float32 on the CPU, local minus global, every tensor of the network; zeros where the plan trains nothing."""
    steps: int
    """The plan's."""
    unit: Literal["patient", "image"]
    """The plan's."""
    state: OptimiserState | None
    """To go on from, made of noised sums; None where the plan makes the optimiser anew each round."""
    loss: float | None
    """Mean over the steps, noised and charged; None where the plan asks for none."""


@dataclass(frozen=True)
class PrivateProgress:
    """Said after each gradient step: how far the round is."""

    step: int
    steps: int


class PrivateTrainer(RoundTrainer):
    """Trains private rounds of one plan on one site's patients. Keeps the network and nothing else between rounds.

    What is drawn for a patient follows from the plan's seed (see `patient_draws`); which patients are drawn, and the
    noise, from the `NoiseSource` alone.
    """

    def __init__(
        self,
        plan: Plan,
        data: TrainingSet,
        site: str,
        device: torch.device | str = "cpu",
        *,
        allow_reproducible: bool = False,
    ) -> None:
        """`allow_reproducible` is for a demonstration, whose policy stamps every output with it, and for studies.

        Raises TrainingError where the plan has no privacy or does not name the site, or where in the network one
        patient's gradient depends on another's rows; DataError for data of another unit."""
        self.privacy, self.sampling = _of_site(plan, site)
        if data.unit != self.privacy.unit:
            raise DataError(
                f"unit: the training set is by {data.unit}, the plan protects by {self.privacy.unit}: "
                "make it with TrainingSet.from_store and this plan"
            )
        super().__init__(plan, data, site, device)
        check_independence(self.network, plan, self.losses)
        trainable = trainable_names(self.network, self.privacy.trainable)
        self.trained = {name: parameter for name, parameter in self.parameters.items() if name in trainable}
        self._patients = PatientRows(plan, self.privacy, data, self.network.no_label)
        self._gradients = PatientGradients(self.network, trainable)
        self._allow_reproducible = allow_reproducible
        self.physical_patients = 1
        """Every batch has the rows of so many: what is lacking is filled up, and its gradients are left out."""
        self.physical_patients = self._fixed_batch()
        self.local_note = ""
        """On the last round, for the site's own log: it counts patients."""

    def _fixed_batch(self) -> int:
        """How sums are rounded hangs on a batch's shape, by some 1e-7. A dishonest server can send weights that make
        of it a change of everybody's gradient when one patient is added: so that no batch may have another shape."""
        rows = self.privacy.rows_per_patient
        trained = sum(parameter.numel() for parameter in self.trained.values())
        fit = physical_patients(self.plan, rows, trained, lambda parts: self._losses(1, *parts))
        patients = patients_in_a_batch(self.sampling, rows, fit)

        def gradient(parts: list[Tensor], place: int) -> Tensor:
            return self._gradient_rows(self._losses(patients, *parts), slice(place, place + 1))[0]

        before = {name: parameter.detach().cpu().clone() for name, parameter in self.parameters.items()}
        away_from_zero(self.network, derived_generator("places", self.plan.seed))
        same = same_in_any_place(self.plan, patients, rows, gradient)
        self._load(before)
        return patients if same else 1

    def round(
        self,
        weights: Weights,
        round_number: int,
        state: OptimiserState | None,
        noise: NoiseSource,
        progress: Callable[[PrivateProgress], None] | None = None,
    ) -> PrivateResult:
        """Trains from global `weights` (float32, CPU) for the plan's `local_steps`, which must all be charged already.

        `state` is that of an earlier round; ignored if made anew. Raises TrainingError for weights that do not fit; a
        patient whose gradient is not finite counts as zero and stops nothing.
        """
        self._load(weights)
        training = self.plan.training
        total = training.local_steps or 0
        keep = training.optimiser_state == "keep"
        before = state if keep else None
        life = before.steps if before else 0
        inner = build_optimiser(training, self.trained, before)
        mechanism = Mechanism(self.privacy, self.sampling, total, noise, allow_reproducible=self._allow_reproducible)
        optimiser = mechanism.optimiser(inner)
        for step in range(total):
            share = (round_number + step / total) / self.plan.rounds
            inner.param_groups[0]["lr"] = learning_rate(self.plan, life + step, share)
            drawn = mechanism.draw(len(self._patients))
            mechanism.step(optimiser, drawn, self._losses_of(round_number, step), self.physical_patients)
            if progress is not None:
                progress(PrivateProgress(step + 1, total))
        self.local_note = f"{len(self._patients)} patients; {optimiser.not_finite} gradients were not finite"
        return PrivateResult(
            update=self._difference(weights),
            steps=total,
            unit=self.privacy.unit,
            state=state_of(inner, self.parameters, life + total) if keep else None,
            loss=mechanism.loss,
        )

    def gradients_of(self, weights: Weights, round_number: int, step: int, patients: NDArray[np.int64]) -> torch.Tensor:
        """float32 [P, D], unclipped, at `weights`: what each of `patients` would add in that step. For audits: without
        noise, so never to leave."""
        self._load(weights)
        return self._gradient_rows(self._losses_of(round_number, step)(patients))

    def _gradient_rows(self, losses: Tensor, places: slice = slice(None)) -> Tensor:
        """float32 [P, D]: the patients' in `places`, of all that trains, from the losses of all."""
        losses.sum().div(self.privacy.rows_per_patient).backward()  # type: ignore[no-untyped-call]
        rows = [parameter.grad_sample[places].flatten(1).float() for parameter in self.trained.values()]  # type: ignore[attr-defined]
        self._gradients.set_grad_sample_to_none()
        return torch.cat(rows, dim=1).detach().cpu()

    def _losses_of(self, round_number: int, step: int) -> Callable[[NDArray[np.int64]], Tensor]:
        """From patients (int64 [P]) to their losses, float32 [R * P], slice-major, ready for a backward by patient."""

        def losses(patients: NDArray[np.int64]) -> Tensor:
            rows = self._patients.batch(patients, round_number, step)
            return self._losses(len(patients), rows.x0, rows.t, rows.noise, rows.labels)

        return losses

    def _losses(self, patients: int, x0: Tensor, t: Tensor, noise: Tensor, labels: Tensor | None) -> Tensor:
        """Loss of each row of so many patients, whose backward brings a gradient for each of them."""
        shape = max(patients, self.physical_patients)
        filled = torch.arange(shape).clamp(max=patients - 1)

        def fill(part: Tensor) -> Tensor:
            return part.view(-1, patients, *part.shape[1:])[:, filled].flatten(0, 1) if shape > patients else part

        def denoiser(x: Tensor, t: Tensor, labels: Tensor | None = None) -> Tensor:
            prediction: Tensor = self._gradients(x, t, labels, patients=shape, kept=patients)
            return prediction

        known = None if labels is None or not self.network.no_label else fill(labels)
        losses = self.losses(denoiser, fill(x0), fill(t), fill(noise), known)
        return losses.view(-1, shape)[:, :patients].flatten()


def _of_site(plan: Plan, site: str) -> tuple[PrivacyPlan, SiteSampling]:
    if plan.privacy is None:
        raise TrainingError("the plan has no privacy: it cannot be trained privately")
    if site not in plan.privacy.sites or plan.training.local_steps is None:
        raise TrainingError("the plan names no sampling for this site: add it to privacy.sites")
    return plan.privacy, plan.privacy.sites[site]
