"""One sentence on the privacy of a model: what its provenance and card say."""

from __future__ import annotations

from collections.abc import Mapping

from fedscan.plan import Plan
from fedscan.privacy.accounting import AccountingError, epsilon
from fedscan.privacy.event import round_event

NONE = "none: trained without differential privacy"
REPRODUCIBLE = "reproducible noise, which protects nobody"


def privacy_statement(plan: Plan, rounds: Mapping[str, int], remark: str) -> str:
    """Epsilon of the site that spent most, with its unit, delta and events; `remark` says who kept the account.

    `rounds` counts, for each site of the plan, the rounds in which it trained. Each is taken as trained once.
    """
    if plan.privacy is None:
        return NONE
    spent = {site: round_event(plan, site) for site, count in sorted(rounds.items()) if count > 0}
    if not spent:
        return f"no site has trained; {remark}"
    delta = plan.privacy.delta
    try:
        by_site = {
            site: epsilon([event.model_copy(update={"steps": event.steps * rounds[site]})], delta)
            for site, event in spent.items()
        }
    except AccountingError:
        return f"epsilon cannot be computed for this noise: take it as none; {remark}"
    worst = max(by_site, key=lambda site: by_site[site])
    event = spent[worst]
    return (
        f"epsilon {by_site[worst]:.4g} at delta {delta:g} for each {plan.privacy.unit} of a site (the most of "
        f"{len(spent)} sites: noise multiplier {event.noise_multiplier:.6g}, sample rate {event.sample_rate:g}, "
        f"{event.steps * rounds[worst]} steps); {remark}"
    )
