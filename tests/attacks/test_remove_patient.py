"""The attack that patient-level DP must bear: one patient taken out of a real store, everything else as it was.

Neighbouring stores are made by `ctslices.forget`, opened and trained by the real trainer. What changes must be that
patient's clipped gradient and nothing else; a stream of draws shared over the batch fails here, as it should.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from ctslices.forget import forget
from ctslices.store import SliceStore, write_store
from fedscan.plan import ModelPlan, Plan, TrainingPlan, UNet
from fedscan.privacy.noise import SecureNoise
from fedscan.training import patient_draws
from fedscan.training.data import TrainingSet
from fedscan.training.patient_draws import Draws
from fedscan.training.private_round import PrivateTrainer
from fedscan.training.weights import Weights, initial_weights, update_norm

GONE = 2
"""The patient that is taken out, by its number in the whole store."""
CLIP = 1e-3
"""Far below any patient's norm here: everybody is clipped, so that each counts for exactly so much."""
DIVISOR = 4.0


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def _plan(precision: str = "fp32") -> Plan:
    unet = UNet(channels=(8, 16), attention_levels=(False, False), norm_num_groups=4, num_head_channels=8)
    return Plan(
        model=ModelPlan(preset=None, unet=unet, fold=2, size=16, classes=("a", "b")),
        training=TrainingPlan(local_steps=1, precision=precision, beta1=0.5, warmup_steps=0),
        rounds=9,
        weighting="uniform",
        privacy={
            "noise_multiplier": 1e-9,
            "delta": 1e-3,
            "max_grad_norm": CLIP,
            "sites": {"a": {"sample_rate": 1.0, "expected_patients_per_step": DIVISOR}},
            "slices_per_patient": 2,
            "noise_draws_per_slice": 2,
            "from_scratch": True,
        },
    )


@pytest.fixture
def stores(tmp_path: Path) -> tuple[Path, Path]:
    """A store of six patients with one to four slices each, and the same without one of them."""
    slices = np.array([3, 1, 4, 2, 3, 1])
    generator = np.random.default_rng(0)
    hu = generator.integers(-1000, 1000, (int(slices.sum()), 16, 16)).astype(np.int16)
    patient = np.repeat(np.arange(6), slices)
    label = generator.integers(-1, 2, len(patient))
    whole = write_store(tmp_path / "whole", hu, patient, label=label, labels=("a", "b"), splits=["train"] * 6)
    fewer = tmp_path / "fewer"
    shutil.copytree(whole, fewer)
    forget(fewer, {SliceStore.open(whole).manifest.patients[GONE].id})
    return whole, fewer


def _trainer(store: Path, precision: str = "fp32") -> PrivateTrainer:
    plan = _plan(precision)
    return PrivateTrainer(plan, TrainingSet.from_store(SliceStore.open(store), plan), "a")


def _weights(plan: Plan) -> Weights:
    generator = torch.Generator().manual_seed(5)
    return {n: w + 0.05 * torch.randn(w.shape, generator=generator) for n, w in initial_weights(plan).items()}


def _gradients(trainer: PrivateTrainer) -> dict[str, torch.Tensor]:
    """float64 [D] by pseudonym: each patient's clipped gradient in step 0 of round 3, on the trainer's own path."""
    trainer._load(_weights(trainer.plan))
    trainer._gradients.set_grad_sample_to_none()
    everybody = np.arange(len(trainer.data.pseudonyms))
    trainer._losses_of(3, 0)(everybody).sum().div(trainer.privacy.rows_per_patient).backward()
    flat = torch.cat([p.grad_sample.double().flatten(1) for p in trainer.parameters.values()], dim=1)
    trainer._gradients.set_grad_sample_to_none()
    clipped = flat * (CLIP / flat.norm(dim=1)).clamp(max=1.0)[:, None]
    return dict(zip(trainer.data.pseudonyms, clipped, strict=True))


def _sum(trainer: PrivateTrainer) -> Weights:
    """The sum of clipped gradients of a whole round of one step, read back from Adam's first moments."""
    state = trainer.round(_weights(trainer.plan), 3, None, SecureNoise()).state
    assert state is not None
    return {name: moment * DIVISOR / (1 - trainer.plan.training.beta1) for name, moment in state.first.items()}


def _moved(whole: PrivateTrainer, fewer: PrivateTrainer) -> float:
    one, other = _sum(whole), _sum(fewer)
    return update_norm({name: one[name] - other[name] for name in one})


def test_the_others_draws_do_not_change_by_a_bit(stores: tuple[Path, Path]) -> None:
    whole, fewer = (_trainer(store) for store in stores)
    gone = whole.data.pseudonyms[GONE]
    assert fewer.data.pseudonyms == tuple(name for name in whole.data.pseudonyms if name != gone)
    for step in range(3):
        one = whole._patients.batch(np.arange(6), 3, step)
        other = fewer._patients.batch(np.arange(5), 3, step)
        stay = [row * 6 + p for row in range(4) for p in range(6) if p != GONE]
        assert torch.equal(one.x0[stay], other.x0)
        assert torch.equal(one.t[stay], other.t)
        assert torch.equal(one.noise[stay], other.noise)
        assert one.labels is not None
        assert other.labels is not None
        assert torch.equal(one.labels[stay], other.labels)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_others_clipped_gradients_change_by_rounding_alone(stores: tuple[Path, Path], precision: str) -> None:
    whole, fewer = (_gradients(_trainer(store, precision)) for store in stores)
    assert len(fewer) == 5
    for pseudonym, gradient in fewer.items():
        assert float((whole[pseudonym] - gradient).norm()) < (1e-5 if precision == "fp32" else 2e-2) * CLIP


def test_a_round_moves_by_one_clipped_gradient_and_no_more(stores: tuple[Path, Path]) -> None:
    whole, fewer = (_trainer(store) for store in stores)
    assert _moved(whole, fewer) == pytest.approx(CLIP, rel=1e-4)  # everybody is clipped: exactly one share


def test_an_image_taken_out_of_a_block_leaves_the_others_draws_alone(tmp_path: Path) -> None:
    """Unit image: what is drawn for a picture must not hang on its place in its block or in the store."""
    plan = _plan()
    assert plan.privacy is not None
    plan = plan.model_copy(update={"privacy": plan.privacy.model_copy(update={"unit": "image"})})
    hu = np.random.default_rng(0).integers(0, 256, (7, 16, 16)).astype(np.int16)
    block, gone = np.array([0, 0, 0, 0, 1, 1, 1]), 1
    batches = []
    for name, keep in (("whole", np.arange(7)), ("fewer", np.delete(np.arange(7), gone))):
        path = write_store(tmp_path / name, hu[keep], block[keep], splits=["train"] * 2, unit="image", values="grey")
        trainer = PrivateTrainer(plan, TrainingSet.from_store(SliceStore.open(path), plan), "a")
        batches.append(trainer._patients.batch(np.arange(len(keep)), 0, 0))
    whole, fewer = batches
    stay = [row * 7 + k for row in range(4) for k in range(7) if k != gone]
    assert torch.equal(whole.x0[stay], fewer.x0)
    assert torch.equal(whole.t[stay], fewer.t)
    assert torch.equal(whole.noise[stay], fewer.noise)


def _shared_stream() -> Callable[..., Draws]:
    """The mistake: patients take their draws one after the other from one stream of the step."""
    generator = torch.Generator().manual_seed(1)

    def draw(plan: Plan, privacy: object, pseudonym: str, available: int, number: int, step: int) -> Draws:
        return Draws(
            slices=torch.randint(available, (4,), generator=generator),
            t=torch.randint(plan.diffusion.num_train_timesteps, (4,), generator=generator),
            noise=torch.randn((4, 16, 16), generator=generator),
            hidden=torch.rand(4, generator=generator) < 0.1,
        )

    return draw


def test_a_shared_stream_of_draws_is_seen_by_this_attack(
    stores: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With it those after the removed patient draw otherwise, and the sum moves by more than one share."""
    moved = []
    for at in range(2):
        monkeypatch.setattr(patient_draws, "draw", _shared_stream())
        moved.append(_sum(_trainer(stores[at])))
    assert update_norm({name: moved[0][name] - moved[1][name] for name in moved[0]}) > 1.2 * CLIP
