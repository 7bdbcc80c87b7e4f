"""A disk that fills up at any write: a site trains nothing unpaid, and a server keeps its last whole state."""

from __future__ import annotations

import contextlib
import errno
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from nvflare.app_common.workflows.fedavg import FedAvg

from fedscan.federation import job_results, records, verdict
from fedscan.federation.job.controller import DiffusionFedAvg
from fedscan.federation.paid_round import PaidTraining
from fedscan.federation.server_job import ServerJob
from fedscan.federation.server_round import RunStoppedError
from fedscan.plan import Plan, Submission
from fedscan.privacy.charging import Refused
from fedscan.training import checkpoints
from fedscan.training.checkpoints import Checkpoint
from fedscan.training.trainer_client import Trainer
from fedscan.training.weights import initial_weights

PLAN = Plan.model_validate({"model": {"preset": "tiny"}, "rounds": 3})
RUN_ID = "a" * 32
FULL = OSError(errno.ENOSPC, "No space left on device")


def full_at(broken: pytest.MonkeyPatch, number: int) -> Callable[[], int]:
    """From the n-th flush on nothing gets onto the disk; how many flushes were asked for."""
    asked = [0]
    sync = os.fsync

    def fsync(file: int) -> None:
        asked[0] += 1
        if asked[0] >= number:
            raise FULL
        sync(file)

    broken.setattr(os, "fsync", fsync)
    return lambda: asked[0]


@pytest.fixture
def training(
    tmp_path: Path, make_hospital: Callable[..., Any], private_plan: Callable[..., Any], submitter: Any
) -> Iterator[tuple[Any, PaidTraining]]:
    hospital = make_hospital(tmp_path / "site", "max_epsilon=10000", plan=private_plan(answer_after_s=8.0))
    one = PaidTraining(hospital.setup, hospital.plan, hospital.submission, "hosp-a", submitter)
    one.warm_up()
    yield hospital, one
    one.stop()


def test_a_site_whose_disk_fills_up_at_any_flush_trains_nothing_unpaid_and_goes_on_later(
    training: tuple[Any, PaidTraining], monkeypatch: pytest.MonkeyPatch
) -> None:
    hospital, one = training
    trained: list[int] = []
    real = Trainer.train_private

    def noted(self: Trainer, *arguments: Any, charge: int) -> Any:
        trained.append(charge)
        return real(self, *arguments, charge=charge)

    monkeypatch.setattr(Trainer, "train_private", noted)

    def ask() -> Any:
        return one.train_until(hospital.task(), hospital.weights, lambda: False, time.monotonic() + 60.0)

    for flush in range(1, 60):
        with monkeypatch.context() as broken:
            asked = full_at(broken, flush)
            with contextlib.suppress(OSError, Refused):
                ask()
        if asked() < flush:
            break
    assert 8 < flush < 59, "each flush of a round failed once"
    ledger = hospital.site.open_ledger()
    assert all(ledger.paid_for(entry) for entry in trained)
    assert len(set(trained)) == len(trained), "no entry paid for two trainings"
    before = len(ledger.events())
    answer, _ = ask()
    assert len(hospital.site.open_ledger().events()) == before, "the last try's answer is kept, and noted as paid for"
    assert hospital.site.open_ledger().paid_for(answer.ledger.count).answer_sha256 is not None


def record(event: records.Event, number: int) -> records.RoundRecord:
    return records.RoundRecord(event=event, time="t", run_id=RUN_ID, plan_digest=PLAN.digest, round=number)


def test_a_record_of_which_a_part_fits_is_not_taken_for_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "rounds.jsonl"
    records.append(path, record("round", 0))
    write = os.write
    left = [20]

    def short(file: int, data: bytes) -> int:
        if not left[0]:
            raise FULL
        done = write(file, data[: left[0]])
        left[0] -= done
        return done

    with monkeypatch.context() as broken, pytest.raises(OSError, match="No space left"):
        broken.setattr(os, "write", short)
        records.append(path, record("round", 1))
    records.append(path, record("round", 2))
    assert [one.round for one in records.read(path)] == [0, 2]


def test_a_checkpoint_that_does_not_fit_leaves_the_last_one_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = initial_weights(PLAN)
    checkpoints.save(tmp_path, Checkpoint(1, weights, weights, 1), PLAN, RUN_ID)
    with monkeypatch.context() as broken, pytest.raises(OSError, match="No space left"):
        full_at(broken, 1)
        checkpoints.save(tmp_path, Checkpoint(2, weights, weights, 2), PLAN, RUN_ID)
    assert [path.name for path in tmp_path.iterdir()] == ["round-00001.safetensors"]
    newest = checkpoints.newest(tmp_path, PLAN, RUN_ID)
    assert newest is not None
    assert newest.rounds_done == 1


def test_a_run_on_a_full_disk_notes_why_it_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The disk takes nothing more until the room that was kept for the last words is given back."""
    job = ServerJob(PLAN, Submission.new(run_id=RUN_ID), tmp_path, tmp_path / "shelf")
    weights = initial_weights(PLAN)
    controller = DiffusionFedAvg()
    controller._job, controller._state = job, Checkpoint(1, weights, weights, 1)
    sync = os.fsync

    def fsync(file: int) -> None:
        if full and any(path.stat().st_size == job_results.ROOM_BYTES for path in tmp_path.iterdir()):
            raise FULL
        sync(file)

    full: list[bool] = []

    def runs_out(_: FedAvg) -> None:
        full.append(True)
        raise FULL

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(FedAvg, "run", runs_out)
    with pytest.raises(RunStoppedError, match=r"the server cannot write \(No space left on device\)"):
        controller.run()
    last = list(records.read(job.rounds_file))[-1]
    assert (last.event, last.reason) == ("stopped", "the server cannot write (No space left on device)")
    judged = verdict.read(job.verdict_file)
    assert judged is not None
    assert judged.ended == "stopped"
    assert not [path for path in tmp_path.iterdir() if path.name == ".room"]
