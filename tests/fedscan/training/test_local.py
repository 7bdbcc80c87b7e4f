from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from ctslices.store import SliceStore
from fedscan.plan import ModelPlan, Plan, TrainingPlan
from fedscan.training.data import TrainingSet
from fedscan.training.local import LocalTrainer, Progress, TrainingError
from fedscan.training.optimiser import OptimiserState
from fedscan.training.weights import apply_update, check_update, digest, initial_weights, update_norm


@pytest.fixture
def make_trainer(make_plan: Callable[..., Plan], make_store: Callable[..., Path]) -> Callable[..., LocalTrainer]:
    def make(slices: int = 10, site: str = "a", store: dict[str, object] | None = None, **plan: object) -> LocalTrainer:
        the_plan = make_plan(**plan)
        path = make_store(f"store-{slices}", slices, **(store or {}))
        return LocalTrainer(the_plan, TrainingSet.from_store(SliceStore.open(path), the_plan), site)

    return make


def _copied(state: OptimiserState | None) -> OptimiserState:
    assert state is not None
    return OptimiserState(
        state.steps, {k: v.clone() for k, v in state.first.items()}, {k: v.clone() for k, v in state.second.items()}
    )


def test_a_round_gives_a_whole_float32_update_and_says_what_it_did(make_trainer: Callable[..., LocalTrainer]) -> None:
    trainer = make_trainer(local_epochs=2)
    weights = initial_weights(trainer.plan)
    said: list[Progress] = []
    result = trainer.round(weights, 0, progress=said.append)
    assert check_update(result.update, weights) == []
    assert all(tensor.is_contiguous() for tensor in result.update.values())
    assert (result.examples, result.patients, result.steps) == (10, 5, 6)
    assert [(p.step, p.steps) for p in said] == [(k + 1, 6) for k in range(6)]
    sizes = [4, 4, 2, 4, 4, 2]  # the last small batch of a pass is kept
    assert result.loss == pytest.approx(sum(s * p.loss for s, p in zip(sizes, said, strict=True)) / 20)
    assert len(result.epoch_losses) == 2
    assert np.mean(result.epoch_losses) == pytest.approx(result.loss)
    assert digest(weights) == digest(initial_weights(trainer.plan))


@pytest.mark.parametrize(("slices", "steps", "passes"), [(10, 2, 1), (10, 3, 1), (10, 7, 3), (1, 3, 3)])
def test_steps_in_place_of_epochs(
    make_trainer: Callable[..., LocalTrainer], slices: int, steps: int, passes: int
) -> None:
    result = make_trainer(slices, local_steps=steps).round(initial_weights(make_trainer(slices).plan), 0)
    assert result.steps == steps
    assert len(result.epoch_losses) == passes


def test_every_slice_is_used_once_a_pass_in_an_order_of_its_own(make_trainer: Callable[..., LocalTrainer]) -> None:
    trainer = make_trainer(local_epochs=3)
    seen: dict[int, list[int]] = {}
    for epoch, indices in trainer._batches(0):
        seen.setdefault(epoch, []).extend(indices.tolist())
    assert [sorted(order) for order in seen.values()] == [list(range(10))] * 3
    assert len({tuple(order) for order in seen.values()}) == 3
    other_round = [indices.tolist() for _, indices in trainer._batches(1)]
    assert other_round != [indices.tolist() for _, indices in trainer._batches(0)]


def test_one_slice_and_large_batches_work(make_trainer: Callable[..., LocalTrainer]) -> None:
    for slices in (1, 3):
        trainer = make_trainer(slices, batch_size=64)
        result = trainer.round(initial_weights(trainer.plan), 0)
        assert (result.steps, result.examples) == (1, slices)
        assert update_norm(result.update) > 0


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_round_repeats_to_the_bit_whatever_was_trained_before(
    make_trainer: Callable[..., LocalTrainer], precision: str
) -> None:
    first, second = make_trainer(precision=precision), make_trainer(precision=precision)
    weights = initial_weights(first.plan)
    one = first.round(weights, 0)
    after = apply_update(weights, one.update)
    wanted = first.round(after, 1, one.state)
    torch.manual_seed(99)
    got = second.round(after, 1, _copied(one.state))
    assert digest(got.update) == digest(wanted.update)
    assert got.state is not None
    assert wanted.state is not None
    assert digest(got.state.second) == digest(wanted.state.second)
    assert digest(first.round(weights, 0).update) == digest(one.update)


def test_site_seed_and_round_change_the_randomness(make_trainer: Callable[..., LocalTrainer]) -> None:
    weights = initial_weights(make_trainer().plan)
    updates = {
        digest(make_trainer(site=site, seed=seed, rounds=5).round(weights, number).update)
        for site, seed, number in [("a", 0, 0), ("b", 0, 0), ("a", 1, 0), ("a", 0, 1)]
    }
    assert len(updates) == 4


def test_the_state_is_kept_or_made_anew_as_the_plan_says(make_trainer: Callable[..., LocalTrainer]) -> None:
    keep, fresh = make_trainer(), make_trainer(optimiser_state="fresh")
    weights = initial_weights(keep.plan)
    one = keep.round(weights, 0)
    assert one.state is not None
    assert one.state.steps == 3
    assert keep.round(weights, 1, one.state).state.steps == 6  # type: ignore[union-attr]
    assert digest(keep.round(weights, 1, one.state).update) != digest(keep.round(weights, 1).update)
    assert fresh.round(weights, 0).state is None
    assert digest(fresh.round(weights, 1, one.state).update) == digest(fresh.round(weights, 1).update)


def test_the_first_loss_is_that_of_a_network_that_says_nothing(make_trainer: Callable[..., LocalTrainer]) -> None:
    """A fresh network outputs exactly 0, so under uniform weights the first loss is the mean square of the slices."""
    from fedscan.plan import DiffusionPlan

    trainer = make_trainer(8, batch_size=8, diffusion=DiffusionPlan(loss_weighting="uniform"))
    slices, _ = trainer.data.batch(torch.arange(8))
    result = trainer.round(initial_weights(trainer.plan), 0)
    assert result.loss == pytest.approx(float(slices.square().mean()), rel=1e-5)


def test_a_tiny_set_is_learnt(make_trainer: Callable[..., LocalTrainer]) -> None:
    """80 steps on eight alike discs: the loss falls to less than a quarter of the first pass's."""
    trainer = make_trainer(8, batch_size=8, local_epochs=80, learning_rate=1e-2)
    losses = trainer.round(initial_weights(trainer.plan), 0).epoch_losses
    assert np.mean(losses[-20:]) < 0.25 * losses[0]


def test_labels_reach_the_network_and_missing_ones_are_no_label(make_trainer: Callable[..., LocalTrainer]) -> None:
    labelled = {"label": np.arange(10) % 3 - 1, "labels": ("x", "y")}
    trainer = make_trainer(store=labelled, classes=("y", "x"), local_epochs=4)
    heard: list[int] = []
    trainer.network.net.class_embedding.register_forward_pre_hook(lambda _, args: heard.extend(args[0].tolist()))
    result = trainer.round(initial_weights(trainer.plan), 0)
    assert set(heard) == {0, 1, 2}
    hidden = heard.count(2) / len(heard)
    assert 0.4 <= hidden <= 0.65  # 4 of 10 have none, a tenth of the others is hidden
    assert update_norm({"e": result.update["net.class_embedding.weight"]}) > 0


def test_divergence_is_an_error_and_not_a_number(make_trainer: Callable[..., LocalTrainer]) -> None:
    trainer = make_trainer()
    weights = {name: tensor * 1e30 + 1e30 for name, tensor in initial_weights(trainer.plan).items()}
    with pytest.raises(TrainingError, match=r"not finite at step 0 of round 3.*lower training.learning_rate"):
        trainer.round(weights, 3)


def test_weights_of_another_network_are_refused(make_trainer: Callable[..., LocalTrainer]) -> None:
    trainer = make_trainer()
    weights = initial_weights(trainer.plan)
    weights.pop("net.conv_in.conv.bias")
    with pytest.raises(TrainingError, match=r"lacks net\.conv_in\.conv\.bias"):
        trainer.round(weights, 0)


def test_a_preset_trains_in_the_precision_of_the_processor(make_store: Callable[..., Path]) -> None:
    plan = Plan(model=ModelPlan(preset="tiny", size=16), training=TrainingPlan(batch_size=2, local_steps=2))
    trainer = LocalTrainer(plan, TrainingSet.from_store(SliceStore.open(make_store(slices=4)), plan), "a")
    weights = initial_weights(plan)
    assert check_update(trainer.round(weights, 0).update, weights) == []
