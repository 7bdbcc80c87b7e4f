"""A site's round without NVFlare, with the real trainer child: what it refuses, what it sends, what it counts."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import numpy as np
import pytest
import torch

from ctslices.phantom import chest_slices
from ctslices.store import write_store
from fedscan.federation import wall
from fedscan.federation.messages import Task
from fedscan.federation.places import SitePlaces
from fedscan.federation.site_round import RefusedError, SiteTraining
from fedscan.federation.site_setup import SiteSetup
from fedscan.plan import Plan, Submission
from fedscan.training.trainer_replies import TrainerRefused
from fedscan.training.weights import Weights, check_update, digest, initial_weights

PLAN = Plan.model_validate(
    {"model": {"preset": "tiny"}, "rounds": 2, "training": {"local_steps": 2, "batch_size": 4, "precision": "fp32"}}
)
SUBMISSION = Submission.new()


@pytest.fixture(scope="module")
def weights() -> Weights:
    return initial_weights(PLAN)


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> SiteSetup:
    folder = tmp_path_factory.mktemp("site")
    hu, _ = chest_slices(np.random.default_rng(0), 8)
    write_store(folder / "store", hu, np.arange(8) // 4, splits=["train", "train"])
    (folder / "state").mkdir()
    return SiteSetup.of(SitePlaces(no_policy=True, store=folder / "store", state=folder / "state"))


@pytest.fixture(scope="module")
def training(places: SiteSetup) -> Iterator[SiteTraining]:
    one = SiteTraining(places, PLAN, SUBMISSION, "hosp-a")
    yield one
    one.stop()


def task(weights: Weights, **changes: object) -> Task:
    fields = {
        "plan_digest": PLAN.digest,
        "run_id": SUBMISSION.run_id,
        "round_number": 0,
        "model_digest": digest(weights),
        "deadline_s": 120.0,
    }
    return Task.model_validate(fields | changes)


def test_the_answer_names_what_it_belongs_to_and_the_wall_names_every_tensor(
    training: SiteTraining, places: SiteSetup, weights: Weights
) -> None:
    answer, update = training.train(task(weights), weights, lambda: False)
    assert (answer.examples, answer.patients, answer.steps, answer.unit) == (8, 2, 2, "patient")
    assert (answer.values, answer.field_mm) == ("hu", 360.0)
    assert (answer.plan_digest, answer.round_number, answer.model_digest) == (PLAN.digest, 0, digest(weights))
    assert check_update(update, weights) == []
    assert any(bool(tensor.any()) for tensor in update.values())
    came, went = [e for e in wall.read(places.state / "wall.jsonl") if e["kind"] == "tensors"][:2]
    assert (came["direction"], went["direction"]) == ("in", "out")
    assert set(went["tensors"]) == set(weights)
    files = [path for path in (places.state / SUBMISSION.run_id).iterdir() if path.is_file()]
    assert [path.name for path in files if path.stat().st_mode & 0o077] == []


def test_a_child_killed_in_a_round_is_started_again_and_the_answer_is_the_same(
    training: SiteTraining, weights: Weights
) -> None:
    _, wanted = training.train(task(weights), weights, lambda: False)
    killed: list[int] = []

    def kill_once() -> bool:
        pid = training._trainer.pid
        if pid is not None and not killed:
            killed.append(pid)
            os.kill(pid, signal.SIGKILL)
        return False

    _, update = training.train(task(weights), weights, kill_once)
    assert killed
    assert digest(update) == digest(wanted)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"plan_digest": "0" * 64}, "another plan or run"),
        ({"run_id": "0" * 32}, "another plan or run"),
        ({"round_number": 2}, "beyond the plan's 2 rounds"),
        ({"model_digest": "0" * 64}, "not the one that the task names"),
    ],
)
def test_a_task_that_is_not_this_runs_is_refused(
    training: SiteTraining, weights: Weights, change: dict[str, object], words: str
) -> None:
    with pytest.raises(RefusedError, match=words):
        training.train(task(weights, **change), weights, lambda: False)


def test_a_model_that_does_not_fit_the_plan_or_is_not_finite_is_refused(
    training: SiteTraining, weights: Weights
) -> None:
    first = sorted(weights)[0]
    for bad in (
        weights | {first: torch.full_like(weights[first], torch.nan)},
        {name: tensor for name, tensor in weights.items() if name != first},
        weights | {"extra": torch.zeros(1)},
        weights | {first: weights[first].double()},
    ):
        with pytest.raises((RefusedError, TrainerRefused), match=r"received model|do not fit the plan's network"):
            training.train(task(weights, model_digest=digest(bad)), bad, lambda: False)
