from __future__ import annotations

from pathlib import Path

import pytest

from ctslices import swap


def _folder(path: Path, content: str) -> Path:
    path.mkdir()
    (path / "file").write_text(content)
    return path


@pytest.mark.parametrize("exchange", [True, False])
def test_the_new_folder_takes_the_place_and_nothing_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, exchange: bool
) -> None:
    if not exchange:
        monkeypatch.setattr(swap, "_exchange", lambda one, other: False)
    place = tmp_path / "store"
    swap.put_in_place(_folder(tmp_path / "new", "1"), place)
    swap.put_in_place(_folder(tmp_path / "new", "2"), place)
    assert (place / "file").read_text() == "2"
    assert [p.name for p in tmp_path.iterdir()] == ["store"]


def test_a_stop_between_two_renames_is_mended(tmp_path: Path) -> None:
    _folder(tmp_path / ".store.replaced", "old")
    swap.recover(tmp_path / "store")
    assert (tmp_path / "store" / "file").read_text() == "old"
    _folder(tmp_path / ".store.replaced", "older")
    swap.recover(tmp_path / "store")
    assert [p.name for p in tmp_path.iterdir()] == ["store"]
    assert (tmp_path / "store" / "file").read_text() == "old"
