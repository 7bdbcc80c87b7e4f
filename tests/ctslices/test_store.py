from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from ctslices import SliceStore, StoreError, write_store
from ctslices.window import to_unit


def _hu(n: int = 20, size: int = 16) -> NDArray[np.int16]:
    return np.random.default_rng(5).integers(-1024, 3000, (n, size, size)).astype(np.int16)


@pytest.fixture
def store(tmp_path: Path) -> Path:
    return write_store(
        tmp_path / "store",
        _hu(),
        np.arange(20) // 4,
        label=np.arange(20) % 3 - 1,
        labels=("covid", "other"),
        position_mm=np.arange(20) * 2.5,
        splits=["train", "holdout", "train", "train", "holdout"],
        shard_slices=7,
    )


def test_gives_back_what_was_written_over_several_shards(store: Path) -> None:
    opened = SliceStore.open(store)
    assert len(list(store.glob("slices-*.safetensors"))) == 3
    np.testing.assert_array_equal(np.asarray(opened.hu), _hu())
    np.testing.assert_array_equal(opened.hu[[6, 7, 19, 0]], _hu()[[6, 7, 19, 0]])
    np.testing.assert_array_equal(opened.hu[-1], _hu()[-1])
    np.testing.assert_array_equal(opened.hu[5:9], _hu()[5:9])
    np.testing.assert_array_equal(opened.patient, np.arange(20) // 4)
    np.testing.assert_array_equal(opened.label, np.arange(20) % 3 - 1)
    np.testing.assert_array_equal(opened.position_mm, np.arange(20) * 2.5)
    assert opened.hu.shape == (20, 16, 16)
    assert opened.unit == "patient"
    assert (opened.patient.dtype, opened.series.dtype, opened.label.dtype) == (np.int32, np.int32, np.int16)
    with pytest.raises(IndexError, match=r"-20\.\.19: got 20"):
        opened.hu[20]


def test_shards_are_plain_safetensors(store: Path) -> None:
    arrays = load_file(store / "slices-00001.safetensors")
    assert {name: (str(a.dtype), a.shape) for name, a in arrays.items()} == {
        "hu": ("int16", (7, 16, 16)),
        "patient": ("int32", (7,)),
        "series": ("int32", (7,)),
        "position_mm": ("float32", (7,)),
        "label": ("int16", (7,)),
    }
    np.testing.assert_array_equal(arrays["hu"], _hu()[7:14])


def test_windows_are_views_of_one_side_of_the_split(store: Path) -> None:
    opened = SliceStore.open(store)
    holdout = opened.indices("holdout")
    np.testing.assert_array_equal(holdout, [4, 5, 6, 7, 16, 17, 18, 19])
    lung = opened.window("lung", "holdout")
    assert lung.shape == (8, 1, 16, 16)
    assert lung.dtype == np.float32
    np.testing.assert_array_equal(lung[:, 0], to_unit(_hu()[holdout], "lung"))
    np.testing.assert_array_equal(opened.window("full", indices=np.array([3]))[0, 0], to_unit(_hu()[3], "full"))
    assert sorted([*opened.indices("train"), *holdout]) == list(range(20))
    with pytest.raises(ValueError, match="'train', 'holdout' or None: got 'test'"):
        opened.indices("test")  # type: ignore[arg-type]


def test_pictures_have_no_hu_and_take_no_hu_window(tmp_path: Path) -> None:
    grey = np.full((3, 16, 16), 255, np.int16)
    opened = SliceStore.open(write_store(tmp_path / "p", grey, np.arange(3), unit="image", values="grey"))
    assert opened.window("full").max() == opened.window("grey").min() == 1
    with pytest.raises(StoreError, match="'lung' does not fit a store of grey values: use 'full' or 'grey'"):
        opened.window("lung")
    assert opened.manifest.field_mm is None


def test_a_store_of_hu_has_no_grey_window(store: Path) -> None:
    with pytest.raises(StoreError, match="'grey' does not fit a store of HU: use full, lung"):
        SliceStore.open(store).window("grey")


def _edit(store: Path, change: Callable[[dict[str, object]], None]) -> None:
    manifest = json.loads((store / "manifest.json").read_text())
    change(manifest)
    (store / "manifest.json").write_text(json.dumps(manifest))


def test_a_flipped_bit_is_found(store: Path) -> None:
    file = store / "slices-00001.safetensors"
    data = bytearray(file.read_bytes())
    data[-100] ^= 1
    file.write_bytes(bytes(data))
    with pytest.raises(StoreError, match=r"slices-00001.safetensors: SHA-256 got .*, wanted .*prepare the store again"):
        SliceStore.open(store)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m.update(format_version=2), r"format_version: got 2, wanted 1"),
        (lambda m: m.update(slices=21), r"slices: got 20 in the shards, wanted 21"),
        (lambda m: m.update(surprise=1), r"surprise: Extra inputs"),
        (lambda m: m["patients"].pop(), r"patient"),
        (lambda m: m["series"][0].update(patient=1), r"which patient a series belongs to"),
        (lambda m: m["series"][0].update(slices=5), r"number of slices of a series"),
        (lambda m: m["patients"][0].update(slices=5), r"number of slices of a patient"),
        (lambda m: m["patients"][0].update(id=m["patients"][3]["id"]), r"two patients have one pseudonym"),
        (lambda m: m.update(labels=["covid"]), r"label: got -1\.\.1, wanted -1\.\.0"),
        (lambda m: m.update(value_range=[-1024, 5]), r"values: got .*, wanted -1024\.\.5 within -1024\.\.32767"),
        (lambda m: m.update(size=32), r"patient|hu: got \('I16', \[7, 16, 16\]\)"),
        (lambda m: m["shards"][0].update(slices=6), r"got 7 slices, wanted 6"),
        (lambda m: m["shards"][0].update(file="../x.safetensors"), r"shards.0.file"),
    ],
)
def test_a_manifest_that_does_not_fit_is_refused(
    store: Path, change: Callable[[dict[str, object]], None], message: str
) -> None:
    _edit(store, change)
    with pytest.raises(StoreError, match=message):
        SliceStore.open(store)


def test_missing_files_and_other_folders_are_refused(store: Path, tmp_path: Path) -> None:
    (store / "slices-00002.safetensors").unlink()
    with pytest.raises(StoreError, match=r"slices-00002.safetensors is missing"):
        SliceStore.open(store)
    with pytest.raises(StoreError, match=r"not a slice store: it has no manifest.json"):
        SliceStore.open(tmp_path)
    (store / "manifest.json").write_text("{")
    with pytest.raises(StoreError, match=r"not JSON \(1 bytes\)"):
        SliceStore.open(store)


def test_a_shard_of_other_arrays_is_refused(store: Path) -> None:
    save_file({"hu": np.zeros((7, 16, 16), np.int16)}, store / "slices-00000.safetensors")
    with pytest.raises(StoreError, match="not a safetensors file of this format"):
        SliceStore.open(store, verify=False)


def test_the_same_arrays_give_the_same_bytes(store: Path, tmp_path: Path) -> None:
    again = write_store(tmp_path / "again", _hu(), np.arange(20) // 4, shard_slices=7)
    first = write_store(tmp_path / "first", _hu(), np.arange(20) // 4, shard_slices=7)
    names = sorted(p.name for p in again.iterdir())
    assert [(again / n).read_bytes() for n in names] == [(first / n).read_bytes() for n in names]


def test_values_below_air_are_refused(tmp_path: Path) -> None:
    hu = _hu()
    hu[0, 0, 0] = -1025
    write_store(tmp_path / "low", hu, np.zeros(20, int))
    with pytest.raises(StoreError, match=r"values: got -1025"):
        SliceStore.open(tmp_path / "low")
