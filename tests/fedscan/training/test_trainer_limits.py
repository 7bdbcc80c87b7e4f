"""What the site's machine gives holds for the real child: memory, and whether it sees a GPU."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from fedscan.plan import Plan
from fedscan.training.tensor_file import save_tensors
from fedscan.training.trainer_client import Trainer
from fedscan.training.trainer_replies import TrainerDied, TrainerRefused
from fedscan.training.weights import initial_weights


@pytest.fixture
def trainer(
    make_plan: Callable[..., Plan], make_store: Callable[..., Path], tmp_path: Path
) -> Iterator[Callable[..., Trainer]]:
    made: list[Trainer] = []

    def make(**limits: object) -> Trainer:
        plan = make_plan(rounds=9)
        save_tensors(tmp_path / "weights", initial_weights(plan), {})
        made.append(Trainer(make_store(), tmp_path / "state", plan, "a", "0" * 32, **limits))  # type: ignore[arg-type]
        return made[-1]

    yield make
    for one in made:
        one.stop(grace_s=0.0)


def test_a_child_within_its_memory_trains_and_sees_no_gpu(trainer: Callable[..., Trainer], tmp_path: Path) -> None:
    child = trainer(memory_gib=4.0, gpu=False)
    child.train(0, tmp_path / "weights", tmp_path / "update", 60.0, lambda: False)
    process = psutil.Process(child.pid)
    assert process.rlimit(psutil.RLIMIT_DATA) == (4 * 2**30, 4 * 2**30)
    assert process.environ()["CUDA_VISIBLE_DEVICES"] == ""


def test_a_child_that_needs_more_memory_ends(trainer: Callable[..., Trainer], tmp_path: Path) -> None:
    with pytest.raises((TrainerDied, TrainerRefused)):
        trainer(memory_gib=0.05).train(0, tmp_path / "weights", tmp_path / "update", 60.0, lambda: False)
    assert not (tmp_path / "update").exists()
