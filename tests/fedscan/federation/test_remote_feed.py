"""What a running job tells, to whom, and how far: and what it leaves in NVFlare's store however it ends."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path
from typing import Any

import pytest
from nvflare.fuel.sec.authz import AuthzContext, Person
from nvflare.security.security import FLAuthorizer

from fedscan.federation import job_results, kit_files, records, round_feed, verdict
from fedscan.federation.job.controller import DiffusionFedAvg
from fedscan.federation.server_job import ServerJob
from fedscan.plan import Plan, Submission
from fedscan.training import checkpoints
from fedscan.training.checkpoints import Checkpoint
from fedscan.training.weights import initial_weights

PLAN = Plan.model_validate({"model": {"preset": "tiny"}, "rounds": 3})


@pytest.fixture
def job(tmp_path: Path) -> ServerJob:
    (tmp_path / "run").mkdir()
    submission = Submission.new(run_id="a" * 32)
    return ServerJob(
        PLAN, submission, tmp_path / "run", tmp_path / "shelf", result_folder=tmp_path / "nvflare" / "fedscan"
    )


def add(job: ServerJob, event: Any, number: int = 0) -> None:
    record = records.RoundRecord(event=event, time="t", run_id="a" * 32, plan_digest=PLAN.digest, round=number)
    records.append(job.rounds_file, record)


def test_a_watcher_gets_each_line_once_and_the_plan_with_the_first(job: ServerJob) -> None:
    add(job, "started")
    first = round_feed.read(round_feed.answer(job, {"after": 0}))
    assert (first.plan, [r.event for r in first.records], first.next) == (PLAN, ["started"], 1)
    add(job, "round")
    second = round_feed.read(round_feed.answer(job, {"after": first.next}))
    assert (second.plan, [r.event for r in second.records], second.next) == (None, ["round"], 2)
    assert round_feed.read(round_feed.answer(job, {"after": 2})).records == ()


@pytest.mark.parametrize(
    "asked", [None, [], "x", {"after": "1"}, {"after": -1}, {"after": True}, {"after": 1.5}, {"x": 1}]
)
def test_whatever_else_is_asked_gets_the_first_lines_and_nothing_more(job: ServerJob, asked: object) -> None:
    add(job, "started")
    answer = round_feed.answer(job, asked)
    assert set(answer) == {"run_id", "plan", "records", "next"}
    assert [r["event"] for r in answer["records"]] == ["started"]


def test_one_answer_is_bounded(job: ServerJob, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(round_feed, "MAX_RECORDS", 2)
    for number in range(5):
        add(job, "round", number)
    assert [r["round"] for r in round_feed.answer(job, {"after": 2})["records"]] == [2, 3]


def test_an_answer_of_another_form_is_an_error_of_ours() -> None:
    for raw in ({}, {"run_id": 1}, {"run_id": "a", "plan": {"x": 1}, "records": [], "next": 0}):
        with pytest.raises(round_feed.FeedError, match="another form"):
            round_feed.read(raw)


def allowed(right: str, *, user: str, role: str, submitter: str) -> bool:
    """By NVFlare's own authorizer under the strict server's policy."""
    authorizer = FLAuthorizer("coordinator", kit_files.server_authorization())
    context = AuthzContext(right, Person(user, "org", role), Person(submitter, "org", "lead"))
    return bool(authorizer.authorize(context)[0])


def test_the_rounds_are_for_the_submitter_alone() -> None:
    for right in ("app_command", "download_job", "abort_job"):
        assert allowed(right, user="lead@a", role="lead", submitter="lead@a")
        assert not allowed(right, user="lead@b", role="lead", submitter="lead@a")
        assert not allowed(right, user="member@a", role="member", submitter="lead@a")
        assert not allowed(right, user="it@a", role="org_admin", submitter="lead@b") or right == "abort_job"
    assert not allowed("app_command", user="admin@a", role="project_admin", submitter="lead@a")
    assert not allowed("get_job_log", user="lead@a", role="lead", submitter="lead@a")


def test_results_grow_with_the_run_without_a_copy(job: ServerJob) -> None:
    add(job, "started")
    weights = initial_weights(PLAN)
    assert job.result_folder is not None
    for done in (1, 2):
        checkpoints.save(job.checkpoint_folder, Checkpoint(done, weights, weights, done), PLAN, "a" * 32)
        job_results.publish(job)
    add(job, "round")
    there = job.result_folder
    assert len(list(records.read(there / "rounds.jsonl"))) == 2
    assert checkpoints.list_rounds(there / "checkpoints") == [2]
    assert (there / "checkpoints" / "round-00002.safetensors").stat().st_nlink == 2
    assert not (there / "verdict.json").exists()
    assert stat.S_IMODE(there.stat().st_mode) == 0o700


def test_at_the_end_model_and_verdict_stand_there_and_no_checkpoint(job: ServerJob) -> None:
    add(job, "finished")
    weights = initial_weights(PLAN)
    checkpoints.save(job.checkpoint_folder, Checkpoint(3, weights, weights, 3), PLAN, "a" * 32)
    job.model_path.write_bytes(b"of an earlier job")
    job_results.publish(job)
    assert job.result_folder is not None
    assert not (job.result_folder / "model.safetensors").exists()
    job_results.write_verdict(job, has_model=True)
    job_results.publish(job, at_end=True)
    assert (job.result_folder / "model.safetensors").read_bytes() == b"of an earlier job"
    assert verdict.read(job.result_folder / "verdict.json") is not None
    assert checkpoints.list_rounds(job.result_folder / "checkpoints") == []
    job_results.begin(job)
    assert not job.verdict_file.exists()


def test_results_on_another_disk_are_copied_anew_each_time(job: ServerJob, monkeypatch: pytest.MonkeyPatch) -> None:
    def another_disk(*_: object) -> None:
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", another_disk)
    assert job.result_folder is not None
    for number in (1, 2):
        add(job, "round", number)
        job_results.publish(job)
        assert len(list(records.read(job.result_folder / "rounds.jsonl"))) == number


def test_a_full_disk_in_nvflares_folder_does_not_end_the_run(job: ServerJob, caplog: pytest.LogCaptureFixture) -> None:
    assert job.result_folder is not None
    job.result_folder.parent.write_bytes(b"a file in its place")
    add(job, "started")
    job_results.publish(job)
    assert "could not be published" in caplog.text


def test_a_job_process_ends_when_its_parent_dies(monkeypatch: pytest.MonkeyPatch) -> None:
    controller = DiffusionFedAvg()
    monkeypatch.setattr(os, "getppid", lambda: 1)
    with pytest.raises(RuntimeError, match="parent process died"):
        controller._stop_if_told()


def test_answers_are_json(job: ServerJob) -> None:
    add(job, "started")
    told = round_feed.answer(job, {})
    assert json.loads(json.dumps(told)) == told
