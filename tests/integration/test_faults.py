"""A site that fails, and a site that hangs: the round goes on without it, or stops the run, as the plan says."""

from __future__ import annotations

import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from fedscan.federation import job_folder, local_run, processes, records
from fedscan.federation.local_run import Progress, RunError
from fedscan.training import model_file

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.fixture
def copies(stores: dict[str, Path], tmp_path: Path) -> dict[str, Path]:
    return {site: shutil.copytree(path, tmp_path / "stores" / site) for site, path in stores.items()}


def make_job(repository: Path, tmp_path: Path, *settings: str) -> Path:
    base = ["model.preset=tiny", "rounds=2", "training.local_steps=2", "training.batch_size=8"]
    job_folder.new(repository / "jobs" / "ct_fedavg", tmp_path / "job", [*base, *settings])
    return tmp_path / "job"


def when(words: str, action: Callable[[], None]) -> Callable[[Progress], None]:
    """A listener that acts once, at the first progress that holds these words."""
    done: list[bool] = []

    def listen(progress: Progress) -> None:
        if words in progress.text and not done:
            done.append(True)
            action()

    return listen


def test_a_site_whose_store_is_gone_is_recorded_and_the_others_go_on(
    repository: Path, copies: dict[str, Path], tmp_path: Path
) -> None:
    job = make_job(repository, tmp_path, "min_responses=2")
    run = tmp_path / "RUN"
    local_run.run(
        job, copies, run, listen=when("starting the server", lambda: shutil.rmtree(copies["hosp-b"])), no_policy=True
    )
    for record in records.effective_rounds(run / "rounds.jsonl"):
        assert record.sites["hosp-b"].refused == "site answered BAD_TASK_DATA"
        assert [site for site, entry in record.sites.items() if entry.answered] == ["hosp-a", "hosp-c"]
    assert set(model_file.load_model(run / "model.safetensors").provenance["sites"]) == {"hosp-a", "hosp-c"}


def test_too_few_answers_repeat_the_round_and_then_stop_the_run_with_its_reason(
    repository: Path, copies: dict[str, Path], tmp_path: Path
) -> None:
    job = make_job(repository, tmp_path, "min_responses=3", "tries_per_round=2")
    run = tmp_path / "RUN"
    with pytest.raises(RunError, match=r"failed 2 times: 2 good answers, the plan needs 3.*fedscan job resume"):
        local_run.run(
            job,
            copies,
            run,
            listen=when("starting the server", lambda: shutil.rmtree(copies["hosp-b"])),
            no_policy=True,
        )
    assert [r.event for r in records.read(run / "rounds.jsonl")] == ["started", "repeat", "repeat", "stopped"]
    assert not (run / "model.safetensors").exists()
    assert processes.belonging_to(run) == []


def test_a_hanging_site_costs_its_answer_and_no_more_than_the_rounds_time(
    repository: Path, stores: dict[str, Path], tmp_path: Path
) -> None:
    job = make_job(repository, tmp_path, "min_responses=2", "round_timeout_s=40")
    run = tmp_path / "RUN"

    def hang() -> None:
        for process in processes.belonging_to(run):
            if "client.worker_process" in " ".join(process.cmdline()) and "hosp-a" in " ".join(process.cmdline()):
                for child in process.children():
                    psutil.Process(child.pid).send_signal(signal.SIGSTOP)

    local_run.run(job, stores, run, listen=when("round 1/2", hang), no_policy=True)
    first, second = records.effective_rounds(run / "rounds.jsonl")
    assert all(entry.answered for entry in first.sites.values())
    assert not second.sites["hosp-a"].answered
    assert second.sites["hosp-b"].answered
    assert second.sites["hosp-c"].answered
    assert second.seconds is not None
    assert second.seconds < 60
    assert processes.belonging_to(run) == []
