"""A raw plan's target epsilon becomes a noise multiplier, and declared sizes become sampling, before submission."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from fedscan.plan import Plan
from fedscan.privacy.accounting import AccountingError, noise_multiplier_for, rounded_up

SAMPLE_RATE = 0.25
"""By default: noise per patient hardly falls above it (docs/results/dp-usefulness.md)."""


class ResolveError(ValueError):
    """The plan does not say enough, or what it asks for cannot be had."""


def declare(raw_plan: dict[str, Any], patients: Mapping[str, int], sample_rate: float | None = None) -> None:
    """Puts the sampling of exactly the sites of `patients` (declared sizes) into a raw plan.

    A site's own sample_rate stands, unless `sample_rate` is given. Raises ResolveError for a plan without privacy.
    """
    privacy = raw_plan.get("privacy")
    if not isinstance(privacy, dict):
        raise ResolveError("the plan has no privacy, so it takes no patients: set privacy.target_epsilon and so on")
    known = privacy.get("sites")
    sites: dict[str, Any] = {}
    for site, size in patients.items():
        own = known.get(site) if isinstance(known, dict) else None
        rate = sample_rate if sample_rate is not None else own.get("sample_rate") if isinstance(own, dict) else None
        rate = SAMPLE_RATE if rate is None else rate
        if isinstance(rate, bool) or not isinstance(rate, int | float):
            raise ResolveError(f"privacy.sites.{site}.sample_rate must be a number, got {rate!r}")
        sites[site] = {"sample_rate": rate, "expected_patients_per_step": rate * size}
    privacy["sites"] = sites


def resolve(raw_plan: dict[str, Any]) -> None:
    """Fills privacy.noise_multiplier, where it is missing, from target_epsilon over all planned rounds.

    For the worst site, the one that samples most; rounded up to 4 significant digits, so that epsilon stays within
    the target. Raises ResolveError; pydantic.ValidationError for a plan that is wrong otherwise.
    """
    privacy = raw_plan.get("privacy")
    if not isinstance(privacy, dict):
        return
    if not privacy.get("sites"):
        raise ResolveError(
            "privacy.sites is missing: sampling is a public constant from the number of patients that each site "
            "declares; give them with --patients a=500,b=300"
        )
    if privacy.get("noise_multiplier") is not None:
        return
    if privacy.get("target_epsilon") is None:
        raise ResolveError("neither privacy.target_epsilon nor privacy.noise_multiplier is set: set one")
    plan = Plan.model_validate({**raw_plan, "privacy": {**privacy, "noise_multiplier": 1.0}})
    asked, steps = plan.privacy, plan.training.local_steps
    assert asked is not None
    assert asked.target_epsilon is not None
    assert steps is not None
    worst = max(sampling.sample_rate for sampling in asked.sites.values())
    try:
        noise = noise_multiplier_for(asked.target_epsilon, asked.delta, worst, plan.rounds * steps)
    except AccountingError as error:
        raise ResolveError(f"privacy.target_epsilon={asked.target_epsilon:g}: {error}") from None
    privacy["noise_multiplier"] = noise if asked.loss is None else _beside_loss(noise, asked.loss.noise_multiplier)


def _beside_loss(together: float, loss: float) -> float:
    """The gradients' noise multiplier that, with the loss's, is `together`; 4 significant digits, never down.

    Raises ResolveError.
    """
    rest = 1.0 / together**2 - 1.0 / loss**2
    if rest <= 0.0:
        raise ResolveError(
            f"privacy.loss.noise_multiplier={loss:g} alone spends target_epsilon: gradients and loss together may have "
            f"{together:g}; take ten times that for the loss"
        )
    return rounded_up(1.0 / math.sqrt(rest))
