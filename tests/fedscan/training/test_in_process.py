from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from ctslices.store import SliceStore
from fedscan.plan import Plan
from fedscan.training import checkpoints, in_process
from fedscan.training.data import TrainingSet
from fedscan.training.in_process import MODEL_NAME, RoundReport
from fedscan.training.local import LocalTrainer
from fedscan.training.model_file import load_model
from fedscan.training.sampling import sample_sites
from fedscan.training.weights import digest, initial_weights


@pytest.fixture
def stores(make_store: Callable[..., Path]) -> dict[str, Path]:
    return {"c": make_store("c", 4), "a": make_store("a", 12), "b": make_store("b", 8)}


def test_stopping_and_going_on_from_files_comes_to_the_same_model(
    make_plan: Callable[..., Plan], stores: dict[str, Path], tmp_path: Path
) -> None:
    plan = make_plan(rounds=4, decay="cosine")
    whole = in_process.run(plan, stores, tmp_path / "whole")
    said: list[RoundReport] = []
    in_process.run(plan, stores, tmp_path / "parts", until_round=2)
    assert not (tmp_path / "parts" / MODEL_NAME).exists()
    parts = in_process.run(plan, stores, tmp_path / "parts", said.append)
    assert [report.round_number for report in said] == [2, 3]
    assert digest(parts.state.weights) == digest(whole.state.weights)
    assert (tmp_path / "parts" / MODEL_NAME).read_bytes() == (tmp_path / "whole" / MODEL_NAME).read_bytes()
    assert digest(in_process.run(plan, stores).weights) == digest(whole.weights)
    again = in_process.run(plan, stores, tmp_path / "whole")
    assert again.rounds == ()
    assert digest(again.weights) == digest(whole.weights)


def test_losing_the_newest_checkpoint_goes_back_a_round_and_comes_to_the_same_model(
    make_plan: Callable[..., Plan], stores: dict[str, Path], tmp_path: Path
) -> None:
    """Killed after the sites' states and before the checkpoint: sites are a round ahead and go back with it."""
    plan = make_plan(rounds=3)
    whole = in_process.run(plan, stores, tmp_path / "whole")
    in_process.run(plan, stores, tmp_path / "cut", until_round=2)
    checkpoints.path_of(tmp_path / "cut" / "checkpoints", 2).write_bytes(b"torn")
    cut = in_process.run(plan, stores, tmp_path / "cut")
    assert [report.round_number for report in cut.rounds] == [1, 2]
    assert digest(cut.weights) == digest(whole.weights)


def test_rounds_are_fedavg_with_ema_in_plain_numpy(make_plan: Callable[..., Plan], stores: dict[str, Path]) -> None:
    plan = make_plan(rounds=3, optimiser_state="fresh", weighting="patients")
    patients = {"a": 6, "b": 4, "c": 2}
    trainers = {
        site: LocalTrainer(plan, TrainingSet.from_store(SliceStore.open(path), plan), site)
        for site, path in stores.items()
    }
    weights = ema = initial_weights(plan)
    for number in range(3):
        state = in_process.run(plan, stores, until_round=number + 1).state
        updates = {site: trainer.round(weights, number).update for site, trainer in trainers.items()}
        decay = min(0.5, (number + 1) / (number + 10))
        for name, got in state.weights.items():
            mean = sum(patients[s] * updates[s][name].numpy().astype(np.float64) for s in patients) / 12
            np.testing.assert_allclose(got, weights[name].numpy() + mean, rtol=2e-7, atol=1e-9)
            np.testing.assert_allclose(
                state.ema[name], decay * ema[name].double() + (1 - decay) * got.double(), rtol=1e-7, atol=1e-9
            )
        weights, ema = state.weights, state.ema


def test_rounds_ask_the_sites_that_the_federation_would(
    make_plan: Callable[..., Plan], stores: dict[str, Path]
) -> None:
    plan = make_plan(rounds=6, clients_per_round=1, seed=5)
    outcome = in_process.run(plan, stores)
    asked = [sorted(report.sites) for report in outcome.rounds]
    assert asked == [sample_sites(stores, 1, 5, number) for number in range(6)]
    assert len({site for names in asked for site in names}) > 1


def test_shares_are_the_plans_weighting_and_losses_their_mean(
    make_plan: Callable[..., Plan], stores: dict[str, Path]
) -> None:
    report = in_process.run(make_plan(rounds=1), stores).rounds[0]
    assert {site: entry.share for site, entry in report.sites.items()} == {"a": 12 / 24, "b": 8 / 24, "c": 4 / 24}
    assert report.loss == pytest.approx(sum(e.share * e.loss for e in report.sites.values()))


def test_the_order_in_which_sites_are_named_changes_nothing(
    make_plan: Callable[..., Plan], stores: dict[str, Path]
) -> None:
    plan = make_plan(rounds=2)
    turned = dict(reversed(stores.items()))
    assert digest(in_process.run(plan, turned).weights) == digest(in_process.run(plan, stores).weights)


def test_one_site_is_centralised_training(make_plan: Callable[..., Plan], stores: dict[str, Path]) -> None:
    plan = make_plan(rounds=2, ema={"half_life_rounds": 0.0})
    outcome = in_process.run(plan, {"a": stores["a"]})
    trainer = LocalTrainer(plan, TrainingSet.from_store(SliceStore.open(stores["a"]), plan), "a")
    weights = initial_weights(plan)
    first = trainer.round(weights, 0)
    after = {n: (t.double() + first.update[n].double()).float() for n, t in weights.items()}
    second = trainer.round(after, 1, first.state)
    after = {n: (t.double() + second.update[n].double()).float() for n, t in after.items()}
    assert digest(outcome.weights) == digest(after)


def test_training_lowers_the_loss(make_plan: Callable[..., Plan], stores: dict[str, Path]) -> None:
    plan = make_plan(rounds=8, local_steps=8, batch_size=8, learning_rate=1e-2)
    rounds = in_process.run(plan, {site: stores[site] for site in "ab"}).rounds
    assert rounds[-1].loss < 0.5 * rounds[0].loss


def test_the_model_file_says_where_it_is_from(
    make_plan: Callable[..., Plan], stores: dict[str, Path], tmp_path: Path
) -> None:
    plan = make_plan(rounds=1)
    outcome = in_process.run(plan, stores, tmp_path / "out", threads=1)
    model = load_model(tmp_path / "out" / MODEL_NAME)
    assert digest(model.weights) == digest(outcome.weights)
    assert model.provenance["rounds_done"] == 1
    assert model.provenance["sites"]["a"] == {"examples": 12, "patients": 6, "unit": "patient"}


def test_a_plan_that_starts_from_a_model_wants_its_weights(
    make_plan: Callable[..., Plan], stores: dict[str, Path]
) -> None:
    plan = make_plan(rounds=1, init_sha256="0" * 64)
    with pytest.raises(ValueError, match="pass its weights as `initial`"):
        in_process.run(plan, stores)
    initial = initial_weights(make_plan(seed=9))
    assert digest(in_process.run(plan, stores, initial=initial).weights) != digest(
        in_process.run(make_plan(rounds=1), stores).weights
    )


def test_no_sites_is_an_error_and_threads_are_given_back(
    make_plan: Callable[..., Plan], stores: dict[str, Path]
) -> None:
    with pytest.raises(ValueError, match="no sites"):
        in_process.run(make_plan(), {}, threads=2)
    steps: list[tuple[str, int, int]] = []
    in_process.run(make_plan(rounds=1), {"c": stores["c"]}, on_step=lambda s, r, p: steps.append((s, r, p.step)))
    assert steps == [("c", 0, 1)]
    assert torch.get_num_threads() == 1
