"""`server clean` beside a running server: what is at work stays, what is done goes, and the server goes on."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fedscan.federation import job_folder, kits, server_clean, verdict

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

LATER_S = 1000 * 86400.0


def test_a_server_is_cleaned_while_it_runs(
    lab: Callable[..., Any], stores: dict[str, Path], repository: Path, tmp_path: Path
) -> None:
    def new(name: str) -> Path:
        settings = ["model.preset=tiny", "rounds=3", "training.local_steps=2", "training.batch_size=8"]
        job_folder.new(repository / "jobs" / "ct_fedavg", tmp_path / name, [*settings, "min_responses=1"], ["hosp-a"])
        return tmp_path / name

    with lab(tmp_path, {"hosp-a": stores["hosp-a"]}) as running:
        kit = running.federation.kit(kits.SERVER)
        first, second = new("first"), new("second")

        def clean() -> server_clean.Cleaned:
            return server_clean.clean(kit, now=time.time() + LATER_S)

        job = running.submit(first)
        run = running.run_folder(first)
        until = time.monotonic() + 120
        while not (run / "rounds.jsonl").exists() and time.monotonic() < until:
            time.sleep(0.1)
        during = clean()
        assert during.removed == (), "the run and its job are at work"
        assert {one.why for one in during.kept if one.path in (run, run / "updates")} == {"it runs"}
        running.wait(job)
        assert (verdict.read(run / verdict.FILE) or during) != during, "it went on to its end"

        gone = {one.path: one for one in clean().removed}
        assert run in gone
        stored = next(path for path in gone if path.name == job)
        assert sorted(path.name for path in stored.iterdir()) == ["meta", "scheduled"]
        assert [path.name for path in run.iterdir() if path.suffix == ".safetensors"] == []

        running.run(second)
        judged = verdict.read(running.run_folder(second) / verdict.FILE)
        assert judged is not None
        assert judged.good, "the server takes and finishes the next job"
