"""A lead who names another lead's run: its id stands in the meta of jobs, which everybody may look at."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from nvflare.app_common.workflows.fedavg import FedAvg

from fedscan.federation import job_results, records, run_owner, server_clean
from fedscan.federation.job import controller
from fedscan.federation.job.controller import DiffusionFedAvg
from fedscan.federation.records import RoundRecord
from fedscan.federation.server_job import ServerJob
from fedscan.federation.server_round import RunStoppedError
from fedscan.plan import Plan, Submission

LEAD, OTHER = "lead@example.org", "other@example.org"


def job_of(run: Path, plan: Plan, results: Path) -> ServerJob:
    return ServerJob(plan, Submission.new(run_id="a" * 32), run, run / "shelf", result_folder=results)


class Engine:
    """Notes what a controller lays open before it begins."""

    def __init__(self) -> None:
        self.told: list[str] = []

    def register_app_command(self, topic: str, tell: Any) -> None:
        self.told.append(topic)

    def get_workspace(self) -> Any:
        return SimpleNamespace(
            get_site_config_dir=lambda: "local",
            get_file_path_in_startup=lambda name: name,
            get_app_dir=lambda job: "app",
            get_root_dir=lambda: ".",
        )


def start(monkeypatch: pytest.MonkeyPatch, job: ServerJob, submitter: str | None) -> tuple[DiffusionFedAvg, Engine]:
    engine = Engine()
    monkeypatch.setattr(FedAvg, "start_controller", lambda self, fl_ctx: None)
    monkeypatch.setattr(ServerJob, "from_context", lambda fl_ctx: job)
    monkeypatch.setattr(controller, "ServerRevocations", lambda **_: SimpleNamespace(submitter=submitter))
    monkeypatch.setattr(controller.unreadable_answers, "outlive", lambda tell, model_bytes: None)
    monkeypatch.setattr(controller.turned_away, "listen", lambda tell: None)
    started = DiffusionFedAvg()
    context: Any = SimpleNamespace(get_engine=lambda: engine, get_job_id=lambda: "job")
    try:
        started.start_controller(context)
    finally:
        engine.told.append("end")
    return started, engine


def test_anothers_run_is_neither_told_nor_touched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = tmp_path / "run"
    run.mkdir()
    mine = job_of(run, Plan(name="mine"), tmp_path / "mine")
    _, engine = start(monkeypatch, mine, LEAD)
    assert engine.told == ["fedscan.rounds", "end"]
    records.append(
        mine.rounds_file,
        RoundRecord(event="started", time="", run_id="a" * 32, plan_digest=mine.plan.digest),
    )
    job_results.write_verdict(mine, has_model=False)
    before = {path.name: path.read_bytes() for path in run.iterdir()}
    theirs = job_of(run, Plan(name="theirs"), tmp_path / "theirs")
    for name in (OTHER, None, "", LEAD.upper(), f"{LEAD} "):
        with pytest.raises(RunStoppedError, match="another person's"):
            start(monkeypatch, theirs, name)
    assert {path.name: path.read_bytes() for path in run.iterdir()} == before
    assert not (tmp_path / "theirs").exists()
    with pytest.raises(RunStoppedError, match="was not started"):
        _ = DiffusionFedAvg().job
    start(monkeypatch, mine, LEAD)  # and its own lead goes on


def test_a_lost_job_gives_nothing_of_anothers_run(tmp_path: Path) -> None:
    run_owner.claim(tmp_path, LEAD)
    assert run_owner.is_of(tmp_path, LEAD)
    assert not run_owner.is_of(tmp_path, OTHER)
    assert not run_owner.is_of(tmp_path, None)
    (tmp_path / "new").mkdir()
    assert run_owner.is_of(tmp_path / "new", OTHER)


def test_the_name_stays_when_the_run_goes(tmp_path: Path) -> None:
    run_owner.claim(tmp_path, LEAD)
    assert (tmp_path / run_owner.FILE).stat().st_mode & 0o077 == 0
    assert run_owner.FILE in server_clean.STUB
