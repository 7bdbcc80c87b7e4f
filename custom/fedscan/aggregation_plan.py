"""What the server makes of a round's updates: `AggregationPlan`, a part of the plan."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from fedscan.plan_form import Float, Part


class AggregationPlan(Part):
    """How updates become the next global model, and which are too large to be taken."""

    method: Literal["mean", "trimmed_mean", "median"] = Field(
        default="mean",
        description="mean: by the plan's weights; trimmed_mean and median (Yin et al. 2018): value by value, one voice "
        "a site, which bounds what a few poisoned sites can do, at a cost (docs/results/poisoned.md)",
    )
    trim_share: Float = Field(
        default=0.2, ge=0.0, lt=0.5, description="of the sites, cut off at each end of each value by trimmed_mean"
    )
    max_update_norm: Float | None = Field(
        default=None, gt=0.0, le=1e12, description="an update of a larger L2 norm is refused; null: no such bound"
    )
    max_norm_over_median: Float | None = Field(
        default=10.0,
        gt=1.0,
        le=1e6,
        description="an update whose L2 norm is more than so many times the median of the round's good answers is "
        "refused, where there are three answers or more; null: no such bound",
    )
