"""What a site trains on: the training slices of its store, in the plan's window and with the plan's classes."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from ctslices.store import SliceStore, StoreError
from ctslices.window import to_unit
from fedscan.plan import Plan

NO_LABEL = -1


class DataError(ValueError):
    """A store that the plan cannot be trained on: got, wanted, cure; nothing about a patient."""


@dataclass(frozen=True, eq=False)
class TrainingSet:
    """The slices of the train split, kept as int16 (a quarter of float64, half of float32) and windowed by batch."""

    hu: NDArray[np.int16]
    """int16 [n, s, s], in memory."""
    window: str
    """ctslices' name: the plan's, or `grey` for a store of pictures."""
    label: torch.Tensor | None
    """int64 [n], index into the plan's classes, -1 where a slice has none; None where the plan has no classes."""
    patient: NDArray[np.int32]
    """int32 [n], numbers from 0 without gaps in the order of the store (unit `image`: each slice its own)."""
    unit: Literal["patient", "image"]
    field_mm: float | None = None
    """Side of a slice; None for pictures, which have no scale."""
    pseudonyms: tuple[str, ...] = ()
    """Of each patient by its number; what a patient's draws under DP are keyed by. They never leave the site."""

    @classmethod
    def from_store(cls, store: SliceStore, plan: Plan) -> TrainingSet:
        """Reads the train split of `store`. Raises DataError where it does not fit `plan`."""
        if store.size != plan.model.size:
            raise DataError(
                f"size: the store's slices have {store.size} pixels a side, the plan wants {plan.model.size}: "
                "prepare a store with --size, or set model.size"
            )
        chosen = store.indices("train")
        if not len(chosen):
            raise DataError(f"the store has no slice to train on ({len(store)} in all): prepare more patients")
        hu = store.hu[chosen]
        unit = _unit(store, plan)
        patient, pseudonyms = _patients(store, chosen) if unit == "patient" else _images(store, chosen, hu)
        return cls(
            hu=hu,
            window=_window(store, plan),
            label=_labels(store, chosen, plan.model.classes),
            patient=patient,
            unit=unit,
            field_mm=store.manifest.field_mm,
            pseudonyms=pseudonyms,
        )

    def __len__(self) -> int:
        return len(self.hu)

    @property
    def values(self) -> Literal["hu", "grey"]:
        """What the slices hold."""
        return "grey" if self.window == "grey" else "hu"

    @property
    def examples(self) -> int:
        """Slices in the train split."""
        return len(self.hu)

    @property
    def patients(self) -> int:
        """Patients in the train split; where none is known (unit `image`) as many as slices."""
        return len(np.unique(self.patient))

    def batch(self, indices: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Slices float32 [b, 1, s, s] in [-1, 1] and labels int64 [b] (-1: none) or None, at `indices` int64 [b]."""
        slices = torch.from_numpy(to_unit(self.hu[indices.numpy()], self.window)[:, None])
        return slices, None if self.label is None else self.label[indices]


def _unit(store: SliceStore, plan: Plan) -> Literal["patient", "image"]:
    """What is one patient here: the plan's unit of privacy where it has one, else the store's."""
    if plan.privacy is None:
        return store.unit
    if plan.privacy.unit == "patient" and store.unit == "image":
        raise DataError(
            "unit: the store knows no patients (unit 'image'), the plan protects patients: prepare it with a table of "
            "patients, or set privacy.unit to 'image', which protects a single image and no person"
        )
    return plan.privacy.unit


def _patients(store: SliceStore, chosen: NDArray[np.int64]) -> tuple[NDArray[np.int32], tuple[str, ...]]:
    numbers, patient = np.unique(store.patient[chosen], return_inverse=True)
    return patient.astype(np.int32), tuple(store.manifest.patients[number].id for number in numbers)


def _images(
    store: SliceStore, chosen: NDArray[np.int64], hu: NDArray[np.int16]
) -> tuple[NDArray[np.int32], tuple[str, ...]]:
    """Each slice by its content: its place among the others would change when one of them is removed."""
    series = [store.manifest.series[number].id for number in store.series[chosen]]
    label = [store.labels[number] if number >= 0 else "" for number in store.label[chosen].tolist()]
    names = tuple(
        hashlib.sha256(f"{one} {name} ".encode() + pixels.tobytes()).hexdigest()[:32]
        for one, name, pixels in zip(series, label, hu, strict=True)
    )
    return np.arange(len(chosen), dtype=np.int32), names


def _window(store: SliceStore, plan: Plan) -> str:
    """Pictures were windowed before they were stored: they fit `full` alone (the store says why in its error)."""
    try:
        store.window(plan.window, indices=np.empty(0, np.int64))
    except StoreError as error:
        raise DataError(str(error)) from None
    return "grey" if store.manifest.values == "grey" else plan.window


def _labels(store: SliceStore, chosen: NDArray[np.int64], classes: tuple[str, ...]) -> torch.Tensor | None:
    if not classes:
        return None
    if unknown := sorted(set(store.labels) - set(classes)):
        raise DataError(
            f"labels: the store has {unknown}, the plan's classes are {list(classes)}: "
            "name them in model.classes, or prepare the store with other labels"
        )
    to_class = np.array([classes.index(name) for name in store.labels] + [NO_LABEL], np.int64)
    return torch.from_numpy(to_class[store.label[chosen]])  # a label of -1 takes the last entry, NO_LABEL
