"""One round of local training at a site without privacy: from global weights to an update."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch
from torch import nn

from fedscan.plan import Plan
from fedscan.training.data import NO_LABEL, TrainingSet
from fedscan.training.optimiser import OptimiserState, build_optimiser, learning_rate, state_of
from fedscan.training.round_trainer import RoundTrainer, TrainingError
from fedscan.training.seeds import derived_generator
from fedscan.training.weights import Weights


@dataclass(frozen=True)
class RoundResult:
    """What a round came to."""

    update: Weights
    """float32 on the CPU, local minus global."""
    loss: float
    """Mean weighted loss over the slices of the round, each as it was trained on."""
    epoch_losses: tuple[float, ...]
    """The same for each pass over the data; the last pass may be a part (`local_steps`)."""
    examples: int
    patients: int
    steps: int
    state: OptimiserState | None
    """To go on from; None where the plan makes the optimiser anew each round."""


@dataclass(frozen=True)
class Progress:
    """Said after each gradient step: how far the round is, and the step's mean loss."""

    step: int
    steps: int
    loss: float


@dataclass
class _Losses:
    """Sums over slices, by pass."""

    sums: list[float] = field(default_factory=list)
    slices: list[int] = field(default_factory=list)

    def add(self, epoch: int, total: float, slices: int) -> None:
        if epoch == len(self.sums):
            self.sums.append(0.0)
            self.slices.append(0)
        self.sums[epoch] += total
        self.slices[epoch] += slices

    @property
    def mean(self) -> float:
        return math.fsum(self.sums) / sum(self.slices)

    @property
    def by_epoch(self) -> tuple[float, ...]:
        return tuple(total / slices for total, slices in zip(self.sums, self.slices, strict=True))


class LocalTrainer(RoundTrainer):
    """Trains rounds of one plan on one site's slices. Keeps the network and nothing else from round to round.

    A round follows from (plan, data, site, round number, global weights, optimiser state) alone: on one machine with
    the same number of threads (`torch.set_num_threads`, the caller's) to the bit.
    """

    def __init__(self, plan: Plan, data: TrainingSet, site: str, device: torch.device | str = "cpu") -> None:
        """Raises TrainingError for a private plan: that is `private_round`'s."""
        if plan.privacy is not None:
            raise TrainingError("the plan is private: it is never trained without privacy (use PrivateTrainer)")
        super().__init__(plan, data, site, device)
        if self.precision == "fp32" and plan.model.fold > 1 and self.device.type == "cpu":
            _lay_out_channels_last(self.network)  # gains 5 to 9 % just there, else it costs (docs/results/training.md)

    def round(
        self,
        weights: Weights,
        round_number: int,
        state: OptimiserState | None = None,
        progress: Callable[[Progress], None] | None = None,
    ) -> RoundResult:
        """Trains from global `weights` (float32, CPU). `state` is that of an earlier round; ignored if made anew.

        Raises TrainingError for weights that do not fit, and for a loss or gradient that is not finite.
        """
        self._load(weights)
        keep = self.plan.training.optimiser_state == "keep"
        before = state if keep else None
        optimiser = build_optimiser(self.plan.training, self.parameters, before)
        life, total = (before.steps if before else 0), self.steps_per_round
        generator = derived_generator("noise", self.plan.seed, self.site, round_number)
        losses = _Losses()
        for step, (epoch, indices) in enumerate(self._batches(round_number)):
            share = (round_number + step / total) / self.plan.rounds
            optimiser.param_groups[0]["lr"] = learning_rate(self.plan, life + step, share)
            loss_sum = self._step(optimiser, indices, generator, f"step {step} of round {round_number}")
            losses.add(epoch, loss_sum, len(indices))
            if progress is not None:
                progress(Progress(step + 1, total, loss_sum / len(indices)))
        return RoundResult(
            update=self._difference(weights),
            loss=losses.mean,
            epoch_losses=losses.by_epoch,
            examples=self.data.examples,
            patients=self.data.patients,
            steps=total,
            state=state_of(optimiser, self.parameters, life + total) if keep else None,
        )

    @property
    def steps_per_round(self) -> int:
        """Gradient steps of one round at this site; the last batch of a pass may be smaller and counts."""
        training = self.plan.training
        return training.local_steps or (training.local_epochs or 1) * self._batches_per_epoch

    @property
    def _batches_per_epoch(self) -> int:
        return math.ceil(len(self.data) / self.plan.training.batch_size)

    def _batches(self, round_number: int) -> Iterator[tuple[int, torch.Tensor]]:
        """(pass, int64 [b] indices) for each step; each pass in an order of its own, from (seed, site, round, pass)."""
        left, epoch = self.steps_per_round, 0
        while left:
            generator = derived_generator("order", self.plan.seed, self.site, round_number, epoch)
            order, size = torch.randperm(len(self.data), generator=generator), self.plan.training.batch_size
            for start in range(0, len(order), size)[:left]:
                yield epoch, order[start : start + size]
            left, epoch = max(0, left - self._batches_per_epoch), epoch + 1

    def _step(
        self, optimiser: torch.optim.Optimizer, at: torch.Tensor, generator: torch.Generator, where: str
    ) -> float:
        """One gradient step on the slices `at`; the sum of their losses."""
        x0, labels = self.data.batch(at)
        t = torch.randint(self.schedule.steps, (len(x0),), generator=generator)
        noise = torch.randn(x0.shape, generator=generator)
        if labels is not None:
            hidden = torch.rand(len(labels), generator=generator) < self.plan.model.class_dropout
            labels = torch.where(hidden | (labels == NO_LABEL), self.network.no_label, labels)
        losses = self.losses(self.network, x0, t, noise, labels)
        optimiser.zero_grad(set_to_none=True)
        losses.mean().backward()  # type: ignore[no-untyped-call]
        norm = nn.utils.clip_grad_norm_(self.parameters.values(), self.plan.training.gradient_clip_norm)
        loss_sum = float(losses.detach().sum())
        if not (math.isfinite(loss_sum) and math.isfinite(float(norm))):
            raise TrainingError(
                f"loss or gradient is not finite at {where}: training diverged; lower training.learning_rate, "
                "lengthen warmup_steps, or use precision fp32"
            )
        optimiser.step()
        return loss_sum


def _lay_out_channels_last(network: nn.Module) -> None:
    for parameter in network.parameters():
        if parameter.ndim == 4:
            parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
