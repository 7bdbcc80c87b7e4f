"""A site of a study in one process: plain or private training, and what is reported of its round."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch

from fedscan.plan import Plan
from fedscan.privacy.noise import NoiseSource
from fedscan.training.data import TrainingSet
from fedscan.training.local import LocalTrainer, Progress
from fedscan.training.optimiser import OptimiserState
from fedscan.training.private_round import PrivateProgress, PrivateTrainer
from fedscan.training.weights import Weights, contribution_weight, public_weight, update_norm

StepReport: TypeAlias = Callable[[Progress | PrivateProgress], None]


@dataclass(frozen=True)
class SiteReport:
    """One site's part of a round without privacy."""

    loss: float
    epoch_losses: tuple[float, ...]
    examples: int
    patients: int
    steps: int
    share: float
    """Of this site's update in the new global model."""
    update_norm: float


@dataclass(frozen=True)
class PrivateSiteReport:
    """One site's part of a private round: nothing but what noised sums and the plan give."""

    steps: int
    share: float
    update_norm: float
    loss: float | None


@dataclass(frozen=True)
class Trained:
    """A site's round: for the sum, for the site's next round, and for the report (given its share)."""

    update: Weights
    state: OptimiserState | None
    report: Callable[[float], SiteReport | PrivateSiteReport]


class PlainSite:
    """Trains without privacy."""

    def __init__(self, plan: Plan, data: TrainingSet, site: str, device: torch.device | str) -> None:
        self.data = data
        self.weight = contribution_weight(plan, data.examples, data.patients)
        self._trainer = LocalTrainer(plan, data, site, device)

    def train(
        self, weights: Weights, number: int, state: OptimiserState | None, progress: StepReport | None
    ) -> Trained:
        result = self._trainer.round(weights, number, state, progress)

        def report(share: float) -> SiteReport:
            return SiteReport(
                loss=result.loss,
                epoch_losses=result.epoch_losses,
                examples=result.examples,
                patients=result.patients,
                steps=result.steps,
                share=share,
                update_norm=update_norm(result.update),
            )

        return Trained(result.update, result.state, report)

    def provenance(self) -> dict[str, Any]:
        return {"examples": self.data.examples, "patients": self.data.patients, "unit": self.data.unit}


class PrivateSite:
    """Trains under DP. One noise source serves all rounds, as in the trainer child."""

    def __init__(
        self, plan: Plan, data: TrainingSet, site: str, device: torch.device | str, noise: NoiseSource
    ) -> None:
        self.data = data
        self.weight = public_weight(plan, site)
        self.noise = noise
        self._trainer = PrivateTrainer(plan, data, site, device, allow_reproducible=noise.reproducible)

    def train(
        self, weights: Weights, number: int, state: OptimiserState | None, progress: StepReport | None
    ) -> Trained:
        result = self._trainer.round(weights, number, state, self.noise, progress)
        return Trained(
            result.update,
            result.state,
            lambda share: PrivateSiteReport(result.steps, share, update_norm(result.update), result.loss),
        )

    def provenance(self) -> dict[str, Any]:
        return {"unit": self.data.unit, "declared_patients": self._trainer.sampling.declared_patients}
