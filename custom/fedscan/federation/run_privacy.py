"""What a run cost in privacy, as its model file tells: from the plan's public constants and the rounds asked."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Iterable, Mapping
from importlib.metadata import version
from typing import Any

from fedscan.federation.records import RoundRecord
from fedscan.plan import Plan
from fedscan.privacy.accounting import AccountingError, epsilon
from fedscan.privacy.event import Event, EventError, round_event

ACCOUNTANT = "privacy loss distributions (dp-accounting)"


def asked(records: Iterable[RoundRecord]) -> Counter[str]:
    """How often each site was asked for a round, repeats and rounds that a crash took included: each may have been
    charged. A site that trains again after a crash of its own is charged again; only its ledger knows of that."""
    return Counter(site for record in records if record.event == "asked" for site in record.asked)


def spent(plan: Plan, times_asked: Mapping[str, int]) -> dict[str, Any]:
    """The model file's `privacy_spent`; an epsilon that cannot be computed is null, that of a site too that the plan
    does not know: a server says whom it asked."""
    privacy = plan.privacy
    if privacy is None:
        raise ValueError("the plan has no privacy")
    sites = {
        site: {"rounds": times, "epsilon": _epsilon_at(plan, site, times, privacy.delta)}
        for site, times in sorted(times_asked.items())
        if times
    }
    return {
        "unit": privacy.unit,
        "neighbours": "add or remove one",
        "delta": privacy.delta,
        "noise_multiplier": privacy.charged_noise_multiplier,
        "accountant": ACCOUNTANT,
        "accountant_version": version("dp-accounting"),
        "sites": sites,
        "scope": "this run alone, as often as its server asked; a site's whole spend is in its own ledger",
    }


def _epsilon_at(plan: Plan, site: str, times: int, delta: float) -> float | None:
    try:
        return _epsilon(round_event(plan, site), times, delta)
    except EventError:
        return None


@functools.lru_cache(maxsize=4096)
def _epsilon(one_round: Event, times: int, delta: float) -> float | None:
    try:
        return epsilon([one_round.model_copy(update={"steps": one_round.steps * times})], delta)
    except AccountingError:
        return None
