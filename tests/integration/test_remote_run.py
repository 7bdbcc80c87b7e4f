"""The researcher's side over a real federation: submit, watch, download, kills, resume, by the admin API of a lead."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from fedscan.federation import admin, federation_file, job_folder, kept_answer, kits, processes, records, remote_run
from fedscan.federation.local_run import Progress, RunError
from fedscan.training import model_file

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

SITES = ("hosp-a", "hosp-b")


class Told(list[str]):
    def __call__(self, progress: Progress) -> None:
        print(progress.text, flush=True)
        self.append(progress.text)

    def says(self, text: str) -> bool:
        return any(text in line for line in self)


@pytest.fixture(scope="module")
def federation(
    tmp_path_factory: pytest.TempPathFactory, make_site: Callable[..., Path], lab: Callable[..., Any]
) -> Iterator[Any]:
    folder = tmp_path_factory.mktemp("remote")
    sites = {name: make_site(folder, name, "require_dp=false", "max_epsilon=1000") for name in SITES}
    with lab(folder, sites) as running:
        yield running


@pytest.fixture
def make_job(repository: Path, tmp_path: Path) -> Callable[..., Path]:
    def make(*settings: str, name: str = "job", sites: tuple[str, ...] = SITES) -> Path:
        plain = [
            "model.preset=tiny",
            "rounds=2",
            "training.local_epochs=null",
            "training.local_steps=3",
            "training.batch_size=4",
            "training.warmup_steps=2",
            "min_responses=2",
            "round_timeout_s=120",
        ]
        job_folder.new(repository / "jobs" / "ct_fedavg", tmp_path / name, [*plain, *settings], sites)
        return tmp_path / name

    return make


def kit_of(federation: Any) -> Path:
    return Path(federation.federation.kit(kits.LEAD))


def test_a_run_over_a_kit_ends_with_model_records_and_verdict(
    federation: Any, make_job: Callable[..., Path], tmp_path: Path
) -> None:
    told = Told()
    judged = remote_run.run(make_job(), kit_of(federation), tmp_path / "RUN", told)
    run = tmp_path / "RUN"
    assert judged.good, judged.failings
    assert judged.nvflare_status == "FINISHED:COMPLETED"
    assert {site: share.answered for site, share in judged.sites.items()} == {"hosp-a": 2, "hosp-b": 2}
    assert [r.event for r in records.read(run / "rounds.jsonl")] == ["started", "round", "round", "finished"]
    assert model_file.load_model(run / "model.safetensors").provenance["rounds_done"] == 2
    assert told.says("round 1/2: 2 of 2 sites")
    assert sorted(path.name for path in run.iterdir()) == [
        ".lock", "federation.json", "job", "model.safetensors", "rounds.jsonl", "verdict.json"
    ]  # fmt: skip
    assert json.loads((run / "verdict.json").read_text())["good"] is True
    assert not list((run / "job").rglob(".__nvfl*")), "a copy is signed"
    assert remote_run.resume(run, told) == judged
    assert told.says("all 2 rounds are done already")
    with pytest.raises(RunError, match="not empty"):
        remote_run.run(make_job(name="again"), kit_of(federation), run, told)


def test_a_killed_server_is_survived_until_the_run_is_done(
    federation: Any,
    make_job: Callable[..., Path],
    tmp_path: Path,
    seconds_to_next_round: Callable[[Path, float], float],
) -> None:
    """kill -9 of the server's parent process after round 2: NVFlare would call the job RUNNING for ever."""
    told = Told()
    killed: list[float] = []

    def kill_once(progress: Progress) -> None:
        told(progress)
        if not killed and progress.record is not None and progress.record.event == "round" and progress.record.round:
            find(federation, "server.server_train").kill()
            killed.append(time.time())
            federation.start(kits.SERVER)

    run = tmp_path / "RUN"
    judged = remote_run.run(make_job("rounds=4"), kit_of(federation), run, kill_once, until_done=True)
    print(f"killed the server: the next round was done {seconds_to_next_round(run, killed[0]):.0f} s later")
    assert killed
    assert judged.good, judged.failings
    assert [share.round for share in judged.rounds] == [0, 1, 2, 3]
    jobs = federation_file.read(run).jobs  # type: ignore[union-attr]
    assert len(jobs) == 2
    with admin.session(kit_of(federation), kits.LEAD) as session:
        assert [admin.status(session, job) for job in jobs] == ["FINISHED:ABNORMAL", "FINISHED:COMPLETED"]
    assert told.says("of 4 rounds are done: going on")


def test_a_killed_server_job_and_a_killed_site_job_are_survived(
    federation: Any,
    make_job: Callable[..., Path],
    tmp_path: Path,
    seconds_to_next_round: Callable[[Path, float], float],
) -> None:
    told, run = Told(), tmp_path / "RUN"
    victims = ["server.runner_process", "client.worker_process"]
    struck: set[str] = set()
    killed_at: list[float] = []

    def kill(progress: Progress) -> None:
        """One in each job, whose rounds may be told several at a time."""
        told(progress)
        job = federation_file.read(run).jobs[-1]  # type: ignore[union-attr]
        if victims and job not in struck and progress.record is not None and progress.record.event == "round":
            struck.add(job)
            find(federation, victims.pop(0)).kill()
            killed_at.append(time.time())

    judged = remote_run.run(make_job("rounds=8"), kit_of(federation), run, kill, until_done=True)
    assert judged.good, judged.failings
    assert not victims
    assert len(federation_file.read(run).jobs) == 3  # type: ignore[union-attr]
    for victim, at in zip(("the server's job process", "a site's"), killed_at, strict=True):
        print(f"killed {victim}: the next round was done {seconds_to_next_round(run, at):.0f} s later")


def test_an_aborted_job_leaves_its_model_and_says_that_it_is_not_good(
    federation: Any, make_job: Callable[..., Path], tmp_path: Path
) -> None:
    told = Told()

    def abort(progress: Progress) -> None:
        told(progress)
        if progress.record is not None and progress.record.event == "round" and progress.record.round == 0:
            with admin.session(kit_of(federation), kits.LEAD) as session:
                admin.abort(session, federation_file.read(run).jobs[-1])  # type: ignore[union-attr]

    run = tmp_path / "RUN"
    judged = remote_run.run(make_job("rounds=50"), kit_of(federation), run, abort)
    assert not judged.good
    assert judged.ended == "stopped"
    assert judged.nvflare_status == "FINISHED:ABORTED"
    assert model_file.load_model(run / "model.safetensors").provenance["rounds_done"] == judged.rounds_done
    assert any("of 50 rounds are done" in text for text in judged.failings)
    for refusals in federation.folder.rglob("refusals.jsonl"):  # an end is no reason for an alarm at a site
        assert "end_run" not in refusals.read_text(), refusals


def test_after_a_killed_server_no_site_pays_again_for_an_answer_that_it_holds(
    federation: Any, private_settings: Callable[..., list[str]], repository: Path, tmp_path: Path
) -> None:
    job_folder.new(
        repository / "jobs" / "ct_fedavg", tmp_path / "job", private_settings(*SITES, answer_after_s=40.0), SITES
    )
    told, run = Told(), tmp_path / "RUN"
    paid_before = {name: federation.steps_charged(name) for name in SITES}
    killed: list[int] = []

    def kill_once(progress: Progress) -> None:
        told(progress)
        record = progress.record
        if killed or record is None or record.event != "asked" or record.round != 1:
            return
        job_process = find(federation, "server.runner_process")
        job_process.suspend()  # the answers come to be, and none is taken
        wait_until(lambda: all(holds_answer(federation, name, record.run_id, 1) for name in SITES))
        find(federation, "server.server_train").kill()
        job_process.kill()
        killed.append(1)
        federation.start(kits.SERVER)

    judged = remote_run.run(tmp_path / "job", kit_of(federation), run, kill_once, until_done=True)
    assert killed
    assert judged.good, judged.failings
    for name in SITES:
        assert judged.sites[name].asked == 3
        assert federation.steps_charged(name) - paid_before[name] == 2 * 2, "two rounds of two steps"
    assert told.says("epsilon")
    assert (
        model_file.load_model(run / "model.safetensors").provenance["privacy_spent"]["sites"]["hosp-a"]["rounds"] == 3
    )


def holds_answer(federation: Any, name: str, run_id: str, number: int) -> bool:
    """Whether the site keeps its answer of this round, and its ledger says that it was paid for."""
    site = federation.site(name)
    kept = kept_answer.find(site.state / run_id)
    if kept is None or kept.answer.round_number != number:
        return False
    paid = site.open_ledger().paid_for(kept.entry)
    return paid is not None and bool(paid.answer_sha256 == kept.sha256)


def wait_until(done: Callable[[], bool], timeout_s: float = 240.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not done():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.1)


def find(federation: Any, words: str) -> psutil.Process:
    """A process of this federation by a word of its command line."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        for process in processes.belonging_to(federation.folder):
            with contextlib.suppress(psutil.NoSuchProcess):
                if any(part.endswith(words) for part in process.cmdline()):
                    return process
        time.sleep(0.1)
    raise AssertionError(f"no process {words}")
