"""Dealing keeps patients whole, loses nobody, and changes no side of the split."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from ctslices.deal import DealError, deal
from ctslices.store import SliceStore, write_store


@pytest.fixture
def store(tmp_path: Path) -> SliceStore:
    rng = np.random.default_rng(0)
    patient = np.repeat(np.arange(12), rng.integers(1, 6, 12))
    hu = rng.integers(-1000, 1000, (len(patient), 16, 16)).astype(np.int16)
    write_store(tmp_path / "store", hu, patient, label=(patient % 2).astype(np.int16), labels=("a", "b"))
    return SliceStore.open(tmp_path / "store")


def test_every_patient_goes_whole_to_one_site(store: SliceStore, tmp_path: Path) -> None:
    dealt = [SliceStore.open(path) for path in deal(store, tmp_path / "sites", 4)]
    ids = [p.id for s in dealt for p in s.manifest.patients]
    assert sorted(ids) == sorted(p.id for p in store.manifest.patients)
    assert {p.id: (p.split, p.slices) for s in dealt for p in s.manifest.patients} == {
        p.id: (p.split, p.slices) for p in store.manifest.patients
    }
    for site in dealt:
        for number, record in enumerate(site.manifest.patients):
            source = [p.id for p in store.manifest.patients].index(record.id)
            mine, theirs = site.patient == number, store.patient == source
            assert np.array_equal(site.hu[np.flatnonzero(mine)], store.hu[np.flatnonzero(theirs)])
            assert np.array_equal(site.label[mine], store.label[theirs])
    assert max(len(s.manifest.patients) for s in dealt) - min(len(s.manifest.patients) for s in dealt) <= 1


def test_the_same_seed_deals_the_same_and_another_does_not(store: SliceStore, tmp_path: Path) -> None:
    def ids(name: str, seed: int) -> list[list[str]]:
        return [
            [p.id for p in SliceStore.open(path).manifest.patients] for path in deal(store, tmp_path / name, 3, seed)
        ]

    assert ids("one", 1) == ids("two", 1) != ids("three", 2)


def test_too_many_sites_and_an_existing_folder_are_refused(store: SliceStore, tmp_path: Path) -> None:
    with pytest.raises(DealError, match=r"1\.\.12"):
        deal(store, tmp_path / "x", 13)
    deal(store, tmp_path / "y", 2)
    with pytest.raises(DealError, match="exists already"):
        deal(store, tmp_path / "y", 2)


def test_nothing_is_dealt_into_a_store(store: SliceStore, tmp_path: Path) -> None:
    for place in (tmp_path / "store", tmp_path / "store" / "sites"):
        with pytest.raises(DealError, match="lies in a store"):
            deal(store, place, 2)
    assert not (tmp_path / "store" / "sites").exists()


def test_a_deal_that_fails_leaves_no_store(store: SliceStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written = []

    def full_disk(path: Path, *_: object, **__: object) -> None:
        written.append(path)
        if len(written) == 3:
            raise OSError(28, "No space left on device")
        path.write_bytes(b"x")

    monkeypatch.setattr("ctslices.subset.write_whole", full_disk)
    with pytest.raises(OSError, match="No space left"):
        deal(store, tmp_path / "sites", 4)
    assert len(written) == 3
    assert list((tmp_path / "sites").iterdir()) == []
