from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from fedscan.plan import Plan
from fedscan.training import checkpoints, tensor_file
from fedscan.training.checkpoints import Checkpoint, CheckpointError
from fedscan.training.weights import digest, initial_weights


def test_checkpoints_come_back_and_the_newest_three_stay(make_plan: Callable[..., Plan], tmp_path: Path) -> None:
    plan = make_plan()
    weights, ema = initial_weights(plan), initial_weights(make_plan(seed=1))
    for rounds in range(5):
        checkpoints.save(tmp_path, Checkpoint(rounds, weights, ema, rounds), plan, "run")
    assert checkpoints.list_rounds(tmp_path) == [2, 3, 4]
    found = checkpoints.newest(tmp_path, plan, "run")
    assert found is not None
    assert (found.rounds_done, found.ema_count) == (4, 4)
    assert (digest(found.weights), digest(found.ema)) == (digest(weights), digest(ema))


def test_damage_and_other_runs_are_told_apart(make_plan: Callable[..., Plan], tmp_path: Path) -> None:
    plan = make_plan()
    weights = initial_weights(plan)
    for rounds in (1, 2):
        checkpoints.save(tmp_path, Checkpoint(rounds, weights, weights, rounds), plan, "run")
    with pytest.raises(CheckpointError, match="another run: its run_id differ"):
        checkpoints.load(tmp_path, 2, plan, "other")
    with pytest.raises(CheckpointError, match="plan_digest"):
        checkpoints.load(tmp_path, 2, make_plan(seed=1), "run")
    path = checkpoints.path_of(tmp_path, 2)
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(CheckpointError, match="cannot be read"):
        checkpoints.load(tmp_path, 2, plan, "run")
    found = checkpoints.newest(tmp_path, plan, "run")
    assert found is not None
    assert found.rounds_done == 1
    assert checkpoints.newest(tmp_path / "none", plan, "run") is None


@pytest.mark.parametrize("fault", ["not finite", "misshapen average", "extra", "no count", "empty"])
def test_a_checkpoint_that_no_run_wrote_is_passed_over(
    make_plan: Callable[..., Plan], tmp_path: Path, fault: str
) -> None:
    plan = make_plan()
    weights = initial_weights(plan)
    for rounds in (1, 2):
        checkpoints.save(tmp_path, Checkpoint(rounds, weights, weights, rounds), plan, "run")
    path = checkpoints.path_of(tmp_path, 2)
    tensors, metadata = tensor_file.load_tensors(path)
    name = next(name for name in tensors if name.startswith("ema."))
    if fault == "not finite":
        tensors[name] = tensors[name] * float("nan")
    elif fault == "misshapen average":
        tensors[name] = torch.zeros(7)
    elif fault == "extra":
        tensors["surprise"] = torch.zeros(1)
    elif fault == "no count":
        del metadata["ema_count"]
    else:
        tensors = {}
    tensor_file.save_tensors(path, tensors, metadata)
    found = checkpoints.newest(tmp_path, plan, "run")
    assert found is not None
    assert found.rounds_done == 1
