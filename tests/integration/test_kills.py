"""kill -9 of any process at any moment: the run finishes, and its model is that of the uninterrupted run."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from fedscan.federation import job_folder, processes, records
from fedscan.training import in_process, model_file
from fedscan.training.weights import digest

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

VICTIMS = {
    "trainer child": "fedscan.training.trainer",
    "site job process": "client.worker_process",
    "site parent": "client.client_train",
    "server job process": "server.runner_process",
    "server parent": "server.server_train",
}


def fedscan(*arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "fedscan", *arguments]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


def start(job: Path, stores: dict[str, Path], run: Path) -> subprocess.Popen[str]:
    sites = [f"--site={site}={store}" for site, store in stores.items()]
    return fedscan("job", "run", str(job), *sites, "--no-policy", "--out", str(run))


def wait_for_round(run: Path, number: int, command: subprocess.Popen[str]) -> None:
    while command.poll() is None:
        if len(records.effective_rounds(run / "rounds.jsonl")) >= number:
            return
        time.sleep(0.05)


def find(run: Path, words: str) -> psutil.Process:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        for process in psutil.process_iter():
            try:
                line = " ".join(process.cmdline())
                if words in line and any(
                    str(run.resolve()) in " ".join(p.cmdline()) for p in [process, *process.parents()]
                ):
                    return process
            except psutil.NoSuchProcess:
                continue
        time.sleep(0.1)
    raise AssertionError(f"no process {words}")


def finish(run: Path, command: subprocess.Popen[str]) -> int:
    """Waits for the command, resumes while the run is not done; the number of resumes."""
    for resumes in range(4):
        _, words = command.communicate(timeout=300)
        if command.returncode == 0:
            return resumes
        assert "fedscan job resume" in words or command.returncode == -signal.SIGKILL, words
        command = fedscan("job", "resume", str(run))
    raise AssertionError("four resumes did not finish the run")


def check(job: Path, stores: dict[str, Path], run: Path, tmp_path: Path) -> None:
    in_process.run(job_folder.read_plan(job), stores, tmp_path / "here")
    got = model_file.load_model(run / "model.safetensors")
    wanted = model_file.load_model(tmp_path / "here" / "model.safetensors")
    assert digest(got.weights) == digest(wanted.weights)
    assert [r.round for r in records.effective_rounds(run / "rounds.jsonl")] == [0, 1, 2]
    assert processes.belonging_to(run) == []


@pytest.mark.parametrize("victim", VICTIMS)
def test_a_killed_process_costs_no_bit_of_the_model(
    victim: str,
    job: Path,
    stores: dict[str, Path],
    tmp_path: Path,
    seconds_to_next_round: Callable[[Path, float], float],
) -> None:
    run = tmp_path / "RUN"
    command = start(job, stores, run)
    wait_for_round(run, 1, command)
    find(run, VICTIMS[victim]).kill()
    killed_at = time.time()
    resumes = finish(run, command)
    print(f"killed {victim}: the next round was done {seconds_to_next_round(run, killed_at):.0f} s later")
    if victim == "trainer child":
        assert resumes == 0, "a dead trainer child must not end the run"
    check(job, stores, run, tmp_path)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_whole_command_killed_at_random_moments(
    seed: int, job: Path, stores: dict[str, Path], tmp_path: Path
) -> None:
    run = tmp_path / "RUN"
    command = start(job, stores, run)
    time.sleep(random.Random(seed).uniform(6, 30))
    os.kill(command.pid, signal.SIGKILL)
    command.communicate()
    command = start(job, stores, run) if not (run / "run.json").exists() else fedscan("job", "resume", str(run))
    finish(run, command)
    check(job, stores, run, tmp_path)
