"""fedscan.training.patient_draws: each patient by itself, every slice as likely, rows where the kernels want them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ctslices.store import SliceStore, write_store
from fedscan.plan import Plan
from fedscan.privacy_plan import PrivacyPlan
from fedscan.training.data import DataError, TrainingSet
from fedscan.training.patient_draws import Draws, PatientRows, draw

ALL = np.arange(5)


def _private(make_private: Callable[..., Plan], **privacy: Any) -> tuple[Plan, PrivacyPlan]:
    plan = make_private(**privacy)
    assert plan.privacy is not None
    return plan, plan.privacy


def _same(one: Draws, other: Draws) -> bool:
    return all(torch.equal(a, b) for a, b in zip(vars(one).values(), vars(other).values(), strict=True))


def test_draws_follow_from_seed_pseudonym_round_and_step_alone(make_private: Callable[..., Plan]) -> None:
    plan, privacy = _private(make_private, slices_per_patient=2, noise_draws_per_slice=3)
    other_seed = plan.model_copy(update={"seed": 1})
    one = draw(plan, privacy, "p", 7, 3, 4)
    torch.manual_seed(99)
    assert _same(one, draw(plan, privacy, "p", 7, 3, 4))
    others = [draw(plan, privacy, "q", 7, 3, 4), draw(plan, privacy, "p", 7, 2, 4), draw(plan, privacy, "p", 7, 3, 5)]
    others.append(draw(other_seed, privacy, "p", 7, 3, 4))
    assert not any(torch.equal(one.noise, other.noise) for other in others)
    assert one.noise.shape == (6, 16, 16)
    assert one.slices.tolist() == sorted(one.slices.tolist(), key=one.slices.tolist().index)  # a slice's draws together
    assert all(count == 3 for count in Counter(one.slices.tolist()).values())


@pytest.mark.parametrize(("available", "wanted"), [(7, 3), (3, 3), (2, 5), (1, 4)])
def test_slices_are_drawn_without_replacement_and_repeat_only_when_all_are_in(
    make_private: Callable[..., Plan], available: int, wanted: int
) -> None:
    plan, privacy = _private(make_private, slices_per_patient=wanted)
    seen: Counter[int] = Counter()
    for step in range(400):
        slices = draw(plan, privacy, "p", available, 0, step).slices.tolist()
        counts = [slices.count(k) for k in range(available)]
        assert len(slices) == wanted
        assert max(counts) - min(counts) <= 1
        seen.update(slices)
    share = np.array([seen[k] for k in range(available)]) / (400 * wanted)
    assert np.abs(share - 1 / available).max() < 0.05  # 4 standard deviations of a binomial share and more


def test_steps_and_noise_are_those_of_the_process(make_private: Callable[..., Plan]) -> None:
    plan, privacy = _private(make_private, noise_draws_per_slice=64)
    draws = [draw(plan, privacy, f"p{k}", 2, 0, 0) for k in range(30)]
    t = torch.cat([d.t for d in draws]).double()
    noise = torch.cat([d.noise for d in draws]).double()
    assert 0 <= t.min() < 20
    assert 980 < t.max() <= 999
    assert abs(float(t.mean()) - 499.5) < 30
    assert abs(float(noise.mean())) < 0.01
    assert abs(float(noise.std()) - 1) < 0.01


@pytest.fixture
def rows_of(make_store: Callable[..., Path]) -> Callable[[Plan], tuple[PatientRows, TrainingSet]]:
    def make(plan: Plan) -> tuple[PatientRows, TrainingSet]:
        assert plan.privacy is not None
        label = np.arange(10) % 3 - 1
        store = SliceStore.open(make_store("rows", 10, label=label, labels=("a", "b")))
        data = TrainingSet.from_store(store, plan)
        return PatientRows(plan, plan.privacy, data, len(plan.model.classes)), data

    return make


def test_a_batch_is_slice_major_and_holds_each_patients_own_rows(
    make_private: Callable[..., Plan], rows_of: Callable[[Plan], tuple[PatientRows, TrainingSet]]
) -> None:
    plan, privacy = _private(make_private, slices_per_patient=2, noise_draws_per_slice=2, classes=("a", "b"))
    patients, data = rows_of(plan)
    assert len(patients) == 5
    drawn = np.array([3, 0, 4])
    batch = patients.batch(drawn, 1, 2)
    whole, labels = data.batch(torch.arange(10))
    assert labels is not None
    assert batch.labels is not None
    hidden = 0
    for at, patient in enumerate(drawn.tolist()):
        own = draw(plan, privacy, data.pseudonyms[patient], 2, 1, 2)
        for row in range(4):
            there = row * 3 + at
            index = 2 * patient + int(own.slices[row])  # two slices a patient, in order
            assert torch.equal(batch.x0[there], whole[index])
            assert torch.equal(batch.noise[there, 0], own.noise[row])
            assert batch.t[there] == own.t[row]
            label = 2 if own.hidden[row] or labels[index] < 0 else int(labels[index])
            assert batch.labels[there] == label
            hidden += bool(own.hidden[row])
    assert batch.x0.shape == (12, 1, 16, 16)


def test_labels_are_hidden_as_often_as_the_plan_says(make_private: Callable[..., Plan]) -> None:
    plan, privacy = _private(make_private, noise_draws_per_slice=100, classes=("a",))
    hidden = torch.cat([draw(plan, privacy, f"p{k}", 1, 0, 0).hidden for k in range(100)])
    assert abs(float(hidden.float().mean()) - plan.model.class_dropout) < 0.012


def test_a_training_set_without_pseudonyms_is_refused(make_private: Callable[..., Plan]) -> None:
    plan, privacy = _private(make_private)
    data = TrainingSet(np.zeros((4, 16, 16), np.int16), "full", None, np.zeros(4, np.int32), "patient")
    with pytest.raises(ValueError, match="must have a pseudonym for each patient"):
        PatientRows(plan, privacy, data, 0)


def test_pseudonyms_are_the_train_splits_in_the_order_of_their_numbers(
    make_private: Callable[..., Plan], make_store: Callable[..., Path]
) -> None:
    plan, _ = _private(make_private)
    store = SliceStore.open(make_store(slices=10, splits=["holdout", "train", "train", "holdout", "train"]))
    data = TrainingSet.from_store(store, plan)
    assert data.pseudonyms == tuple(store.manifest.patients[k].id for k in (1, 2, 4))
    assert data.patient.tolist() == [0, 0, 1, 1, 2, 2]


def _image_store(path: Path, keep: np.ndarray, unit: str = "image") -> SliceStore:
    """Pictures of two blocks, without those not in `keep`."""
    hu = np.arange(6 * 256).reshape(6, 16, 16).astype(np.int16) % 251
    block = np.array([0, 0, 0, 0, 1, 1])
    return SliceStore.open(
        write_store(path, hu[keep], block[keep], splits=["train"] * 2, unit=unit, values="grey")  # type: ignore[arg-type]
    )


def test_an_image_keeps_its_name_when_another_of_its_block_goes(
    make_private: Callable[..., Plan], tmp_path: Path
) -> None:
    plan, _ = _private(make_private, unit="image")
    whole = TrainingSet.from_store(_image_store(tmp_path / "whole", np.arange(6)), plan)
    fewer = TrainingSet.from_store(_image_store(tmp_path / "fewer", np.array([0, 2, 3, 4, 5])), plan)
    assert len(set(whole.pseudonyms)) == whole.patients == 6
    assert fewer.pseudonyms == tuple(name for k, name in enumerate(whole.pseudonyms) if k != 1)


def test_the_plans_unit_decides_and_pictures_are_no_patients(
    make_private: Callable[..., Plan], make_store: Callable[..., Path], tmp_path: Path
) -> None:
    by_patient, by_image = _private(make_private)[0], _private(make_private, unit="image")[0]
    store = SliceStore.open(make_store(slices=10))
    assert (TrainingSet.from_store(store, by_patient).patients, TrainingSet.from_store(store, by_image).patients) == (
        5,
        10,
    )
    assert TrainingSet.from_store(store, by_image).unit == "image"
    with pytest.raises(DataError, match=r"knows no patients .* set privacy.unit to 'image', which protects"):
        TrainingSet.from_store(_image_store(tmp_path / "pictures", np.arange(6)), by_patient)
