"""From a round's updates to the next global weights: weighted mean, trimmed mean or median, tensor by tensor."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping
from typing import TypeAlias

import torch
from torch import Tensor

from fedscan.aggregation_plan import AggregationPlan
from fedscan.training.weights import Weights, total_weight

TensorOf: TypeAlias = Callable[[str, str], Tensor]
"""From site and name to the float32 tensor of that site's update."""
LEAST_FOR_A_MEDIAN = 3
"""Answers from which on one of them can be told to be too large beside the others."""


def combine(plan: AggregationPlan, weights: Weights, shares: Mapping[str, float], tensor_of: TensorOf) -> Weights:
    """float32 `weights` plus what the sites' updates come to; `shares` are their weights in the mean.

    Of one tensor at a time all sites' are in memory. float64, in the order of site names, or of values: the result
    does not hang on who answered first. mean: McMahan et al. 2017, algorithm 1; trimmed_mean and median: Yin et al.
    2018, definitions 1 and 2, one voice a site. Raises ValueError for no sites, or weights that no mean can have.
    """
    sites, of_all = sorted(shares), total_weight(shares)

    def combined(name: str) -> Tensor:
        updates = (tensor_of(site, name).double() for site in sites)
        if plan.method == "mean":
            total = torch.zeros_like(weights[name], dtype=torch.float64)
            for site, update in zip(sites, updates, strict=True):
                total += update * shares[site]
            return total / of_all
        cut = trimmed(plan, len(sites))
        ordered = torch.stack(list(updates)).sort(dim=0).values
        return ordered[cut : len(sites) - cut].mean(0)

    return {name: (tensor.double() + combined(name)).float() for name, tensor in weights.items()}


def trimmed(plan: AggregationPlan, sites: int) -> int:
    """How many of so many sites' values are cut off at each end, so that at least one is left."""
    share = {"mean": 0.0, "trimmed_mean": plan.trim_share, "median": 0.5}[plan.method]
    return min(int(share * sites + 1e-9), (sites - 1) // 2)


def too_large(plan: AggregationPlan, norms: Mapping[str, float]) -> dict[str, str]:
    """Of the good answers' update norms those beside which the others look small, with the reason."""
    times = plan.max_norm_over_median
    if times is None or len(norms) < LEAST_FOR_A_MEDIAN:
        return {}
    median = statistics.median(norms.values())
    reason = f"update norm is more than {times:g} times the median of the round's answers"
    return {site: reason for site, norm in sorted(norms.items()) if norm > times * median > 0.0}
