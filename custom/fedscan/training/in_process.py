"""The federation's rounds in one process and without a framework: for tests, studies and benchmarks.

Bit for bit what the federation comes to where all asked sites answer. One site makes it centralised training.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import torch

from ctslices.store import SliceStore
from fedscan import __version__
from fedscan.plan import Plan
from fedscan.privacy.noise import NoiseSource, SecureNoise
from fedscan.training import checkpoints
from fedscan.training.aggregation import combine
from fedscan.training.checkpoints import Checkpoint
from fedscan.training.data import TrainingSet
from fedscan.training.ema import Ema
from fedscan.training.in_process_sites import PlainSite, PrivateSite, PrivateSiteReport, SiteReport, Trained
from fedscan.training.local import Progress
from fedscan.training.model_file import save_model
from fedscan.training.optimiser import OptimiserState
from fedscan.training.privacy_statement import REPRODUCIBLE, privacy_statement
from fedscan.training.private_round import PrivateProgress
from fedscan.training.sampling import sample_sites
from fedscan.training.site_state import SiteStates
from fedscan.training.update_codec import ErrorFeedback, decode
from fedscan.training.weights import Weights, initial_weights, shares

OnStep: TypeAlias = Callable[[str, int, Progress | PrivateProgress], None]
MODEL_NAME = "model.safetensors"


@dataclass(frozen=True)
class RoundReport:
    """One round: who trained and what it came to. Holds no tensors: a long run keeps the reports of all its rounds."""

    round_number: int
    sites: dict[str, SiteReport | PrivateSiteReport]
    loss: float | None
    """Of the sites, by their shares; None under DP, where no loss is told."""
    seconds: float


@dataclass(frozen=True)
class Outcome:
    """The state after the last round that was run, and the reports of the rounds of this call."""

    state: Checkpoint
    rounds: tuple[RoundReport, ...]

    @property
    def weights(self) -> Weights:
        """The averaged (EMA) weights: what samples are drawn from."""
        return self.state.ema


def run(
    plan: Plan,
    stores: Mapping[str, Path | TrainingSet],
    out: Path | None = None,
    on_round: Callable[[RoundReport], None] | None = None,
    *,
    on_step: OnStep | None = None,
    initial: Weights | None = None,
    until_round: int | None = None,
    threads: int = 1,
    device: torch.device | str = "cpu",
    noise: Callable[[str], NoiseSource] | None = None,
) -> Outcome:
    """Trains the plan's rounds over the sites' stores.

    With `out`, a checkpoint and the sites' optimiser states are written each round, a later call with the same `out`
    goes on from the newest, and `out`/model.safetensors is the finished model; without it all stays in memory.
    `initial` are weights to start from in place of the seed's (the model that `plan.init_sha256` names).
    `until_round` stops earlier than the plan, after so many rounds in all. `on_step` is told (site, round, step).

    A private plan is for studies here, on data that need no protection: nothing is charged, there is no ledger. `noise`
    gives each site its source (default: secure noise, so that no two runs are the same).
    """
    if plan.init_sha256 is not None and initial is None:
        raise ValueError(f"the plan starts from model {plan.init_sha256[:12]}: pass its weights as `initial`")
    with _threads(threads):
        federation = _Federation(plan, stores, out, device, noise or (lambda _: SecureNoise()))
        state = federation.start(initial)
        reports = []
        for _ in range(state.rounds_done, plan.rounds if until_round is None else min(until_round, plan.rounds)):
            state, report = federation.round(state, on_step)
            reports.append(report)
            if on_round is not None:
                on_round(report)
        if out is not None and state.rounds_done == plan.rounds:
            save_model(out / MODEL_NAME, state.ema, plan, federation.provenance(state))
    return Outcome(state, tuple(reports))


class _Federation:
    def __init__(
        self,
        plan: Plan,
        stores: Mapping[str, Path | TrainingSet],
        out: Path | None,
        device: torch.device | str,
        noise: Callable[[str], NoiseSource],
    ) -> None:
        if not stores:
            raise ValueError("no sites: name at least one site and its store")
        self.plan = plan
        self.run_id = plan.digest[:32]
        self.checkpoints = None if out is None else out / "checkpoints"
        self.ema = Ema(plan.ema.half_life_rounds)
        self.sites: dict[str, PlainSite | PrivateSite] = {}
        for site, store in sorted(stores.items()):
            data = _training_set(store, plan)
            self.sites[site] = (
                PlainSite(plan, data, site, device)
                if plan.privacy is None
                else PrivateSite(plan, data, site, device, noise(site))
            )
        self.codecs = {
            site: ErrorFeedback(
                plan.update_precision, None if out is None else out / "sites" / site / "rests", plan.digest, self.run_id
            )
            for site in self.sites
        }
        self.states: dict[str, SiteStates | _MemoryStates] = {
            site: _MemoryStates()
            if out is None
            else SiteStates(out / "sites" / site, plan_digest=plan.digest, run_id=self.run_id, site=site)
            for site in self.sites
        }

    def start(self, initial: Weights | None) -> Checkpoint:
        if self.checkpoints is not None:
            newest = checkpoints.newest(self.checkpoints, self.plan, self.run_id)
            if newest is not None:
                return newest
        weights = initial_weights(self.plan) if initial is None else initial
        return Checkpoint(0, weights, weights, 0)

    def round(self, state: Checkpoint, on_step: OnStep | None = None) -> tuple[Checkpoint, RoundReport]:
        started, number = time.monotonic(), state.rounds_done
        parts = shares({site: self.sites[site].weight for site in self._asked(number)})
        updates: dict[str, Weights] = {}
        sites: dict[str, SiteReport | PrivateSiteReport] = {}
        for site, share in parts.items():
            trained = self._train(site, number, state.weights, on_step)
            wire = self.codecs[site].encode(number, trained.update)
            updates[site] = decode(wire, self.plan.update_precision)
            sites[site] = trained.report(share)
        weights = combine(self.plan.aggregation, state.weights, parts, lambda site, name: updates[site][name])
        ema = self.ema.update(state.ema, weights, state.ema_count)
        after = Checkpoint(number + 1, weights, ema, state.ema_count + 1)
        if self.checkpoints is not None:
            checkpoints.save(self.checkpoints, after, self.plan, self.run_id)
        return after, RoundReport(number, sites, _loss(sites.values()), time.monotonic() - started)

    def provenance(self, state: Checkpoint) -> dict[str, Any]:
        data = [site.data for site in self.sites.values()]
        fields = {one.field_mm for one in data}
        return {
            "unit": "patient" if all(one.unit == "patient" for one in data) else "image",
            "values": "grey" if any(one.values == "grey" for one in data) else "hu",
            "field_mm": fields.pop() if len(fields) == 1 else None,
            "run_id": self.run_id,
            "plan_digest": self.plan.digest,
            "rounds_done": state.rounds_done,
            "sites": {name: site.provenance() for name, site in self.sites.items()},
            "weights": "ema" if self.plan.ema.half_life_rounds > 0 else "raw",
            "trained": "in one process, without a federation",
            "fedscan_version": __version__,
            "privacy": self._privacy(state.rounds_done),
        }

    def _privacy(self, rounds_done: int) -> str:
        asked = [self._asked(number) for number in range(rounds_done)]
        private = [site for site in self.sites.values() if isinstance(site, PrivateSite)]
        remark = "no ledger: trained in one process"
        if any(site.noise.reproducible for site in private):
            remark = f"{REPRODUCIBLE}; {remark}"
        return privacy_statement(self.plan, {site: sum(site in one for one in asked) for site in self.sites}, remark)

    def _asked(self, number: int) -> list[str]:
        return sample_sites(self.sites, self.plan.clients_per_round, self.plan.seed, number)

    def _train(self, site: str, number: int, weights: Weights, on_step: OnStep | None) -> Trained:
        before = self.states[site].before(number, weights)
        progress = None if on_step is None else lambda step: on_step(site, number, step)
        trained = self.sites[site].train(weights, number, before[1] if before else None, progress)
        if trained.state is not None:
            self.states[site].save(number, trained.state)
        return trained


class _MemoryStates:
    """A site's newest optimiser state, as SiteStates keeps it in files."""

    def __init__(self) -> None:
        self._kept: tuple[int, OptimiserState] | None = None

    def save(self, round_number: int, state: OptimiserState) -> None:
        self._kept = (round_number, state)

    def before(self, _round_number: int, _weights: Weights) -> tuple[int, OptimiserState] | None:
        return self._kept


def _training_set(store: Path | TrainingSet, plan: Plan) -> TrainingSet:
    return store if isinstance(store, TrainingSet) else TrainingSet.from_store(SliceStore.open(store), plan)


def _loss(sites: Iterable[SiteReport | PrivateSiteReport]) -> float | None:
    plain = [report for report in sites if isinstance(report, SiteReport)]
    return math.fsum(report.share * report.loss for report in plain) if plain else None


@contextmanager
def _threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
