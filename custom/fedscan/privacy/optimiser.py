"""The private optimiser: patients' gradients are clipped, summed, noised and divided by a public constant."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NoReturn

import torch
from opacus.optimizers import DPOptimizer
from opacus.optimizers.optimizer import _check_processed_flag, _mark_as_processed
from torch import Tensor, nn

from fedscan.privacy.clipping import TOLERANCE, ClipError, assert_clipped, clip_and_sum, clip_factors, squared_norms
from fedscan.privacy.noise import NoiseSource

__all__ = ["ClipError", "PatientOptimiser"]

_SMALL_VALUES = 4096
"""Parameters of fewer values are clipped together, as one: a hundred biases and norms cost more calls than work."""


class PatientOptimiser(DPOptimizer):
    """Opacus' optimiser with patients for samples. The gradient that `inner` steps with is

        (sum over drawn patients of clip(g, max_grad_norm) + N(0, (noise_multiplier * max_grad_norm)^2)) / expected

    The sum and the noise are float64 and rounded once. The noise is made for the bound that is asserted, a relative
    1e-5 above max_grad_norm. A patient whose gradient is not finite counts as zero (`not_finite`, for the site alone).
    `Mechanism` makes it and takes its steps: `begin`, then for each part of the draw `expect`, backward, `step` and
    `zero_grad`.
    """

    def __init__(
        self,
        inner: torch.optim.Optimizer,
        *,
        noise_multiplier: float,
        max_grad_norm: float,
        expected_patients: float,
        noise: NoiseSource,
    ) -> None:
        """`inner` holds exactly the parameters that train. Raises ValueError."""
        numbers = {
            "noise_multiplier": noise_multiplier,
            "max_grad_norm": max_grad_norm,
            "expected_patients": expected_patients,
        }
        if wrong := [name for name, value in numbers.items() if not (math.isfinite(value) and value > 0.0)]:
            raise ValueError(f"{', '.join(wrong)} must be positive and finite")
        super().__init__(
            inner,
            noise_multiplier=noise_multiplier,
            max_grad_norm=max_grad_norm,
            expected_batch_size=expected_patients,
        )
        self._noise = noise
        self._parameters = _parameters(inner)
        if not self._parameters or not all(p.requires_grad for p in self._parameters):
            raise ValueError("the optimiser must hold the parameters that train, all of them, and no other")
        if len({p.dtype for p in self._parameters}) > 1:
            raise ValueError("the parameters must be of one precision")
        self._flat = torch.zeros(self.size, dtype=torch.float64, device=self._parameters[0].device)
        """The sum over patients, then the noised sum. Kept over steps: to ask for so much memory anew costs time."""
        sizes = [p.numel() for p in self._parameters]
        self._by_parameter = _split(self._flat, sizes)
        self._small = sum(size < _SMALL_VALUES for size in sizes)
        self._stacked_sums = _split(self._flat, [sum(sizes[: self._small]), *sizes[self._small :]])
        self._drawn: int | None = None
        self._summed = 0
        self._noised = False
        self._awaited: int | None = None
        self.not_finite = 0
        """Gradients of drawn patients that were not finite; follows from data, so never to leave the site."""

    @property
    def size(self) -> int:
        """Values in a gradient."""
        return sum(p.numel() for p in self._parameters)

    def begin(self, drawn: int) -> None:
        """Starts a logical step with so many patients. Raises ClipError."""
        if self._drawn is not None:
            raise ClipError("the last step is not finished: discard it first")
        now = _parameters(self.original_optimizer)
        if len(now) != len(self._parameters) or not all(
            p is q and p.requires_grad for p, q in zip(now, self._parameters, strict=True)
        ):
            raise ClipError(
                "the parameters of the optimiser changed since it was made: one could move without noise; make it anew"
            )
        self.discard()
        self._drawn = drawn

    def expect(self, patients: int, *, more: bool) -> None:
        """Says how many patients the next backward is for, and whether more parts of the draw follow it."""
        self._awaited = patients
        self._step_skip_queue.clear()
        self.signal_skip_step(more)
        if patients == 0:
            for p in self._parameters:
                p.grad_sample = p.new_zeros(0, *p.shape)  # type: ignore[attr-defined]

    def clip_and_accumulate(self) -> None:
        """Adds the patients' clipped gradients to the sum. Raises ClipError."""
        samples = self.grad_samples
        rows = [g.reshape(len(g), p.numel()) for g, p in zip(samples, self._parameters, strict=True)]
        small = torch.cat([rows[0][:, :0], *rows[: self._small]], dim=1)
        rows = [small, *rows[self._small :]]
        norms = torch.stack([squared_norms(r) for r in rows]).sum(0).sqrt()
        self.not_finite += int((~norms.isfinite()).sum())
        factors = clip_factors(norms, self.max_grad_norm)
        assert_clipped(clip_and_sum(rows, factors, self._stacked_sums), self.max_grad_norm)
        for p, total in zip(self._parameters, self._by_parameter, strict=True):
            p.summed_grad = total.view(p.shape)  # type: ignore[attr-defined]
            _mark_as_processed(p.grad_sample)  # type: ignore[attr-defined]
        self._summed += len(norms)
        self._awaited = None

    def add_noise(self) -> None:
        """Noises the whole sum, once. Raises ClipError unless exactly the drawn patients are in it."""
        if self._drawn is None or self._summed != self._drawn:
            raise ClipError("the sum does not hold exactly the drawn patients: take steps by Mechanism.step")
        for p in self._parameters:
            _check_processed_flag(p.summed_grad)  # type: ignore[attr-defined]
        noise = self._noise.normal(self.size)
        if noise.shape != (self.size,) or noise.dtype != torch.float64:
            raise ClipError(f"the noise must be float64 [{self.size}], got {noise.dtype} {list(noise.shape)}")
        std = self.noise_multiplier * self.max_grad_norm * (1.0 + TOLERANCE)
        self._flat.add_(noise.to(self._flat.device), alpha=std)
        self._noised = True
        for p in self._parameters:
            _mark_as_processed(p.summed_grad)  # type: ignore[attr-defined]

    def scale_grad(self) -> None:
        """Divides by the public expected number of patients, rounds, and hands the gradient to the parameters."""
        if not self._noised:
            raise ClipError("the sum has no noise yet: take steps by Mechanism.step")
        self._noised = False
        rounded = self._flat.div_(self.expected_batch_size).to(self._parameters[0].dtype)
        sizes = [p.numel() for p in self._parameters]
        for p, values in zip(self._parameters, torch.split(rounded, sizes), strict=True):
            gradient = values.view(p.shape)
            # A fused inner optimiser walks memory: the gradient must lie in it as the parameter does.
            p.grad = gradient if p.is_contiguous() else torch.empty_like(p, requires_grad=False).copy_(gradient)
        self._drawn = None

    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Takes in what the last backward brought; after the last part of a draw, moves the parameters."""
        if closure is not None:
            raise ClipError("a private step takes no closure: its loss would be computed past clipping")
        result: float | None = super().step()
        return result

    def discard(self) -> None:
        """Forgets what was summed: nothing of it moved a parameter."""
        self._drawn = self._awaited = None
        self._summed, self._noised = 0, False
        self._flat.zero_()
        self._step_skip_queue.clear()
        self._is_last_step_skipped = False
        self.zero_grad(set_to_none=True)

    @property
    def grad_samples(self) -> list[Tensor]:
        """Each parameter's gradients [patients, *shape], one row for each that is awaited. Raises ClipError."""
        if self._drawn is None or self._awaited is None:
            raise ClipError("no draw was announced: take steps by Mechanism.step")
        samples: list[Tensor] = []
        for p in self._parameters:
            sample: Any = getattr(p, "grad_sample", None)
            if not isinstance(sample, Tensor):
                raise ClipError("a parameter has no per-patient gradient of one batch: the model must use them all")
            _check_processed_flag(sample)
            samples.append(sample)
        if any(len(sample) != self._awaited for sample in samples):
            raise ClipError(
                "rows of gradients are not the drawn patients, one each: slices must not be clipped as patients"
            )
        return samples

    def __reduce__(self) -> NoReturn:
        raise TypeError("a private optimiser cannot be copied: save the inner optimiser's state")


def _parameters(optimiser: torch.optim.Optimizer) -> list[nn.Parameter]:
    """Small ones first, so that they lie together."""
    return sorted((p for group in optimiser.param_groups for p in group["params"]), key=torch.Tensor.numel)


def _split(flat: Tensor, sizes: list[int]) -> list[Tensor]:
    """Views of `flat` [sum of sizes], one after the other."""
    return list(flat.split(sizes))  # type: ignore[no-untyped-call]
