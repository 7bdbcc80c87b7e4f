from __future__ import annotations

import stat
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ctslices import SliceStore, StoreError, write_store
from ctslices.montage import montage, montage_path, write_montage


def test_shows_each_slice_once_in_the_stores_order(tmp_path: Path) -> None:
    hu = np.repeat(np.linspace(-1000, 1000, 12).astype(np.int16)[:, None], 64 * 64, axis=1).reshape(12, 64, 64)
    store = SliceStore.open(write_store(tmp_path / "store", hu, np.arange(12)))
    sheet = montage(store, "full", np.random.default_rng(0))
    assert sheet.shape == (2 * 130 - 2, 10 * 130 - 2)
    centres = [int(sheet[64 + 130 * (k // 10), 64 + 130 * (k % 10)]) for k in range(12)]
    np.testing.assert_array_equal(centres, np.rint((np.linspace(-1000, 1000, 12).astype(int) / 1000 + 1) * 127.5))


def test_is_a_picture_beside_the_store_for_its_owner_alone(tmp_path: Path) -> None:
    store = SliceStore.open(write_store(tmp_path / "store", np.zeros((70, 16, 16), np.int16), np.arange(70)))
    path = write_montage(store, montage_path(tmp_path / "store"))
    assert path == tmp_path / "store.montage.png"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    with Image.open(path) as image:
        assert image.size == (10 * 98 - 2, 6 * 98 - 2)
        assert image.info == {}


def test_an_empty_store_has_no_picture_and_a_wrong_window_is_refused(tmp_path: Path) -> None:
    empty = SliceStore.open(write_store(tmp_path / "e", np.zeros((0, 16, 16), np.int16), np.empty(0, int)))
    assert write_montage(empty, tmp_path / "e.png") is None
    assert not (tmp_path / "e.png").exists()
    one = SliceStore.open(write_store(tmp_path / "o", np.zeros((1, 16, 16), np.int16), np.zeros(1, int)))
    with pytest.raises(StoreError, match="'grey'"):
        write_montage(one, tmp_path / "o.png", "grey")
