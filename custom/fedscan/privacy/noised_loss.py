"""The mean loss of a round under DP: patients' losses are cut, summed, noised in each step, and averaged."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fedscan.privacy.clipping import TOLERANCE, ClipError
from fedscan.privacy.noise import NoiseSource
from fedscan.privacy_plan import LossPlan

_DECIMALS = 6
"""The low bits of a noisy sum could tell of its parts (Mironov 2012); nobody needs them."""


class NoisedLoss:
    """Adds up, over the steps of a round, (sum over drawn patients of clip(loss, 0, max_loss) + noise) / expected.

    A loss that is not finite counts as zero, as the gradient does. `Mechanism` makes it and takes its steps.
    """

    def __init__(self, plan: LossPlan, expected_patients: float, noise: NoiseSource) -> None:
        self._plan, self._expected, self._noise = plan, expected_patients, noise
        self._step = self._round = 0.0
        self._steps = 0

    def add(self, rows: Tensor, patients: int) -> None:
        """Takes in losses [m * patients], slice-major (row j * patients + p is of patient p)."""
        losses = rows.detach().to("cpu", torch.float64).reshape(-1, patients).mean(dim=0)
        cut = torch.where(losses.isfinite(), losses.clamp(0.0, self._plan.max_loss), 0.0)
        if float(cut.max()) > self._plan.max_loss:
            raise ClipError("a patient's loss is larger than max_loss")
        self._step += float(cut.sum())

    def end_step(self) -> None:
        """Noises what the step's draw brought, once; also where nobody was drawn."""
        noise = self._noise.normal(1)
        if noise.shape != (1,) or noise.dtype != torch.float64:
            raise ClipError(f"the noise must be float64 [1], got {noise.dtype} {list(noise.shape)}")
        std = self._plan.noise_multiplier * self._plan.max_loss * (1.0 + TOLERANCE)
        self._round += (self._step + std * float(noise[0])) / self._expected
        self._step = 0.0
        self._steps += 1

    def discard(self) -> None:
        """Forgets a step that failed, and with it the round: its mean would be of fewer steps."""
        self._step, self._round = 0.0, math.nan

    @property
    def value(self) -> float:
        """The mean over the steps taken; noise may make it negative. Raises ClipError where there is none."""
        if self._steps == 0 or not math.isfinite(self._round):
            raise ClipError("there is no loss of a whole round")
        return round(self._round / self._steps, _DECIMALS)
