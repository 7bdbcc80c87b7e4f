"""A site restarted in round 3, and one that joins in round 7: both charge and add noise before anything leaves."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch

from ctslices.store import SliceStore
from fedscan.federation import job_folder, kept_answer, processes, records
from fedscan.federation.kept_answer import Kept
from fedscan.plan import Plan, Submission
from fedscan.privacy.event import round_event
from fedscan.privacy.site_file import Site
from fedscan.training import checkpoints
from fedscan.training.data import TrainingSet
from fedscan.training.private_round import PrivateTrainer
from fedscan.training.weights import digest, update_norm

pytestmark = [pytest.mark.slow, pytest.mark.timeout(2400)]

ROUNDS, RESTARTED, JOINED = 9, 3, 7
ANSWER_AFTER_S = 25.0


class Watch:
    """Collects every answer that a site keeps, by round and ledger entry, while it lies there."""

    def __init__(self, site: Path, run_id: str) -> None:
        self._folder = Site.open(site).state / run_id
        self._stop = threading.Event()
        self.kept: dict[tuple[int, int], Kept] = {}
        self._thread = threading.Thread(target=self._look)
        self._thread.start()

    def _look(self) -> None:
        while not self._stop.wait(0.2):
            if (kept := kept_answer.find(self._folder)) is not None:
                self.kept[kept.answer.round_number, kept.entry] = kept

    def end(self) -> None:
        self._stop.set()
        self._thread.join()


@contextmanager
def watched(sites: dict[str, Path], run_id: str) -> Iterator[dict[str, Watch]]:
    watches = {name: Watch(path, run_id) for name, path in sites.items()}
    try:
        yield watches
    finally:
        for watch in watches.values():
            watch.end()


class Silence:
    """A noise source without noise: what the round would have come to without privacy's own randomness."""

    reproducible = True

    def uniform(self, n: int) -> Any:
        return np.full(n, 0.5)

    def normal(self, n: int) -> torch.Tensor:
        return torch.zeros(n, dtype=torch.float64)


def submit(job: Path, running: Any, run_id: str | None, start_round: int, sites: tuple[str, ...]) -> str:
    """The job as a new submission of a run, for these sites."""
    job_folder.renew(job, Submission.new(run_id=run_id, start_round=start_round))
    meta = json.loads((job / job_folder.META).read_text())
    meta["deploy_map"] = job_folder.deploy_map(sites)
    (job / job_folder.META).write_text(json.dumps(meta))
    return str(running.submit(job))


def wait_until(done: Callable[[], bool], timeout_s: float = 900.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not done():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.1)


def kill_site(running: Any, name: str) -> None:
    """Parent, job process and trainer child of one site: a power cut."""
    for process in processes.belonging_to(running.federation.kit(name)):
        for one in [*process.children(recursive=True), process]:
            try:
                one.kill()
            except psutil.NoSuchProcess:
                continue


@pytest.fixture(scope="module")
def told(
    tmp_path_factory: pytest.TempPathFactory,
    lab: Callable[..., Any],
    make_site: Callable[..., Path],
    private_settings: Callable[..., list[str]],
    repository: Path,
) -> tuple[dict[str, Path], dict[str, Watch], Path, Plan]:
    folder = tmp_path_factory.mktemp("restarts")
    sites = {name: make_site(folder, name, "max_epsilon=1000") for name in ("hosp-a", "hosp-b")}
    everybody = {name: {"sample_rate": 1.0, "expected_patients_per_step": 12.0} for name in sites}
    settings = private_settings(
        settings=(f"rounds={ROUNDS}", "tries_per_round=5"), sites=everybody, answer_after_s=ANSWER_AFTER_S
    )
    job = folder / "job"
    plan = job_folder.new(repository / "jobs" / "ct_fedavg", job, settings)
    run_id = Submission.new().run_id
    run = folder / "lab" / "runs" / run_id

    def done() -> int:
        return len(records.effective_rounds(run / "rounds.jsonl"))

    def charged() -> int:
        return len(Site.open(sites["hosp-a"]).open_ledger().events())

    with lab(folder / "lab", sites) as running, watched(sites, run_id) as watches:
        first = submit(job, running, run_id, 0, ("hosp-a",))
        wait_until(lambda: done() >= RESTARTED)
        before = charged()
        wait_until(lambda: charged() > before)
        kill_site(running, "hosp-a")
        running.wait(first)
        running.start("hosp-a")
        wait_until(lambda: "hosp-a" in {c.name for c in running.session.get_system_info().client_info})
        second = submit(job, running, run_id, done(), ("hosp-a",))
        wait_until(lambda: done() >= JOINED)
        running.session.abort_job(second)
        running.wait(second)
        third = submit(job, running, run_id, done(), ("hosp-a", "hosp-b"))
        running.wait(third, timeout_s=600.0)
    return sites, watches, run, plan


def joined(run: Path) -> int:
    """The first round that hosp-b answered: the one in which it joined, or the next where its start took long."""
    rounds = records.effective_rounds(run / "rounds.jsonl")
    return min(r.round for r in rounds if r.round is not None and "hosp-b" in r.sites and r.sites["hosp-b"].answered)


def test_the_run_came_to_its_end_with_both_sites(told: tuple[Any, Any, Path, Plan]) -> None:
    rounds = records.effective_rounds(told[2] / "rounds.jsonl")
    assert [r.round for r in rounds] == list(range(ROUNDS))
    assert all(r.sites["hosp-a"].answered for r in rounds)
    assert ["hosp-b" in r.asked for r in rounds] == [number >= JOINED for number in range(ROUNDS)]
    assert joined(told[2]) is not None


def test_every_answer_is_that_of_a_charge_of_its_own(told: tuple[Any, dict[str, Watch], Path, Plan]) -> None:
    """The round in which the site was killed is in its ledger twice: nothing is trained again on an old charge."""
    sites, watches, run, plan = told
    for name, watch in watches.items():
        ledger = Site.open(sites[name]).open_ledger()
        charges = [ledger.paid_for(line.number) for line in ledger.lines if ledger.paid_for(line.number)]
        rounds = [paid.charge.round_number for paid in charges if paid is not None]
        assert ledger.events() == [round_event(plan, name)] * len(rounds)
        if name == "hosp-a":
            assert rounds.count(RESTARTED) >= 2
        else:
            assert set(rounds) <= {7, 8}
        for record in records.effective_rounds(run / "rounds.jsonl"):
            entry = record.sites.get(name)
            if entry is not None and entry.answered:
                sent = [
                    k
                    for (r, _), k in watch.kept.items()
                    if r == record.round and digest(k.update) == entry.update_digest
                ]
                assert len(sent) == 1
                paid = ledger.paid_for(sent[0].entry)
                assert paid is not None
                assert paid.answer_sha256 == sent[0].sha256


def test_noise_is_on_before_the_joining_sites_first_gradient(
    told: tuple[dict[str, Path], dict[str, Watch], Path, Plan],
) -> None:
    """Everybody is drawn in each step here, and what is drawn for a patient follows from the plan: without noise the
    same round from the same model comes to the same update, to the bit."""
    sites, watches, run, plan = told
    number = joined(run)
    start = checkpoints.load(run / "checkpoints", number, plan, run.name)
    data = TrainingSet.from_store(SliceStore.open(Site.open(sites["hosp-b"]).store), plan)
    torch.set_num_threads(1)
    trainer = PrivateTrainer(plan, data, "hosp-b", allow_reproducible=True)
    without, again = (trainer.round(start.weights, number, None, Silence()).update for _ in range(2))
    assert digest(without) == digest(again)
    answers = [kept for (r, _), kept in watches["hosp-b"].kept.items() if r == number]
    assert answers
    for kept in answers:
        assert digest(start.weights) == kept.answer.model_digest
        apart = update_norm({name: kept.update[name] - without[name] for name in without})
        assert apart > 0.2 * update_norm(without)


def test_noise_is_on_again_before_the_restarted_sites_first_gradient(
    told: tuple[dict[str, Path], dict[str, Watch], Path, Plan],
) -> None:
    """The round in which it was killed, from the same model and state as before: nothing of it comes twice."""
    kept = [one for (r, _), one in told[1]["hosp-a"].kept.items() if r == RESTARTED]
    assert kept
    assert len({digest(one.update) for one in kept}) == len(kept)
    assert len({one.answer.ledger.count for one in kept}) == len(kept)
