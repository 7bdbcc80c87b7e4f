"""Forgetting takes out whole patients, those alone, in one step, whatever stops it."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from filelock import FileLock

from ctslices.files import write_whole
from ctslices.forget import NOTE, ForgetError, forget, named
from ctslices.labels import TableError
from ctslices.manifest import Manifest
from ctslices.montage import montage_path, write_montage
from ctslices.pseudonym import SiteKey, create_key
from ctslices.store import MANIFEST, SliceStore, manifest_bytes, read_manifest, write_store

IDS = [f"PAT-{number:03d}" for number in range(12)]


def keyed_store(folder: Path, key: SiteKey, slices: int = 3) -> SliceStore:
    """A store whose pseudonyms are those of IDS under `key`, as `prepare` makes them."""
    rng = np.random.default_rng(0)
    patient = np.repeat(np.arange(len(IDS)), slices)
    hu = rng.integers(-1000, 1000, (len(patient), 16, 16)).astype(np.int16)
    write_store(folder, hu, patient, label=(patient % 2).astype(np.int16), labels=("a", "b"))
    whole = read_manifest(folder)
    pairs = zip(whole.patients, IDS, strict=True)
    records = [p.model_copy(update={"id": key.pseudonym("patient", raw)}) for p, raw in pairs]
    changed = whole.model_copy(update={"patients": tuple(records), "key_fingerprint": key.fingerprint})
    write_whole(folder / MANIFEST, manifest_bytes(Manifest.model_validate(changed.model_dump())), mode=0o600)
    return SliceStore.open(folder)


@pytest.fixture
def key(tmp_path: Path) -> SiteKey:
    return create_key(tmp_path / "store.key")


@pytest.fixture
def store(tmp_path: Path, key: SiteKey) -> SliceStore:
    return keyed_store(tmp_path / "store", key)


def ids_file(tmp_path: Path, *rows: str) -> Path:
    path = tmp_path / "ids.txt"
    path.write_text("\n".join(rows) + "\n")
    return path


def test_only_the_named_patients_go_and_the_rest_stays_to_the_bit(
    store: SliceStore, key: SiteKey, tmp_path: Path
) -> None:
    before = {
        p.id: (p.split, store.hu[np.flatnonzero(store.patient == k)], store.label[store.patient == k])
        for k, p in enumerate(store.manifest.patients)
    }
    pseudonym = store.manifest.patients[7].id
    found = named(store.manifest, ids_file(tmp_path, IDS[2], "", pseudonym), key)
    assert found.pseudonyms == {key.pseudonym("patient", IDS[2]), pseudonym}
    assert not found.unknown_rows
    done = forget(store.path, found.pseudonyms)
    assert (done.patients, done.slices, done.patients_left, done.slices_left) == (2, 6, 10, 30)
    after = SliceStore.open(store.path)
    assert [p.id for p in after.manifest.patients] == [p for p in before if p not in found.pseudonyms]
    for number, record in enumerate(after.manifest.patients):
        split, hu, label = before[record.id]
        mine = after.patient == number
        assert record.split == split
        assert np.array_equal(after.hu[np.flatnonzero(mine)], hu)
        assert np.array_equal(after.label[mine], label)
    assert after.manifest.notes == (NOTE,)
    assert oct((store.path / MANIFEST).stat().st_mode & 0o777) == "0o600"
    assert oct(store.path.stat().st_mode & 0o777) == "0o700"


def test_joined_identities_are_found_by_any_of_them(store: SliceStore, key: SiteKey, tmp_path: Path) -> None:
    same = tmp_path / "same.csv"
    same.write_text(f"patient,same_as\nZZ-9,{IDS[4]}\n")
    found = named(store.manifest, ids_file(tmp_path, "ZZ-9"), key, same)
    assert found.pseudonyms == {key.pseudonym("patient", IDS[4])}
    assert named(store.manifest, ids_file(tmp_path, "ZZ-9"), key).unknown_rows == (1,)


def test_a_row_that_names_nobody_is_told_by_its_number(store: SliceStore, key: SiteKey, tmp_path: Path) -> None:
    found = named(store.manifest, ids_file(tmp_path, IDS[1], "PAT-01", "NOBODY"), key)
    assert found.unknown_rows == (2, 3)


def test_who_was_removed_before_is_no_unknown_row(store: SliceStore, key: SiteKey, tmp_path: Path) -> None:
    ids = ids_file(tmp_path, IDS[1])
    gone = named(store.manifest, ids, key).pseudonyms
    forget(store.path, gone)
    manifest = read_manifest(store.path)
    assert named(manifest, ids, key).unknown_rows == (1,)
    again = named(manifest, ids, key, removed=gone)
    assert (again.pseudonyms, again.unknown_rows) == (gone, ())


def test_another_key_and_an_empty_list_are_refused(store: SliceStore, tmp_path: Path) -> None:
    with pytest.raises(ForgetError, match="not the one"):
        named(store.manifest, ids_file(tmp_path, IDS[0]), create_key(tmp_path / "other.key"))
    with pytest.raises(ForgetError, match="names nobody"):
        named(store.manifest, ids_file(tmp_path, "", " "), None)
    with pytest.raises(TableError, match="--patients: the file is not there"):
        named(store.manifest, tmp_path / "none.txt", None)


def test_what_lies_beside_and_may_show_a_patient_goes_too(store: SliceStore, tmp_path: Path) -> None:
    write_montage(store, montage_path(store.path))
    quarantine = tmp_path / "store.quarantine"
    quarantine.mkdir()
    (quarantine / "suspect-00000.png").write_bytes(b"png")
    (quarantine / "list.csv").write_text("picture,path,frame,release\n")
    (tmp_path / "store.state.json").write_text("{}")
    (tmp_path / "store.work").mkdir()
    forget(store.path, {store.manifest.patients[0].id})
    left = sorted(path.name for path in tmp_path.iterdir())
    assert [name for name in left if name != "store.lock"] == ["store", "store.key", "store.quarantine"]
    assert [path.name for path in quarantine.iterdir()] == ["list.csv"]


def test_all_may_go(store: SliceStore) -> None:
    forget(store.path, {p.id for p in store.manifest.patients})
    assert len(SliceStore.open(store.path)) == 0


def test_a_prepare_under_way_is_not_disturbed(store: SliceStore, tmp_path: Path) -> None:
    with FileLock(tmp_path / "store.lock"), pytest.raises(ForgetError, match="prepare is writing"):
        forget(store.path, {store.manifest.patients[0].id})
    assert len(SliceStore.open(store.path).manifest.patients) == 12


def test_a_full_disk_changes_nothing(store: SliceStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("ctslices.subset.write_whole", full)
    with pytest.raises(ForgetError, match="nothing was changed"):
        forget(store.path, {store.manifest.patients[0].id})
    assert len(SliceStore.open(store.path).manifest.patients) == 12
    assert not (tmp_path / ".store.new").exists()


CHILD = """
import sys, time, pathlib
from ctslices.forget import forget
print("go", flush=True)
started = time.perf_counter()
forget(pathlib.Path(sys.argv[1]), {sys.argv[2]})
print(time.perf_counter() - started, flush=True)
"""


def test_killed_at_any_moment_the_store_is_whole_and_the_same_call_ends_it(tmp_path: Path, key: SiteKey) -> None:
    """Kill -9 of the real function at moments over its whole life; in the end no byte of the patient is left."""
    store = keyed_store(tmp_path / "store", key, slices=200)
    victim = store.manifest.patients[3].id
    signature = store.hu[np.flatnonzero(store.patient == 3)][0].tobytes()

    def start() -> subprocess.Popen[str]:
        command = [sys.executable, "-c", CHILD, str(store.path), victim]
        child = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert child.stdout is not None
        assert child.stdout.readline() == "go\n"
        return child

    whole = float(start().communicate()[0])
    seen = set()
    for moment in range(12):
        store = keyed_store(tmp_path / "store", key, slices=200)
        child = start()
        time.sleep(whole * moment / 8)
        if moment < 11:  # the last one ends by itself, however slow the machine is
            child.kill()
        child.communicate()
        seen.add(victim in {p.id for p in SliceStore.open(store.path).manifest.patients})
        forget(store.path, {victim})
        assert len(SliceStore.open(store.path).manifest.patients) == 11
        files = [path for path in tmp_path.rglob("*") if path.is_file()]
        assert not [path.name for path in files if signature in path.read_bytes()]
    assert seen == {True, False}
