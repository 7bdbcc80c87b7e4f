"""What a plan would cost a site, and what it could expect for it: for people who ask beforehand."""

from __future__ import annotations

from dataclasses import dataclass

from fedscan.plan import Plan
from fedscan.privacy.accounting import epsilon, rounds_that_fit
from fedscan.privacy.event import round_event, run_event
from fedscan.privacy.facts import LedgerFacts
from fedscan.privacy.policy import Policy


@dataclass(frozen=True)
class Forecast:
    """Of one plan at one site; epsilon at the policy's delta."""

    delta: float
    max_epsilon: float
    epsilon_spent: float
    epsilon_after_round: float
    epsilon_after_run: float
    """When each planned round is trained once."""
    rounds_planned: int
    rounds_that_fit: int


def forecast(plan: Plan, policy: Policy, site: str, ledger: LedgerFacts) -> Forecast | None:
    """None for a plan without privacy. Raises EventError (the plan does not know the site), AccountingError."""
    if plan.privacy is None:
        return None
    one, whole = round_event(plan, site), run_event(plan, site)
    delta = policy.max_delta
    return Forecast(
        delta=delta,
        max_epsilon=policy.max_epsilon,
        epsilon_spent=epsilon(ledger.spent, delta),
        epsilon_after_round=epsilon((*ledger.spent, one), delta),
        epsilon_after_run=epsilon((*ledger.spent, whole), delta),
        rounds_planned=plan.rounds,
        rounds_that_fit=rounds_that_fit(ledger.spent, one, delta, policy.max_epsilon),
    )
