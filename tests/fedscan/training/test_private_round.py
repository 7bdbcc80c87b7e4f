"""fedscan.training.private_round against DP-SGD written out by hand, on real stores; and what it refuses."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ctslices.store import SliceStore
from fedscan.diffusion.network import DiffusionNetwork, build_network
from fedscan.diffusion.process import loss_per_slice
from fedscan.plan import Plan
from fedscan.privacy.mechanism import MechanismError
from fedscan.privacy.noise import ReproducibleNoise, SecureNoise
from fedscan.training import private_checks, round_trainer
from fedscan.training.data import DataError, TrainingSet
from fedscan.training.local import LocalTrainer
from fedscan.training.optimiser import OptimiserState
from fedscan.training.patient_draws import Rows, draw
from fedscan.training.private_round import PrivateProgress, PrivateResult, PrivateTrainer
from fedscan.training.round_trainer import TrainingError
from fedscan.training.weights import Weights, apply_update, check_update, digest, initial_weights, update_norm

Make = Callable[..., PrivateTrainer]


@pytest.fixture
def make_trainer(make_private: Callable[..., Plan], make_store: Callable[..., Path]) -> Make:
    def make(
        slices: int = 10, site: str = "a", store: dict[str, Any] | None = None, demo: bool = False, **plan: Any
    ) -> PrivateTrainer:
        the_plan = make_private(**plan)
        path = make_store(f"store-{slices}", slices, **(store or {}))
        data = TrainingSet.from_store(SliceStore.open(path), the_plan)
        return PrivateTrainer(the_plan, data, site, allow_reproducible=demo)

    return make


def some_weights(plan: Plan) -> Weights:
    """Away from a fresh network, in which most gradients are zero."""
    generator = torch.Generator().manual_seed(5)
    return {n: w + 0.05 * torch.randn(w.shape, generator=generator) for n, w in initial_weights(plan).items()}


def _by_hand(trainer: PrivateTrainer, weights: Weights, number: int) -> tuple[Weights, Weights]:
    """One round from `weights` without noise, everybody drawn: the new weights and Adam's first moments."""
    plan, privacy, data = trainer.plan, trainer.privacy, trainer.data
    network = LocalTrainer(plan.model_copy(update={"privacy": None}), data, "a").network
    for name, parameter in network.named_parameters():
        parameter.data = weights[name].clone()
    optimiser = torch.optim.AdamW(
        network.parameters(), betas=(plan.training.beta1, plan.training.beta2), weight_decay=0
    )
    for step in range(plan.training.local_steps or 0):
        sums = {name: torch.zeros_like(p) for name, p in network.named_parameters()}
        for patient, pseudonym in enumerate(data.pseudonyms):
            own = np.flatnonzero(data.patient == patient)
            drawn = draw(plan, privacy, pseudonym, len(own), number, step)
            x0, labels = data.batch(torch.from_numpy(own)[drawn.slices])
            if labels is not None:
                labels[drawn.hidden | (labels < 0)] = network.no_label
            network.zero_grad()
            noise = drawn.noise[:, None]
            loss_per_slice(network, trainer.schedule, plan.diffusion, x0, drawn.t, noise, labels).mean().backward()
            gradient = {n: torch.zeros_like(p) if p.grad is None else p.grad for n, p in network.named_parameters()}
            factor = min(1.0, privacy.max_grad_norm / update_norm(gradient))
            for name, one in gradient.items():
                sums[name] += factor * one
        for name, parameter in network.named_parameters():
            parameter.grad = sums[name] / trainer.sampling.expected_patients_per_step
        warm = min(1.0, (step + 1) / plan.training.warmup_steps)
        optimiser.param_groups[0]["lr"] = plan.training.learning_rate * warm
        optimiser.step()
    first = {n: optimiser.state[p]["exp_avg"] for n, p in network.named_parameters()}
    return {n: p.detach() for n, p in network.named_parameters()}, first


@pytest.mark.parametrize("max_grad_norm", [0.1, 1e4])
def test_a_round_is_dp_sgd_by_hand_divided_by_the_plans_constant(make_trainer: Make, max_grad_norm: float) -> None:
    """The divisor is 7.5 while five patients are there; some or none are clipped; labels, several rows, AdamW."""
    trainer = make_trainer(
        max_grad_norm=max_grad_norm,
        noise_multiplier=1e-12,
        sites={"a": {"sample_rate": 1.0, "expected_patients_per_step": 7.5}},
        slices_per_patient=2,
        noise_draws_per_slice=2,
        classes=("a", "b"),
        store={"label": np.arange(10) % 3 - 1, "labels": ("a", "b")},
        local_steps=3,
    )
    weights = some_weights(trainer.plan)
    result = trainer.round(weights, 0, None, SecureNoise())
    wanted, first = _by_hand(trainer, weights, 0)
    assert result.state is not None
    assert result.state.steps == 3
    scale = update_norm(first)
    assert update_norm({n: result.state.first[n] - first[n] for n in first}) < 1e-4 * scale
    moved = {n: wanted[n] - weights[n] for n in wanted}
    assert update_norm({n: result.update[n] - moved[n] for n in moved}) < 1e-2 * update_norm(moved)  # Adam's signs


def test_a_result_has_no_field_that_follows_from_data(make_trainer: Make) -> None:
    """What is added to a result is weighed against docs/privacy.md first."""
    assert {field.name for field in dataclasses.fields(PrivateResult)} == {"update", "steps", "unit", "state", "loss"}
    assert {field.name for field in dataclasses.fields(PrivateProgress)} == {"step", "steps"}
    trainer, said = make_trainer(), []
    weights = some_weights(trainer.plan)
    result = trainer.round(weights, 0, None, SecureNoise(), said.append)
    assert said == [PrivateProgress(1, 2), PrivateProgress(2, 2)]
    assert (result.steps, result.unit, result.loss) == (2, "patient", None)
    assert check_update(result.update, weights) == []


def test_a_loss_that_the_plan_asks_for_is_that_of_the_drawn_patients_and_noised(make_trainer: Make) -> None:
    """Everybody is drawn; with hardly any noise the loss is the mean of the patients' by hand, and training is as it
    was without a loss."""
    sites = {"a": {"sample_rate": 1.0, "expected_patients_per_step": 7.5}}

    def train(loss: dict[str, float] | None) -> PrivateResult:
        trainer = make_trainer(noise_multiplier=1e-12, sites=sites, slices_per_patient=2, local_steps=1, loss=loss)
        return trainer.round(some_weights(trainer.plan), 0, None, SecureNoise())

    quiet, cut, loud = (train({"noise_multiplier": n, "max_loss": m}) for n, m in ((1e-9, 1e3), (1e-9, 1e-3), (9, 1e3)))
    trainer = make_trainer(noise_multiplier=1e-12, sites=sites, slices_per_patient=2, local_steps=1)
    weights = some_weights(trainer.plan)
    trainer._load(weights)
    by_hand = trainer._losses_of(0, 0)(np.arange(5)).detach().reshape(2, 5).mean(0).sum() / 7.5
    assert quiet.loss == pytest.approx(float(by_hand), abs=1e-5)
    assert cut.loss == pytest.approx(5 * 1e-3 / 7.5, abs=1e-6)
    assert loud.loss is not None
    assert abs(loud.loss - float(by_hand)) > 1e-4
    assert update_norm({n: quiet.update[n] - w for n, w in train(None).update.items()}) < 1e-6


def test_secure_noise_never_repeats_and_reproducible_noise_does(make_trainer: Make) -> None:
    plan: dict[str, Any] = {
        "noise_multiplier": 1.0,
        "sites": {"a": {"sample_rate": 0.5, "expected_patients_per_step": 2.5}},
    }
    one, other = make_trainer(demo=True, **plan), make_trainer(demo=True, **plan)
    weights = initial_weights(one.plan)
    torch.manual_seed(1)
    first = digest(one.round(weights, 0, None, SecureNoise()).update)
    torch.manual_seed(1)
    assert digest(other.round(weights, 0, None, SecureNoise()).update) != first
    wanted = one.round(weights, 0, None, ReproducibleNoise(4))
    torch.manual_seed(99)
    assert digest(other.round(weights, 0, None, ReproducibleNoise(4)).update) == digest(wanted.update)
    assert digest(other.round(weights, 0, None, ReproducibleNoise(5)).update) != digest(wanted.update)
    with pytest.raises(MechanismError, match="noise is reproducible"):
        make_trainer(**plan).round(weights, 0, None, ReproducibleNoise(4))


def test_moments_and_warm_up_go_on_from_round_to_round(make_trainer: Make) -> None:
    keep, fresh = make_trainer(warmup_steps=4, rounds=3), make_trainer(warmup_steps=4, optimiser_state="fresh")
    weights = some_weights(keep.plan)
    one = keep.round(weights, 0, None, SecureNoise())
    assert isinstance(one.state, OptimiserState)
    after = apply_update(weights, one.update)
    with_state = keep.round(after, 1, one.state, SecureNoise())
    assert with_state.state is not None
    assert with_state.state.steps == 4
    without = keep.round(after, 1, None, SecureNoise())
    assert update_norm(with_state.update) > 1.5 * update_norm(without.update)  # warm-up is over with, not without
    assert fresh.round(weights, 0, one.state, SecureNoise()).state is None


def test_a_trainable_subset_leaves_the_rest_exactly_as_it_was(make_trainer: Make) -> None:
    trainer = make_trainer(trainable="attention_norm_bias", noise_multiplier=5.0, weight_decay=0.1)
    weights = some_weights(trainer.plan)
    one = trainer.round(weights, 0, None, SecureNoise())
    two = trainer.round(weights, 1, one.state, SecureNoise())
    assert check_update(two.update, weights) == []
    moved = {name for name, tensor in two.update.items() if tensor.any()}
    assert moved == set(trainer.trained)
    still = set(weights) - moved
    assert still
    assert all(name.endswith("weight") and "norm" not in name and "attention" not in name for name in still)
    assert {"net.middle_block.attention.attn.to_q.weight", "net.out.0.weight", "net.conv_in.conv.bias"} <= moved


def test_patients_in_parts_are_patients_at_once(make_trainer: Make) -> None:
    whole, parts = make_trainer(slices_per_patient=2), make_trainer(slices_per_patient=2)
    whole.physical_patients, parts.physical_patients = 6, 2
    weights = some_weights(whole.plan)
    wanted = whole.round(weights, 0, None, SecureNoise()).state
    got = parts.round(weights, 0, None, SecureNoise()).state
    assert wanted is not None
    assert got is not None
    apart = {name: got.first[name] - tensor for name, tensor in wanted.first.items()}
    assert update_norm(apart) < 1e-5 * update_norm(wanted.first)


def test_what_is_in_memory_at_once_is_bounded_by_gradients_and_by_rows(
    make_trainer: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = sum(p.numel() for p in make_trainer().trained.values())
    one, four = make_trainer().physical_patients, make_trainer(noise_draws_per_slice=4).physical_patients
    assert four < one < private_checks.GRADIENT_BYTES / (4 * values)
    assert four == pytest.approx(one / 4, abs=1)
    monkeypatch.setattr(private_checks, "GRADIENT_BYTES", 12 * values)
    assert make_trainer().physical_patients == 3
    assert make_trainer(trainable="attention_norm_bias").physical_patients > 3
    monkeypatch.setattr(private_checks, "ACTIVATION_BYTES", 1)
    assert make_trainer().physical_patients == 1


def test_nobody_drawn_is_a_step_with_noise(make_trainer: Make) -> None:
    trainer = make_trainer(
        noise_multiplier=2.0,
        max_grad_norm=0.5,
        sites={"a": {"sample_rate": 1e-9, "expected_patients_per_step": 4.0}},
        local_steps=1,
    )
    state = trainer.round(initial_weights(trainer.plan), 0, None, SecureNoise()).state
    assert state is not None
    gradient = torch.cat([m.flatten() for m in state.first.values()]) / (1 - trainer.plan.training.beta1)
    assert float(gradient.std()) == pytest.approx(2.0 * 0.5 / 4.0, rel=0.05)


def test_a_patient_that_is_not_finite_counts_as_zero_and_stops_nothing(
    make_trainer: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As if that patient were not there: the others' sum to the rounding, and the same number in no answer."""
    trainer = make_trainer(local_steps=1)
    weights = some_weights(trainer.plan)
    batch = trainer._patients.batch

    def broken(patients: np.ndarray, number: int, step: int) -> Rows:
        rows = batch(patients, number, step)
        x0 = rows.x0.clone()
        x0[patients.tolist().index(2)] = torch.nan
        return dataclasses.replace(rows, x0=x0)

    monkeypatch.setattr(trainer._patients, "batch", broken)
    got = trainer.round(weights, 0, None, SecureNoise())
    assert "1 gradients were not finite" in trainer.local_note
    monkeypatch.undo()
    whole = trainer.round(weights, 0, None, SecureNoise())
    assert check_update(got.update, weights) == []
    assert got.state is not None
    assert whole.state is not None
    share = {n: (whole.state.first[n] - got.state.first[n]) for n in weights}
    norm = update_norm(share) / (1 - trainer.plan.training.beta1) * 5.0  # of patient 2's clipped gradient alone
    assert 0 < norm <= trainer.privacy.max_grad_norm * (1 + 1e-4)


def test_plans_and_data_that_do_not_belong_together_are_refused(
    make_trainer: Make,
    make_private: Callable[..., Plan],
    make_plan: Callable[..., Plan],
    make_store: Callable[..., Path],
) -> None:
    trainer = make_trainer()
    with pytest.raises(TrainingError, match=r"no sampling for this site: add it to privacy\.sites"):
        make_trainer(site="elsewhere")
    with pytest.raises(TrainingError, match="has no privacy"):
        PrivateTrainer(make_plan(), trainer.data, "a")
    with pytest.raises(TrainingError, match="never trained without privacy"):
        LocalTrainer(trainer.plan, trainer.data, "a")
    with pytest.raises(DataError, match="by patient, the plan protects by image"):
        PrivateTrainer(make_private(unit="image"), trainer.data, "a")
    weights = initial_weights(trainer.plan)
    weights.pop("net.conv_in.conv.bias")
    with pytest.raises(TrainingError, match=r"lacks net\.conv_in\.conv\.bias"):
        trainer.round(weights, 0, None, SecureNoise())


def test_a_network_that_mixes_rows_is_refused_at_the_start(make_trainer: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    def mix(_: torch.nn.Module, x: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        return (x[0] - 1e-3 * x[0].mean(0),)

    def build(*arguments: Any) -> DiffusionNetwork:
        network = build_network(*arguments)
        network.net.out.register_forward_pre_hook(mix)
        return network

    monkeypatch.setattr(round_trainer, "build_network", build)
    with pytest.raises(TrainingError, match=r"gradient changes by .* when others join the batch"):
        make_trainer()


def test_a_loss_averaged_over_the_batch_is_refused_at_the_start(
    make_trainer: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Clipping would then bite nobody: each patient's gradient shrinks with the number of those beside."""
    monkeypatch.setattr(round_trainer, "loss_per_slice", lambda *a, **k: loss_per_slice(*a, **k) / len(a[3]))
    with pytest.raises(TrainingError, match="a layer or the loss mixes rows"):
        make_trainer()
