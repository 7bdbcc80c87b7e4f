"""What plain and private training at a site share: the plan's network, its losses, the way from weights to update."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fedscan.diffusion.network import build_network, resolve_precision
from fedscan.diffusion.process import Denoiser, loss_per_slice
from fedscan.diffusion.schedule import Schedule
from fedscan.plan import Plan
from fedscan.training.data import TrainingSet
from fedscan.training.weights import Weights, check_update


class TrainingError(RuntimeError):
    """Training that cannot go on. The text holds nothing about data."""


class RoundTrainer:
    """The plan's network at a site, kept from round to round; its weights are set anew in each."""

    def __init__(self, plan: Plan, data: TrainingSet, site: str, device: torch.device | str) -> None:
        self.plan = plan
        self.data = data
        self.site = site
        self.device = torch.device(device)
        self.precision = resolve_precision(plan.training.precision, self.device)
        self.schedule = Schedule.from_plan(plan.diffusion)
        self.network = build_network(plan.model, torch.Generator()).to(self.device)
        self.parameters: dict[str, nn.Parameter] = dict(self.network.named_parameters())

    def losses(self, network: Denoiser, x0: Tensor, t: Tensor, noise: Tensor, labels: Tensor | None) -> Tensor:
        """Loss of each row under `network` (ours, or what wraps it), float32 [n], unreduced. The other arguments are
        those of `loss_per_slice`, on the CPU."""
        return loss_per_slice(
            network,
            self.schedule,
            self.plan.diffusion,
            x0.to(self.device),
            t.to(self.device),
            noise.to(self.device),
            None if labels is None else labels.to(self.device),
            precision=self.precision,
        )

    def _load(self, weights: Weights) -> None:
        reference = {name: parameter.detach() for name, parameter in self.parameters.items()}
        if reasons := check_update(weights, reference):
            raise TrainingError(f"the global weights do not fit the plan's network: {'; '.join(reasons)}")
        with torch.no_grad():
            for name, parameter in self.parameters.items():
                parameter.copy_(weights[name])

    def _difference(self, weights: Weights) -> Weights:
        with torch.no_grad():
            return {name: (p.detach().cpu() - weights[name]).contiguous() for name, p in self.parameters.items()}
