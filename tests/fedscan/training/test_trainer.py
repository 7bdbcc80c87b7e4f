"""The trainer child and its handle, with real processes: equal to in process, and no death or wait goes unnoticed."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import signal
import stat
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
import torch

from ctslices.store import SliceStore
from fedscan.plan import Plan
from fedscan.training import trainer as child_main
from fedscan.training.data import TrainingSet
from fedscan.training.local import LocalTrainer
from fedscan.training.tensor_file import load_tensors, save_tensors
from fedscan.training.trainer_client import LOG_NAME, Trainer
from fedscan.training.trainer_protocol import Progress
from fedscan.training.trainer_replies import (
    TrainerAborted,
    TrainerDied,
    TrainerRefused,
    TrainerTimeout,
)
from fedscan.training.weights import apply_update, digest, initial_weights

RUN = "0" * 32
FOREVER = 1_000_000
"""Local steps of a round that never ends in a test."""


def _never() -> bool:
    return False


@pytest.fixture
def start(
    make_plan: Callable[..., Plan], make_store: Callable[..., Path], tmp_path: Path
) -> Iterator[Callable[..., Trainer]]:
    started: list[Trainer] = []

    def make(plan: Plan | None = None, store: Path | None = None) -> Trainer:
        plan = plan or make_plan(rounds=9)
        save_tensors(tmp_path / "weights", initial_weights(plan), {})
        started.append(Trainer(store or make_store(), tmp_path / "state", plan, "a", RUN, threads=1))
        return started[-1]

    yield make
    for trainer in started:
        trainer.stop()


def test_the_child_trains_what_the_process_itself_would_and_goes_back_a_round(
    start: Callable[..., Trainer], make_plan: Callable[..., Plan], make_store: Callable[..., Path], tmp_path: Path
) -> None:
    plan = make_plan(rounds=9)
    store = make_store()
    here = LocalTrainer(plan, TrainingSet.from_store(SliceStore.open(store), plan), "a")
    there = start(plan, store)
    weights, state, wanted = initial_weights(plan), None, []
    for number in range(3):
        result = here.round(weights, number, state)
        save_tensors(tmp_path / "weights", weights, {})
        answer = there.train(number, tmp_path / "weights", tmp_path / "update", 120.0, _never)
        update, _ = load_tensors(answer.update_path)
        assert digest(update) == digest(result.update)
        assert (answer.loss, answer.epoch_losses, answer.steps) == (result.loss, result.epoch_losses, result.steps)
        assert (answer.examples, answer.patients, answer.unit) == (10, 5, "patient")
        assert (answer.values, answer.field_mm) == ("hu", 360.0)
        assert answer.from_round == (number - 1 if number else None)
        assert stat.S_IMODE(answer.update_path.stat().st_mode) == 0o600
        wanted.append((weights, digest(update)))
        weights, state = apply_update(weights, update), result.state
    pid = there.pid
    save_tensors(tmp_path / "weights", wanted[2][0], {})
    again = there.train(2, tmp_path / "weights", tmp_path / "update", 60.0, _never)
    assert digest(load_tensors(again.update_path)[0]) == wanted[2][1]

    bad = {**weights, "x": torch.ones(1)}
    save_tensors(tmp_path / "weights", bad, {})
    with pytest.raises(TrainerRefused, match="do not fit the plan's network: has unknown x"):
        there.train(3, tmp_path / "weights", tmp_path / "update", 60.0, _never)
    with pytest.raises(TrainerRefused, match=r"^FileNotFoundError$"):  # a system's text would name a path
        there.train(3, tmp_path / "missing", tmp_path / "update", 60.0, _never)
    assert there.pid == pid  # warm all along
    there.stop()
    assert there.pid is None
    assert "has unknown x" in (tmp_path / "state" / LOG_NAME).read_text()
    assert stat.S_IMODE((tmp_path / "state" / LOG_NAME).stat().st_mode) == 0o600


def test_a_child_writes_nothing_beside_its_own_folder(
    start: Callable[..., Trainer], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "tmp").mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR", raising=False)
    start().train(0, tmp_path / "weights", tmp_path / "update", 120.0, _never)
    assert list((tmp_path / "tmp").iterdir()) == []


def test_a_store_that_does_not_fit_is_refused_with_a_reason(
    start: Callable[..., Trainer], make_plan: Callable[..., Plan], make_store: Callable[..., Path], tmp_path: Path
) -> None:
    trainer = start(make_plan(classes=("x",)), make_store("other", 4, label=[0, 0, 0, 0], labels=("covid",)))
    with pytest.raises(TrainerRefused, match=r"store has \['covid'\], the plan's classes are \['x'\]"):
        trainer.train(0, tmp_path / "weights", tmp_path / "update", 120.0, _never)


def test_a_killed_child_is_noticed_at_once_and_the_next_round_has_another(
    start: Callable[..., Trainer], make_plan: Callable[..., Plan], tmp_path: Path
) -> None:
    trainer = start(make_plan(local_steps=FOREVER))
    killed_s: list[float] = []

    def kill(_: Progress) -> None:
        assert trainer.pid is not None
        os.kill(trainer.pid, signal.SIGKILL)
        killed_s.append(time.monotonic())

    with pytest.raises(TrainerDied, match="by SIGKILL"):
        trainer.train(0, tmp_path / "weights", tmp_path / "update", 120.0, _never, kill)
    assert time.monotonic() - killed_s[0] < 2.0
    assert trainer.pid is None
    assert not (tmp_path / "update").exists()
    trainer.start()
    assert trainer.pid is not None


def test_deadline_and_abort_end_the_round_and_the_child(
    start: Callable[..., Trainer], make_plan: Callable[..., Plan], tmp_path: Path
) -> None:
    trainer = start(make_plan(local_steps=FOREVER))
    before = time.monotonic()
    trainer.start()
    pid = trainer.pid
    with pytest.raises(TrainerTimeout, match="round 4 was not trained within its deadline"):
        trainer.train(4, tmp_path / "weights", tmp_path / "update", 0.5, _never)
    assert 0.4 < time.monotonic() - before < 3.0
    assert pid is not None
    assert not psutil.pid_exists(pid)
    looks: list[float] = []

    def abort() -> bool:
        looks.append(time.monotonic())
        return len(looks) > 5

    with pytest.raises(TrainerAborted, match="round 4 was aborted"):
        trainer.train(4, tmp_path / "weights", tmp_path / "update", 60.0, abort)
    assert trainer.pid is None
    assert all(later - earlier < 1.0 for earlier, later in itertools.pairwise(looks[1:]))


def _lives(process: psutil.Process) -> bool:
    """An orphan that nobody reaps (some containers) is dead all the same."""
    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


PARENT = """
    import json, sys, threading
    from pathlib import Path
    from fedscan.plan import Plan
    from fedscan.training.trainer_client import Trainer
    folder, store = Path(sys.argv[1]), Path(sys.argv[2])
    trainer = Trainer(store, folder / "state", Plan.model_validate_json(sys.argv[3]), "a", "0" * 32)
    heavy = [name for name in ("torch", "monai") if name in sys.modules]
    started, training = threading.Event(), threading.Event()
    starter = threading.Thread(target=lambda: (trainer.start(), started.set(), training.wait()))
    starter.start()
    def said(progress):  # from its first word on, the thread that asked for the child is gone
        training.set(); starter.join()
        print(json.dumps([trainer.pid, heavy]), flush=True)
    started.wait()
    trainer.train(0, folder / "weights", folder / "update", 600.0, lambda: False, said)
"""


def test_the_child_ends_when_its_parent_is_killed(
    make_plan: Callable[..., Plan], make_store: Callable[..., Path], tmp_path: Path
) -> None:
    plan = make_plan(local_steps=FOREVER)
    save_tensors(tmp_path / "weights", initial_weights(plan), {})
    command = [sys.executable, "-c", textwrap.dedent(PARENT), str(tmp_path), str(make_store()), plan.canonical_json()]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        pid, heavy = json.loads(parent.stdout.readline())
        assert json.loads(parent.stdout.readline())[0] == pid  # it outlives the thread that asked for it
        child = psutil.Process(pid)
        assert child.is_running()
        assert heavy == []  # the handle needs neither torch nor MONAI
        parent.kill()
        until = time.monotonic() + 2.0
        while _lives(child):
            assert time.monotonic() < until
            time.sleep(0.05)
    assert not (tmp_path / "update").exists()


def test_the_end_of_its_input_ends_the_child_in_mid_round(
    start: Callable[..., Trainer], make_plan: Callable[..., Plan], tmp_path: Path
) -> None:
    trainer = start(make_plan(local_steps=FOREVER))

    def close(_: Progress) -> None:
        trainer._child.stdin.close()  # type: ignore[union-attr]

    with pytest.raises(TrainerDied, match="exit code 0"):
        trainer.train(0, tmp_path / "weights", tmp_path / "update", 120.0, _never, close)


def test_reasons_of_strangers_are_not_told() -> None:
    assert child_main.reason_of(OSError("/data/patient-7 is gone")) == "OSError"
    assert child_main.reason_of(RuntimeError("value 3 of patient 7")) == "RuntimeError"


def test_a_child_is_asked_whether_it_has_loaded_and_goes_on_loading_while_nobody_waits(
    start: Callable[..., Trainer],
) -> None:
    trainer = start()
    assert not trainer.ready(0.05, _never)
    pid = trainer.pid
    assert not trainer.ready(0.05, _never)
    assert trainer.ready(120.0, _never)
    assert trainer.ready(0.0, _never)
    assert trainer.pid == pid


def test_a_child_without_a_store_is_not_ready_until_there_is_one(
    start: Callable[..., Trainer], make_store: Callable[..., Path], tmp_path: Path
) -> None:
    trainer = start(store=tmp_path / "later")
    with pytest.raises(TrainerRefused, match="not a slice store"):
        trainer.ready(120.0, _never)
    pid = trainer.pid
    make_store().rename(tmp_path / "later")
    for _ in range(2):  # it looked for its store again when it had refused, and may have looked too soon
        with contextlib.suppress(TrainerRefused):
            trainer.ready(120.0, _never)
    assert trainer.ready(120.0, _never)
    assert trainer.pid == pid


def test_a_round_may_be_asked_of_a_child_that_still_owes_a_word(start: Callable[..., Trainer], tmp_path: Path) -> None:
    trainer = start()
    assert not trainer.ready(0.05, _never)
    trainer.train(0, tmp_path / "weights", tmp_path / "update", 120.0, _never)
