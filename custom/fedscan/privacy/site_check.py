"""What is wrong with a site's own files, all at once, before a job finds it out."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from ctslices.swap import left_over
from fedscan.privacy import charging, checks
from fedscan.privacy.facts import LedgerFacts
from fedscan.privacy.ledger import Head, LedgerError
from fedscan.privacy.ledger_witness import received_head
from fedscan.privacy.policy import Policy, Unreadable
from fedscan.privacy.site_file import Site, anchor_warning
from fedscan.privacy.store_facts import StoreFacts


@dataclass(frozen=True)
class SiteFinding:
    """`error`: the site refuses every private job until it is mended."""

    level: Literal["error", "warning"]
    text: str


def check(site: Site, store: StoreFacts | Unreadable) -> list[SiteFinding]:
    """Every finding on key, ledger, policy and store; none: the site is fit for what its policy allows."""
    policy = site.policy()
    recorded: Head | None = None
    errors: list[str] = []
    try:
        recorded = received_head(site.state)
    except LedgerError as error:
        errors.append(f"ledger: {error}")
    ledger = charging.ledger_facts(site, recorded)
    for part in (policy, ledger, store):
        errors += part.reasons if isinstance(part, Unreadable) else ()
    errors += _errors(policy, ledger, store)
    return [SiteFinding("error", text) for text in errors] + [SiteFinding("warning", text) for text in _warnings(site)]


def _errors(
    policy: Policy | Unreadable, ledger: LedgerFacts | Unreadable, store: StoreFacts | Unreadable
) -> Iterator[str]:
    if isinstance(ledger, LedgerFacts):
        yield from checks.ledger_against_server(ledger)
    if isinstance(store, Unreadable):
        return
    if isinstance(ledger, LedgerFacts):
        yield from checks.ledger_against_store(ledger, store)
    if isinstance(policy, Policy):
        yield from checks.store_against_policy(store, policy)
        yield from checks.delta_against_store("policy max_delta", policy.max_delta, store)


def _warnings(site: Site) -> Iterator[str]:
    yield from anchor_warning(site)
    if left_over(site.store.resolve()):
        yield (
            "store: what a stopped `prepare` or `store forget` left lies beside it, with slices of patients who may be "
            "forgotten: run the same command again"
        )
    policy = site.policy()
    if isinstance(policy, Policy) and not policy.require_dp:
        yield "policy: require_dp is false: plans without differential privacy are trained, and nothing bounds them"
    if isinstance(policy, Policy) and policy.allow_reproducible_noise:
        yield "policy: allow_reproducible_noise is true, which protects nobody: for demonstrations alone"
