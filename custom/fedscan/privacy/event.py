"""What is charged: a mechanism's parameters, never only an epsilon."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from fedscan.plan import Plan
from fedscan.plan_form import Float, Part
from fedscan.privacy_plan import Unit


class Event(Part):
    """`steps` releases of a Poisson-sampled Gaussian sum; neighbours differ in one unit, added or removed."""

    mechanism: Literal["poisson_sampled_gaussian"] = "poisson_sampled_gaussian"
    noise_multiplier: Float = Field(gt=0.0)
    sample_rate: Float = Field(gt=0.0, le=1.0)
    steps: int = Field(ge=1)
    neighbour: Literal["add_or_remove_one"] = "add_or_remove_one"
    unit: Unit


class EventError(ValueError):
    """A plan has no event for this site: it names no sampling for it, or is not private."""


def round_event(plan: Plan, site: str) -> Event:
    """What one round of `plan` costs at `site`. Raises EventError."""
    if plan.privacy is None:
        raise EventError("the plan has no privacy: nothing can be charged for it")
    sampling = plan.privacy.sites.get(site)
    if sampling is None or plan.training.local_steps is None:
        raise EventError("the plan names no sampling for this site: add it to privacy.sites")
    return Event(
        noise_multiplier=plan.privacy.charged_noise_multiplier,
        sample_rate=sampling.sample_rate,
        steps=plan.training.local_steps,
        unit=plan.privacy.unit,
    )


def run_event(plan: Plan, site: str) -> Event:
    """What all planned rounds of `plan` cost at `site`, each trained once. Raises EventError."""
    one = round_event(plan, site)
    return one.model_copy(update={"steps": one.steps * plan.rounds})
