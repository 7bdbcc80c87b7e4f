"""Which rows of a batch are whose, and where a batch's per-patient gradients go."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor


class GradientError(ValueError):
    """A module, a batch or an order of calls that per-patient gradients are not right for. Holds nothing about data."""


@dataclass(frozen=True)
class EvenRows:
    """Slice-major: row j * patients + p is row j of patient p. One kernel call then serves all patients (views)."""

    patients: int
    per_patient: int

    @property
    def total(self) -> int:
        return self.patients * self.per_patient

    def of(self, patient: int) -> slice:
        """The rows of one patient."""
        return slice(patient, None, self.patients)

    def patient_of_row(self, device: torch.device) -> Tensor:
        """int64 [rows]."""
        return torch.arange(self.total, device=device) % self.patients

    def sum(self, by_row: Tensor) -> Tensor:
        """[rows, ...] -> [patients, ...]: over each patient's rows."""
        if self.per_patient == 1:
            return by_row
        return by_row.view(self.per_patient, self.patients, *by_row.shape[1:]).sum(0)


@dataclass(frozen=True)
class UnevenRows:
    """Patient-major: `groups[p]` rows of patient p follow those of the patients before."""

    groups: tuple[int, ...]

    @property
    def patients(self) -> int:
        return len(self.groups)

    @property
    def total(self) -> int:
        return sum(self.groups)

    def of(self, patient: int) -> slice:
        """The rows of one patient."""
        end = list(accumulate(self.groups))[patient]
        return slice(end - self.groups[patient], end)

    def patient_of_row(self, device: torch.device) -> Tensor:
        """int64 [rows]."""
        groups = torch.tensor(self.groups, device=device)
        return torch.repeat_interleave(torch.arange(self.patients, device=device), groups)

    def sum(self, by_row: Tensor) -> Tensor:
        """[rows, ...] -> [patients, ...]: over each patient's rows."""
        sums = by_row.new_zeros(self.patients, *by_row.shape[1:])
        return sums.index_add_(0, self.patient_of_row(by_row.device), by_row)


Rows = EvenRows | UnevenRows


@dataclass
class PatientBatch:
    """One forward through the wrapped module, and what its backward brings."""

    rows: Rows
    kept: int | None = None
    """Only the first so many patients' gradients are wanted; the others fill the batch. None: all."""
    _seen: set[int] = field(default_factory=set)

    def add(self, parameter: Any, gradients: Tensor) -> None:
        """Adds `gradients` [patients, *parameter.shape], of any precision, to `parameter.grad_sample` [kept, ...].

        They stay as they were computed: bfloat16 is half the memory. Several uses of one parameter in a forward add up,
        in the parameter's precision. Another batch's gradients must have been cleared: kept
        together they would be scaled as one step's (Opacus' accumulated_iterations).
        """
        gradients = gradients[: self.kept]
        if parameter.grad_sample is None:
            parameter.grad_sample = gradients
        elif id(parameter) in self._seen:
            parameter.grad_sample = parameter.grad_sample.to(parameter.dtype) + gradients
        else:
            raise GradientError(
                "grad_sample still holds an earlier batch: call the optimiser's step and zero_grad between batches"
            )
        self._seen.add(id(parameter))
