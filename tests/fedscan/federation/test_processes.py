"""Stopping a run ends its own processes, and nobody else's."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from fedscan.federation import processes

SLEEP = [sys.executable, "-c", "import time; time.sleep(60)"]


def test_only_nvflares_processes_of_the_run_are_ended(tmp_path: Path) -> None:
    run = tmp_path / "run"
    (tmp_path / "run2").mkdir()
    ours = subprocess.Popen([*SLEEP, "nvflare.private.fed.app.client.worker_process", "-m", f"{run}/kit"])
    others = [
        subprocess.Popen([*SLEEP, f"{run}/rounds.jsonl"]),
        subprocess.Popen([*SLEEP, f"fedscan job run job --out {run}; fedscan generate {run}/model.safetensors"]),
        subprocess.Popen([*SLEEP, "nvflare.private.fed.app.client.worker_process", "-m", f"{tmp_path}/run2/kit"]),
    ]
    try:
        assert processes.stop_all(run) == 1
        assert ours.poll() is not None
        assert [other.poll() for other in others] == [None, None, None]
    finally:
        for process in (ours, *others):
            process.kill()
            process.wait()
