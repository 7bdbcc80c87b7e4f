"""Lines about a run for people: rounds, who answered, loss, epsilon, time left."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from fedscan.federation import run_privacy
from fedscan.federation.records import RoundRecord
from fedscan.plan import Plan


def describe(record: RoundRecord, plan: Plan) -> str:
    """One record, in few words."""
    if record.event == "round" and record.round is not None:
        answered = sum(entry.answered for entry in record.sites.values())
        loss = f"{record.loss:.4f}" if record.loss is not None else "-"
        silent = [f"{site}: {e.refused}" for site, e in sorted(record.sites.items()) if not e.answered]
        silent += [f"{site}: {why}" for site, e in sorted(record.sites.items()) for why in e.also_refused or ()]
        missing = f" ({'; '.join(silent)})" if silent else ""
        return f"round {record.round + 1}/{plan.rounds}: {answered} of {len(record.asked)} sites{missing}, loss {loss}"
    if record.event == "repeat":
        return f"round asked again: {record.reason}"
    if record.event == "asked" and record.round is not None:
        return f"round {record.round + 1}/{plan.rounds}: asking {', '.join(record.asked)}"
    return {"started": "the server has the model", "finished": "all rounds done"}.get(record.event, str(record.reason))


def outlook(seen: Sequence[RoundRecord], plan: Plan) -> str:
    """After a round: seconds it took, time left, epsilon spent so far by site. `seen`: all records of the run."""
    parts = []
    rounds = {r.round: r for r in seen if r.event == "round" and r.round is not None}
    if times := [record.seconds for record in rounds.values() if record.seconds is not None]:
        parts.append(f"{times[-1]:.0f} s")
        if left := plan.rounds - len(rounds):
            parts.append(f"about {duration(left * statistics.median(times[-5:]))} left")
    if epsilons := epsilon_by_site(seen, plan):
        shown = sorted({f"{value:.3g}" for value in epsilons.values()})
        each = ", ".join(f"{site} {value:.3g}" for site, value in epsilons.items())
        parts.append(
            f"epsilon {shown[0]} at every site" if len(shown) == 1 and len(epsilons) > 1 else f"epsilon {each}"
        )
    return "; ".join(parts)


def epsilon_by_site(seen: Sequence[RoundRecord], plan: Plan) -> dict[str, float]:
    """Of this run so far: from the plan's public constants and how often the server asked; {} without privacy."""
    if plan.privacy is None:
        return {}
    sites = run_privacy.spent(plan, run_privacy.asked(seen))["sites"]
    return {site: told["epsilon"] for site, told in sites.items() if told["epsilon"] is not None}


def duration(seconds: float) -> str:
    """Rounded to what a person wants to know."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"
