"""What the demo's report tells of the private run: budgets, what crossed the walls, and what training added."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from fedscan.cli.demo_facts import Hu, Wall, read_wall
from fedscan.cli.demo_steps import MODEL, START

if TYPE_CHECKING:
    from fedscan.evaluation.frechet import FdLite112
    from fedscan.evaluation.lungs import ChestCheck
    from fedscan.plan import Plan
    from fedscan.privacy.outlook import Outlook
    from fedscan.privacy_plan import PrivacyPlan


@dataclass(frozen=True)
class Result:
    """What one model drew, and how it was judged."""

    key: str
    """start, private or plain."""
    hu: Hu
    chest: ChestCheck
    distance: FdLite112
    steps: int
    """Gradient steps of each hospital after the public start."""


@dataclass(frozen=True)
class Budget:
    """What one hospital's own ledger says."""

    site: str
    spent: float
    """epsilon at the policy's max_delta."""
    max_epsilon: float
    delta: float
    rounds_charged: int
    steps: int
    entries: int
    plot: bytes
    """PNG."""

    @property
    def left(self) -> float:
        """Of max_epsilon."""
        return max(0.0, self.max_epsilon - self.spent)


@dataclass(frozen=True)
class PrivateFacts:
    """All of it."""

    plan: Plan
    start_steps: int
    start_slices: int
    results: tuple[Result, ...]
    """start, private, plain."""
    budgets: tuple[Budget, ...]
    walls: tuple[Wall, ...]
    outlook: Outlook
    """Of the average over the sites."""
    rounds: int

    @property
    def privacy(self) -> PrivacyPlan:
        """The plan's."""
        assert self.plan.privacy is not None
        return self.plan.privacy

    @property
    def price(self) -> Price:
        """In numbers."""
        start, private, plain = (result.distance for result in self.results)
        return Price(start.value, private.value, plain.value, start.floor.high - start.floor.low)


@dataclass(frozen=True)
class Price:
    """Distances (FD-lite112, same n) to real slices of the start, the private and the plain result."""

    start: float
    private: float
    plain: float
    spread: float
    """Highest less lowest of the floor's draws: differences within it say nothing."""

    @property
    def private_added(self) -> float:
        """How much nearer to real slices the private training came; negative: it went away from them."""
        return self.start - self.private

    @property
    def plain_added(self) -> float:
        """The same without privacy."""
        return self.start - self.plain

    @property
    def verdict(self) -> str:
        """What private training was worth here, in one sentence."""
        added = self.private_added
        if abs(added) <= self.spread:
            return "nothing that this measure can tell from chance"
        if added < 0.0:
            return "less than nothing: the noise moved the pictures away from real ones"
        if self.plain_added <= self.spread:
            return "something, though training without privacy added nothing that this measure can tell from chance"
        return f"{100.0 * added / self.plain_added:.0f}% of what training without privacy added"


def gather_private(
    out: Path,
    hospitals: Sequence[str],
    real: Hu,
    drawn: Mapping[str, Hu],
    distances: Mapping[str, FdLite112],
    plain: Plan,
) -> PrivateFacts:
    """Of a finished demo in `out`; `real` are all real slices, `plain` the plan without privacy.

    Raises OSError, ValueError, LedgerError.
    """
    from fedscan.evaluation.lungs import chest_check
    from fedscan.federation import records
    from fedscan.privacy.outlook import average_noise_per_patient, outlook
    from fedscan.training.model_file import load_model

    run = out / "run-private"
    model, start = load_model(run / MODEL), load_model(out / START)
    plan = model.plan
    if plan.privacy is None:
        raise ValueError(f"{run / MODEL} was trained without privacy: start anew with --fresh")
    steps = {"start": 0, "private": _steps(plan), "plain": _steps(plain)}
    rounds = records.effective_rounds(run / "rounds.jsonl")
    return PrivateFacts(
        plan=plan,
        start_steps=int(start.provenance["steps"]),
        start_slices=int(start.provenance["slices"]),
        results=tuple(Result(key, hu, chest_check(hu, real), distances[key], steps[key]) for key, hu in drawn.items()),
        budgets=tuple(read_budget(out / "sites" / name, str(model.provenance["run_id"])) for name in hospitals),
        walls=tuple(read_wall(out / "sites" / name / "state" / "wall.jsonl", name) for name in hospitals),
        outlook=outlook(
            average_noise_per_patient(plan), sum(site.declared_patients for site in plan.privacy.sites.values())
        ),
        rounds=sum(1 for _ in rounds),
    )


def read_slices(folder: Path) -> Hu:
    """int16 [n, s, s] that `generate` left there."""
    with np.load(folder / "slices.npz") as archive:
        hu: Hu = archive["hu"]
    return hu


def read_budget(folder: Path, run_id: str) -> Budget:
    """From a site's verified ledger. Raises ValueError where it did not pay for the run; SiteError, LedgerError."""
    from fedscan.cli.budget_plot import png
    from fedscan.privacy.ledger_report import by_job, history
    from fedscan.privacy.policy import Unreadable
    from fedscan.privacy.site_file import Site

    site = Site.open(folder)
    ledger, policy = site.open_ledger(), site.policy()
    if isinstance(policy, Unreadable):
        raise ValueError("; ".join(policy.reasons))
    jobs = by_job(ledger.lines)
    if run_id not in {job.run_id for job in jobs}:
        raise ValueError(f"the ledger of {site.name} did not pay for the private run: start anew with --fresh")
    return Budget(
        site=site.name,
        spent=ledger.epsilon(policy.max_delta),
        max_epsilon=policy.max_epsilon,
        delta=policy.max_delta,
        rounds_charged=sum(job.rounds for job in jobs),
        steps=sum(job.steps for job in jobs),
        entries=ledger.head.count,
        plot=png(history(ledger.lines, policy.max_delta), policy.max_delta, policy.max_epsilon, site.name),
    )


def _steps(plan: Plan) -> int:
    return plan.rounds * (plan.training.local_steps or 0)
