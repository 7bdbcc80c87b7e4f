from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from ctslices.store import SliceStore, write_store
from fedscan.plan import Plan
from fedscan.training.data import DataError, TrainingSet

LABELS = np.array([0, 1, -1, 0, 1, 1, 0, -1])


def _labelled(make_store: Callable[..., Path], **changes: object) -> SliceStore:
    return SliceStore.open(make_store("labelled", 8, label=LABELS, labels=("covid", "healthy"), **changes))


def test_the_train_split_alone_in_the_plans_window(
    make_plan: Callable[..., Plan], make_store: Callable[..., Path]
) -> None:
    store = SliceStore.open(make_store(slices=10, holdout=2))
    data = TrainingSet.from_store(store, make_plan(window="lung"))
    assert (len(data), data.examples, data.patients, data.unit) == (6, 6, 3, "patient")
    slices, labels = data.batch(torch.tensor([5, 0]))
    assert slices.shape == (2, 1, 16, 16)
    assert slices.dtype == torch.float32
    assert labels is None
    np.testing.assert_array_equal(slices.numpy(), store.window("lung", "train")[[5, 0]])
    assert slices.min() >= -1
    assert slices.max() <= 1
    assert data.hu.dtype == np.int16


def test_labels_go_by_name_to_the_plans_classes(
    make_plan: Callable[..., Plan], make_store: Callable[..., Path]
) -> None:
    data = TrainingSet.from_store(_labelled(make_store), make_plan(classes=("healthy", "other", "covid")))
    _, labels = data.batch(torch.arange(8))
    assert labels is not None
    assert labels.dtype == torch.int64
    assert labels.tolist() == [2, 0, -1, 2, 0, 0, 2, -1]


def test_a_store_without_labels_is_all_no_label_under_classes(
    make_plan: Callable[..., Plan], make_store: Callable[..., Path]
) -> None:
    data = TrainingSet.from_store(SliceStore.open(make_store()), make_plan(classes=("a",)))
    assert data.label is not None
    assert set(data.label.tolist()) == {-1}


def test_a_plan_without_classes_takes_no_labels(
    make_plan: Callable[..., Plan], make_store: Callable[..., Path]
) -> None:
    assert TrainingSet.from_store(_labelled(make_store), make_plan()).label is None


def test_an_unknown_label_is_an_error_that_names_both(
    make_plan: Callable[..., Plan], make_store: Callable[..., Path]
) -> None:
    with pytest.raises(DataError, match=r"store has \['covid'\], the plan's classes are \['healthy', 'sick'\]"):
        TrainingSet.from_store(_labelled(make_store), make_plan(classes=("healthy", "sick")))


def test_another_size_and_no_slices_are_errors(make_plan: Callable[..., Plan], tmp_path: Path) -> None:
    hu = np.zeros((4, 32, 32), np.int16)
    large = SliceStore.open(write_store(tmp_path / "large", hu, np.arange(4), splits=["train"] * 4))
    with pytest.raises(DataError, match=r"32 pixels a side, the plan wants 16.*--size"):
        TrainingSet.from_store(large, make_plan())
    held = SliceStore.open(write_store(tmp_path / "held", hu[:, :16, :16], np.arange(4), splits=["holdout"] * 4))
    with pytest.raises(DataError, match=r"no slice to train on \(4 in all\)"):
        TrainingSet.from_store(held, make_plan())


def test_pictures_have_no_patients_and_one_window(make_plan: Callable[..., Plan], tmp_path: Path) -> None:
    hu = np.arange(4 * 256).reshape(4, 16, 16).astype(np.int16) % 256
    path = write_store(tmp_path / "grey", hu, [0, 0, 1, 1], splits=["train"] * 2, unit="image", values="grey")
    data = TrainingSet.from_store(SliceStore.open(path), make_plan())
    assert (data.unit, data.examples, data.patients) == ("image", 4, 4)
    slices, _ = data.batch(torch.arange(4))
    assert (float(slices.min()), float(slices.max())) == (-1.0, 1.0)
    with pytest.raises(DataError, match="window 'lung' does not fit a store of grey values"):
        TrainingSet.from_store(SliceStore.open(path), make_plan(window="lung"))
