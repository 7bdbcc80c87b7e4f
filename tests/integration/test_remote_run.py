"""The researcher's side over a real federation: submit, watch, download, kills, resume, by the admin API of a lead."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from fedscan.federation import admin, job_folder, kits, records, remote_run
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
    sites = {name: make_site(folder, name, "require_dp=false") for name in SITES}
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
    with pytest.raises(RunError, match="all 2 rounds are done"):
        remote_run.resume(run, told)
    with pytest.raises(RunError, match="not empty"):
        remote_run.run(make_job(name="again"), kit_of(federation), run, told)
