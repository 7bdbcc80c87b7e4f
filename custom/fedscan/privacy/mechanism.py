"""DP-SGD by patient in one object: Poisson draw, clipping, noise, public divisor and what all that costs."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import ValidationError
from torch import Tensor

from fedscan.privacy.clipping import ClipError
from fedscan.privacy.event import Event
from fedscan.privacy.noise import DrawsAhead, NoiseSource
from fedscan.privacy.noised_loss import NoisedLoss
from fedscan.privacy.optimiser import PatientOptimiser
from fedscan.privacy_plan import PrivacyPlan, SiteSampling

LossRows = Callable[[NDArray[np.int64]], Tensor]
"""From patients (int64 [P], their places in the training set) to losses [m * P], m rows of each, ready for backward."""


class MechanismError(RuntimeError):
    """The mechanism was set up or used otherwise than it is accounted for. Holds nothing about data."""


class Mechanism:
    """The Poisson-sampled Gaussian mechanism of one site for a fixed number of steps (Abadi et al. 2016).

    All of sampling, clipping, noise and price follow from one plan and one site's sampling. Each step is one draw and
    one noised update, of nobody too, and can be taken once; what was begun and failed is spent and moved nothing.

    Residual risks. Time and memory of a step tell how many were drawn to whoever watches the machine: an answer
    therefore leaves at a fixed time, and no progress leaves at all. Rounding of the float64 sum leaves what the guard
    of `gaussian` leaves.
    """

    def __init__(
        self,
        privacy: PrivacyPlan,
        sampling: SiteSampling,
        steps: int,
        noise: NoiseSource,
        *,
        allow_reproducible: bool = False,
    ) -> None:
        """`steps`: as many as were charged. Raises MechanismError, as for noise that somebody could draw again.

        `allow_reproducible` is for demos, whose policy stamps every output with it, and for tests.
        """
        if noise.reproducible is not False and not allow_reproducible:
            raise MechanismError(
                "the noise is reproducible: whoever has the seed can take it off; use SecureNoise, or a demo policy"
            )
        try:
            privacy = PrivacyPlan.model_validate(privacy.model_dump())
            self.event = Event(
                noise_multiplier=privacy.charged_noise_multiplier,
                sample_rate=sampling.sample_rate,
                steps=steps,
                unit=privacy.unit,
            )
        except ValidationError as error:
            fields = sorted({".".join(map(str, e["loc"])) for e in error.errors()})
            raise MechanismError(f"privacy cannot be set up so, wrong are: {', '.join(fields)}") from None
        if sampling not in privacy.sites.values():
            raise MechanismError("the sampling is not one of the plan's sites: take it from privacy.sites")
        self._privacy, self._sampling, self._noise = privacy, sampling, noise
        self._loss = NoisedLoss(privacy.loss, sampling.expected_patients_per_step, noise) if privacy.loss else None
        self._optimiser: PatientOptimiser | None = None
        self._drawn: NDArray[np.int64] | None = None
        self._used = 0

    @property
    def steps_left(self) -> int:
        """Steps that are charged and not taken."""
        return self.event.steps - self._used

    @property
    def loss(self) -> float | None:
        """The noised mean loss of all steps; None where the plan asks for none. Raises MechanismError before the last
        step: a loss of fewer would be another release."""
        if self._loss is None:
            return None
        if self.steps_left or self._drawn is not None:
            raise MechanismError(f"{self.steps_left} charged steps are not taken: there is no loss of the round yet")
        return self._loss.value

    def optimiser(self, inner: torch.optim.Optimizer) -> PatientOptimiser:
        """The one optimiser of these steps, over the parameters that train. Raises MechanismError, ValueError."""
        if self._optimiser is not None:
            raise MechanismError("a mechanism has one optimiser: each step is charged for one")
        self._optimiser = PatientOptimiser(
            inner,
            noise_multiplier=self._privacy.noise_multiplier,
            max_grad_norm=self._privacy.max_grad_norm,
            expected_patients=self._sampling.expected_patients_per_step,
            noise=self._noise,
        )
        return self._optimiser

    def draw(self, patients: int) -> NDArray[np.int64]:
        """Of 0 .. patients - 1 each with probability sample_rate, independently; int64, ascending; for one step.

        Raises MechanismError after the last step, and while an earlier draw waits: to choose among draws would break
        the accounting.
        """
        if self.steps_left < 1:
            raise MechanismError(f"all {self.event.steps} charged steps are taken: charge more before drawing")
        if self._drawn is not None:
            raise MechanismError("the last draw was not stepped with: a draw cannot be refused")
        chances = self._noise.uniform(patients)
        if chances.shape != (patients,) or not bool(((chances > 0.0) & (chances < 1.0)).all()):
            raise MechanismError("the noise source is broken: uniform(n) must be [n] within (0, 1)")
        self._drawn = np.flatnonzero(chances < self._sampling.sample_rate).astype(np.int64)
        return self._drawn.copy()

    def step(
        self, optimiser: PatientOptimiser, drawn: NDArray[np.int64], loss_rows: LossRows, physical_patients: int
    ) -> None:
        """One noised step with the last draw, whole or not at all, at most `physical_patients` in memory at once.

        Raises MechanismError before anything is spent. What is raised later, by `loss_rows` or as ClipError, has used
        up the draw and its step and moved no parameter.
        """
        self._check(optimiser, drawn, physical_patients)
        self._drawn = None
        self._used += 1
        if isinstance(self._noise, DrawsAhead):
            self._noise.prefetch(optimiser.size)
        parts = [drawn[at : at + physical_patients] for at in range(0, len(drawn), physical_patients)] or [drawn]
        finished = False
        try:
            optimiser.begin(len(drawn))
            for at, part in enumerate(parts):
                optimiser.expect(len(part), more=at + 1 < len(parts))
                if len(part):
                    self._backward(loss_rows, part)
                optimiser.step()
                optimiser.zero_grad(set_to_none=True)
            if self._loss is not None:
                self._loss.end_step()
            finished = True
        finally:
            if not finished:
                optimiser.discard()
                if self._loss is not None:
                    self._loss.discard()

    def _backward(self, loss_rows: LossRows, part: NDArray[np.int64]) -> None:
        rows = self._privacy.rows_per_patient
        losses = loss_rows(part)
        if losses.shape != (rows * len(part),):
            raise ClipError(f"loss_rows must give one loss a row, {rows} rows for each patient, not reduced")
        if self._loss is not None:
            self._loss.add(losses, len(part))
        losses.sum().div(rows).backward()  # type: ignore[no-untyped-call]

    def _check(self, optimiser: PatientOptimiser, drawn: NDArray[np.int64], physical_patients: int) -> None:
        if self._drawn is None or not np.array_equal(drawn, self._drawn):
            raise MechanismError("a step takes the last draw, once: call draw() before each step")
        if self._optimiser is None or optimiser is not self._optimiser:
            raise MechanismError("the optimiser is not of this mechanism: take it from optimiser()")
        if physical_patients < 1:
            raise MechanismError(f"physical_patients must be at least 1, got {physical_patients}")
        plan = (
            self._privacy.noise_multiplier,
            self._privacy.max_grad_norm,
            self._sampling.expected_patients_per_step,
        )
        if (optimiser.noise_multiplier, optimiser.max_grad_norm, optimiser.expected_batch_size) != plan:
            raise MechanismError("noise, clipping or divisor of the optimiser are no longer the plan's: make it anew")
