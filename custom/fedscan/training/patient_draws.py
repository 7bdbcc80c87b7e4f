"""What is drawn for a patient in a step: slices, steps t, diffusion noise, hidden labels. By patient, never by batch.

Were these taken from one stream over the batch, or stratified over it, removing a patient would change what is drawn
for the others, and the sum of clipped gradients would move by more than one patient's share.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedscan.plan import Plan
from fedscan.privacy_plan import PrivacyPlan
from fedscan.training.data import NO_LABEL, TrainingSet
from fedscan.training.seeds import derived_generator


@dataclass(frozen=True)
class Draws:
    """One patient's rows in one step; R = slices_per_patient * noise_draws_per_slice, the draws of a slice together."""

    slices: Tensor
    """int64 [R], places within the patient's slices."""
    t: Tensor
    """int64 [R], steps of the schedule."""
    noise: Tensor
    """float32 [R, s, s]."""
    hidden: Tensor
    """bool [R]: the label is hidden, for classifier-free guidance."""


@dataclass(frozen=True)
class Rows:
    """A batch of P patients, slice-major: row j * P + p is row j of patient p."""

    x0: Tensor
    """float32 [R * P, 1, s, s] in [-1, 1]."""
    t: Tensor
    """int64 [R * P]."""
    noise: Tensor
    """float32 [R * P, 1, s, s]."""
    labels: Tensor | None
    """int64 [R * P], the network's; None where the plan has no classes."""


def draw(plan: Plan, privacy: PrivacyPlan, pseudonym: str, available: int, round_number: int, step: int) -> Draws:
    """The draws of one patient with `available` slices: they follow from (seed, pseudonym, round, step) alone.

    `slices_per_patient` different slices, each set as likely as any other; where the patient has fewer, all of them
    once before any is repeated.
    """
    generator = derived_generator("patient", plan.seed, pseudonym, round_number, step)
    wanted, rows, size = privacy.slices_per_patient, privacy.rows_per_patient, plan.model.size
    passes = [torch.randperm(available, generator=generator) for _ in range(-(-wanted // available))]
    return Draws(
        slices=torch.cat(passes)[:wanted].repeat_interleave(privacy.noise_draws_per_slice),
        t=torch.randint(plan.diffusion.num_train_timesteps, (rows,), generator=generator),
        noise=torch.randn((rows, size, size), generator=generator),
        hidden=torch.rand(rows, generator=generator) < plan.model.class_dropout,
    )


class PatientRows:
    """Batches of the patients of one training set under one private plan."""

    def __init__(self, plan: Plan, privacy: PrivacyPlan, data: TrainingSet, no_label: int) -> None:
        """`no_label` is the network's index for "no label"."""
        self._plan = plan
        self._privacy = privacy
        self._data = data
        self._no_label = no_label
        order = np.argsort(data.patient, kind="stable")
        self._slices = [torch.from_numpy(part) for part in np.split(order, _starts(data))]

    def __len__(self) -> int:
        """Patients in the training set."""
        return len(self._slices)

    def batch(self, patients: NDArray[np.int64], round_number: int, step: int) -> Rows:
        """The rows of `patients` (int64 [P], numbers in the training set, P at least 1)."""
        draws = [
            draw(self._plan, self._privacy, self._data.pseudonyms[p], len(self._slices[p]), round_number, step)
            for p in patients.tolist()
        ]
        own = zip(patients.tolist(), draws, strict=True)
        at = _slice_major([self._slices[p][one.slices] for p, one in own])
        x0, labels = self._data.batch(at)
        if labels is not None:
            hidden = _slice_major([one.hidden for one in draws])
            labels = torch.where(hidden | (labels == NO_LABEL), self._no_label, labels)
        noise = _slice_major([one.noise for one in draws])[:, None]
        return Rows(x0, _slice_major([one.t for one in draws]), noise, labels)


def _starts(data: TrainingSet) -> NDArray[np.int64]:
    """Where in the order of patients each but the first begins. Raises ValueError for a set without pseudonyms."""
    counts = np.bincount(data.patient, minlength=len(data.pseudonyms))
    if len(counts) != len(data.pseudonyms) or not counts.all():
        raise ValueError("the training set must have a pseudonym for each patient: make it with TrainingSet.from_store")
    return np.cumsum(counts)[:-1]


def _slice_major(of_patients: list[Tensor]) -> Tensor:
    """P tensors [R, ...] as one [R * P, ...]."""
    return torch.stack(of_patients, dim=1).flatten(0, 1)
