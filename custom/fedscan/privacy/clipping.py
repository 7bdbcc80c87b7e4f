"""Patients' gradient norms: measuring, clipping, and making sure of it afterwards."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

TOLERANCE = 1e-5
"""A clipped gradient may be so much longer than max_grad_norm, relatively: rounding. The noise is made for it."""
_BLOCK = 4096
"""Columns whose squares are added in float32: over a million of them the error would reach 1.5e-5, so it is 1e-7."""
_CACHED, _LEAST_COLUMNS = 2**17, 256
"""Values that are made float64 at once: few enough for the cache, and columns enough for a loop to pay."""
_SMALL = 1e-6
"""Added to a norm before it is divided by, as in Opacus."""


class ClipError(RuntimeError):
    """A patient's share in a sum is not bounded as the plan says: nothing may leave. Holds nothing about data."""


def squared_norms(rows: Tensor) -> Tensor:
    """Of `rows` [patients, columns] the squared L2 norms, float64 [patients]; inf or NaN where they are not finite."""
    patients, columns = rows.shape
    blocks = columns // _BLOCK
    whole = rows[:, : blocks * _BLOCK].view(patients, blocks, _BLOCK)
    at_least_float32 = torch.promote_types(rows.dtype, torch.float32)
    squares: Tensor = torch.linalg.vector_norm(whole, dim=2, dtype=at_least_float32).double().square().sum(1)
    squares += torch.linalg.vector_norm(rows[:, blocks * _BLOCK :], dim=1, dtype=at_least_float32).double().square()
    return squares


def clip_factors(norms: Tensor, max_grad_norm: float) -> Tensor:
    """What each patient's gradient is multiplied by (Abadi et al. 2016, algorithm 1), float64 [patients].

    0 for a norm that is not finite: such a patient counts as zero, which is a legal clip; to stop would be an output
    that depends on data.
    """
    factors = (max_grad_norm / (norms + _SMALL)).clamp(max=1.0)
    return torch.where(norms.isfinite(), factors, torch.zeros_like(factors))


def clip_and_sum(rows_of_parameters: Sequence[Tensor], factors: Tensor, sums: Sequence[Tensor]) -> Tensor:
    """Adds `factors` [patients] times the rows to `sums`: of each parameter [patients, columns] to float64 [columns].

    All in float64: in float32 the rounding of one patient's share would hang on all the others. Returns the norms of
    what was added, from the rows measured anew and in another way than for the factors, float64 [patients].
    """
    zeroed = factors == 0.0
    any_zeroed = bool(zeroed.any())
    patients = len(factors)
    squares = torch.zeros_like(factors)
    columns = max(_LEAST_COLUMNS, _CACHED // max(1, patients))
    memory = factors.new_empty(patients, columns)
    for rows, total in zip(rows_of_parameters, sums, strict=True):
        for at in range(0, len(total), columns):
            source = rows[:, at : at + columns]
            part = memory[:, : source.shape[1]].copy_(source)
            if any_zeroed:
                part[zeroed] = 0.0  # 0 * inf is NaN
            squares += torch.linalg.vecdot(part, part)
            total[at : at + columns].addmv_(part.T, factors)
    return squares.sqrt() * factors


def assert_clipped(norms: Tensor, max_grad_norm: float) -> None:
    """Raises ClipError unless every patient's norm [patients] is at most max_grad_norm, rounding aside."""
    if not bool((norms <= max_grad_norm * (1.0 + TOLERANCE)).all()):
        raise ClipError(
            "a patient's clipped gradient is longer than max_grad_norm: clipping is wrong in this build, "
            "so that the noise hides nobody; nothing was released, report it and do not train privately with it"
        )
