from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest

from ctslices.pool import WorkerPool, call, ordered_map


@pytest.fixture(autouse=True)
def _importable(monkeypatch: pytest.MonkeyPatch, repository: Path) -> None:
    """Worker processes import this module by its name under pytest's importlib mode, `tests.ctslices.test_pool`."""
    monkeypatch.syspath_prepend(str(repository))


def _work(task: str) -> str:
    if task == "die":
        os.kill(os.getpid(), signal.SIGSEGV)
    if task == "hang":
        time.sleep(600)
    if task == "raise":
        raise ValueError("PATIENT^SECRET in the message")
    return task.upper()


def test_a_death_a_hang_and_an_error_cost_their_own_task_alone() -> None:
    tasks = ["a", "die", "b", "raise", "hang", "c", "d"]
    with WorkerPool(_work, workers=2, timeout_s=4.0) as pool:
        outcomes = {o.task: o for o in pool.run(tasks)}
    assert {t: o.state for t, o in outcomes.items()} == {
        "a": "done", "die": "crashed", "b": "done", "raise": "failed", "hang": "timeout", "c": "done", "d": "done",
    }  # fmt: skip
    assert outcomes["c"].result == "C"
    assert outcomes["raise"].error.startswith("ValueError at test_pool.py:")
    assert "SECRET" not in outcomes["raise"].error


def test_an_ordered_map_keeps_the_order_and_loses_no_more_than_what_fails() -> None:
    tasks = [*"abcdefgh", "raise", *"ij", "die", *"klm"]
    wanted = [t.upper() for t in tasks]
    wanted[8], wanted[11] = "<failed>", "<crashed>"
    with WorkerPool(call, workers=2) as pool:
        got = list(ordered_map(pool, _work, tasks, lambda what: f"<{what}>", chunk=4))
    assert got[8].startswith("<ValueError at test_pool.py:")
    assert "SECRET" not in got[8]
    assert [*got[:8], "<failed>", *got[9:]] == wanted


def test_leaving_the_pool_ends_its_processes() -> None:
    with WorkerPool(call, workers=1) as pool:
        (outcome,) = pool.run([(_pid, 0)])
    assert outcome.result is not None
    with pytest.raises(ProcessLookupError):
        os.kill(outcome.result, 0)


def _pid(_: int) -> int:
    return os.getpid()


def test_a_worker_computes_on_one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENBLAS_NUM_THREADS", raising=False)
    with WorkerPool(call, workers=1) as pool:
        (outcome,) = pool.run([(_environment, "OPENBLAS_NUM_THREADS")])
    assert outcome.result == "1"
    assert "OPENBLAS_NUM_THREADS" not in os.environ


def _environment(name: str) -> str | None:
    return os.environ.get(name)
