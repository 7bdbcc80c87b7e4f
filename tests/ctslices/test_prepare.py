from __future__ import annotations

import contextlib
import json
import os
import random
import resource
import shutil
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import psutil
import pytest
from numpy.typing import NDArray

from ctslices import SliceStore
from ctslices.labels import TableError
from ctslices.options import Options
from ctslices.prepare import PrepareError, Site, prepare
from ctslices.pseudonym import KeyFileError, load_key

PATIENTS = 6
SLICES = 12
OPTIONS = Options(every_mm=None)


@pytest.fixture(scope="module")
def export(
    tmp_path_factory: pytest.TempPathFactory,
    real_chest: NDArray[np.int16],
    write_series: Callable[..., list[Path]],
) -> Path:
    """Six patients of twelve slices of a real chest, cut at different levels."""
    folder = tmp_path_factory.mktemp("exports") / "export"
    for number in range(PATIENTS):
        write_series(folder / f"disc{number}", f"PAT-{number}", real_chest[8 + number : 8 + number + SLICES])
    (folder / "README.txt").write_text("not a scan")
    return folder


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory, export: Path) -> Path:
    """A store of the export, made by one worker; tests take its key with it and must not change it."""
    store = tmp_path_factory.mktemp("stores") / "store"
    prepare(export, store, OPTIONS, Site(workers=1))
    return store


def _content(store: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(store.iterdir())}


def _site(prepared: Path, **more: object) -> Site:
    return Site(key=prepared.with_name("store.key"), **more)  # type: ignore[arg-type]


def test_a_store_holds_every_patient_in_order(export: Path, prepared: Path) -> None:
    store = SliceStore.open(prepared)
    manifest = store.manifest
    key = load_key(prepared.with_name("store.key"))
    assert [p.id for p in manifest.patients] == sorted(key.pseudonym("patient", f"PAT-{k}") for k in range(PATIENTS))
    assert (len(store), manifest.unit, manifest.kinds) == (PATIENTS * SLICES, "patient", ("dicom",))
    assert manifest.rejected == {"not-an-image": 1}
    assert all(np.all(np.diff(store.position_mm[store.series == s]) > 0) for s in range(PATIENTS))
    record = manifest.series[0]
    assert (record.manufacturer, record.kernel, record.kvp, record.thickness_mm) == ("Siemens", "B40f", 120.0, 10.0)
    assert record.spacing_mm == (3.046, 3.046)
    assert len(record.corners_mm) == 4
    corners = np.asarray(record.corners_mm)
    np.testing.assert_allclose(np.linalg.norm(corners[1] - corners[0]), 360.0, atol=1e-3)
    np.testing.assert_allclose(corners.mean(axis=0), np.asarray(record.centre_mm), atol=1e-3)


def test_beside_the_store_lie_files_for_the_site_alone(prepared: Path) -> None:
    modes = {p.name: stat.S_IMODE(p.stat().st_mode) for p in prepared.parent.iterdir() if p.is_file()}
    modes.pop("store.lock")
    assert modes == {"store.key": 0o600, "store.rejected.jsonl": 0o600, "store.state.json": 0o600}
    assert stat.S_IMODE(prepared.stat().st_mode) == 0o700
    assert {stat.S_IMODE(p.stat().st_mode) for p in prepared.iterdir()} == {0o600}
    (line,) = prepared.with_name("store.rejected.jsonl").read_text().splitlines()
    assert json.loads(line) == {"path": "README.txt", "reason": "not-an-image", "detail": ""}
    assert not prepared.with_name("store.work").exists()


def test_the_number_of_workers_changes_no_byte(export: Path, prepared: Path, tmp_path: Path) -> None:
    prepare(export, tmp_path / "two", OPTIONS, _site(prepared, workers=2))
    assert _content(tmp_path / "two") == _content(prepared)


def test_the_same_again_does_nothing_and_a_change_rebuilds(export: Path, prepared: Path, tmp_path: Path) -> None:
    mine, store = tmp_path / "export", tmp_path / "store"
    shutil.copytree(export, mine)
    first = prepare(mine, store, OPTIONS, _site(prepared, workers=1))
    left = tmp_path / "store.work"  # as a kill after the store's last word leaves it
    left.mkdir()
    (left / "part.npy").write_bytes(b"pixels")
    before = (store / "manifest.json").stat().st_mtime_ns
    again = prepare(mine, store, OPTIONS, _site(prepared, workers=1))
    assert (first.unchanged, again.unchanged) == (False, True)
    assert not left.exists()
    assert first.as_dict() | {"unchanged": True} == again.as_dict()
    assert (store / "manifest.json").stat().st_mtime_ns == before

    shutil.rmtree(mine / "disc0")
    changed = prepare(mine, store, OPTIONS, _site(prepared, workers=1))
    assert not changed.unchanged
    assert (changed.patients, changed.slices) == (PATIENTS - 1, (PATIENTS - 1) * SLICES)
    old = {p.id: p.split for p in SliceStore.open(prepared).manifest.patients}
    assert all(old[p.id] == p.split for p in SliceStore.open(store).manifest.patients)
    assert not list(tmp_path.glob(".store*"))

    other_split = prepare(mine, store, OPTIONS, _site(prepared, workers=1, split_seed=5))
    assert not other_split.unchanged


def _start(export: Path, store: Path, key: Path, limit_bytes: int | None = None) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "ctslices", "prepare", str(export), "--out", str(store), "--key", str(key)]

    def limit() -> None:
        if limit_bytes is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit_bytes, limit_bytes))

    return subprocess.Popen(
        [*command, "--every-mm", "0", "--workers", "2", "--json"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=limit,  # noqa: PLW1509 - the limit must hold for the child alone, and no thread runs here
    )


def test_killed_at_any_moment_the_next_run_ends_with_the_same_bytes(
    export: Path, prepared: Path, tmp_path: Path
) -> None:
    key, store = prepared.with_name("store.key"), tmp_path / "store"
    began = time.monotonic()
    process = _start(export, tmp_path / "whole", key)
    output, _ = process.communicate()
    whole_s = time.monotonic() - began
    assert json.loads(output)["slices"] == PATIENTS * SLICES
    moments = random.Random(11)
    killed = 0
    for attempt in range(10):
        process = _start(export, store, key)
        time.sleep(whole_s * moments.uniform(0.3, 1.0) if attempt else whole_s * 0.6)
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            killed += 1
        else:  # the machine was busier when the whole was timed
            whole_s *= 0.7
        process.communicate()
        if store.exists():
            assert _content(store) == _content(prepared)
            shutil.rmtree(store)
        if killed == 4:
            break
    assert killed >= 2
    process = _start(export, store, key)
    output, errors = process.communicate()
    assert process.returncode == 0, errors
    assert _content(store) == _content(prepared)
    left = {p.name for p in tmp_path.iterdir() if p.name.startswith("store")}
    assert left == {"store", "store.lock", "store.rejected.jsonl", "store.state.json"}


def test_a_worker_that_dies_costs_nothing_when_it_was_not_the_file(
    export: Path, prepared: Path, tmp_path: Path
) -> None:
    process = _start(export, tmp_path / "store", prepared.with_name("store.key"))
    killed = 0
    while process.poll() is None and killed < 2:
        for child in psutil.Process(process.pid).children():
            name = ""
            with contextlib.suppress(psutil.NoSuchProcess):  # a child that has just ended
                name = " ".join(child.cmdline())
            if "ctslices.pool" in name and (tmp_path / "store.work").exists():
                finished = len(list((tmp_path / "store.work").glob("*.json")))
                if finished > killed:
                    child.kill()
                    killed += 1
                    break
        time.sleep(0.01)
    output, errors = process.communicate()
    assert process.returncode == 0, errors
    assert json.loads(output)["slices"] == PATIENTS * SLICES
    assert _content(tmp_path / "store") == _content(prepared)


def test_no_room_is_one_clear_error_and_replaces_nothing(export: Path, prepared: Path, tmp_path: Path) -> None:
    store = tmp_path / "store"
    shutil.copytree(prepared, store)
    process = _start(export, store, prepared.with_name("store.key"), limit_bytes=20_000)
    output, errors = process.communicate()
    assert process.returncode == 1
    assert output == ""
    assert errors.startswith("error: the store cannot be written (File too large): nothing was replaced")
    assert "Traceback" not in errors
    assert _content(store) == _content(prepared)
    assert not list(tmp_path.rglob("*.part"))


def test_another_key_is_refused_and_no_new_one_is_made(export: Path, prepared: Path, tmp_path: Path) -> None:
    store = tmp_path / "store"
    shutil.copytree(prepared, store)
    with pytest.raises(KeyFileError, match="the key file is not there"):
        prepare(export, store, OPTIONS)
    assert not (tmp_path / "store.key").exists()
    prepare(export, tmp_path / "other", OPTIONS, Site(workers=1))
    with pytest.raises(KeyFileError, match="made with another key"):
        prepare(export, store, OPTIONS, Site(key=tmp_path / "other.key"))
    with pytest.raises(KeyFileError, match="must not lie in the store"):
        prepare(export, tmp_path / "third", OPTIONS, Site(key=tmp_path / "third" / "key"))
    assert not {p.id for p in SliceStore.open(store).manifest.patients} & {
        p.id for p in SliceStore.open(tmp_path / "other").manifest.patients
    }


def test_places_that_cannot_be_meant_are_refused(export: Path, tmp_path: Path) -> None:
    with pytest.raises(PrepareError, match="within each other"):
        prepare(export, export / "store", OPTIONS)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("")
    with pytest.raises(PrepareError, match="not a store"):
        prepare(export, tmp_path / "mine", OPTIONS)
    with pytest.raises(PrepareError, match="not a folder that is there"):
        prepare(tmp_path / "none", tmp_path / "store", OPTIONS)
    with pytest.raises(PrepareError, match=r"--holdout must lie in .*: got 1\.5"):
        prepare(export, tmp_path / "store", OPTIONS, Site(holdout=1.5))
    assert [p.name for p in tmp_path.iterdir()] == ["mine"]


def test_no_store_is_made_in_a_store(export: Path, prepared: Path) -> None:
    with pytest.raises(PrepareError, match="lies in another store"):
        prepare(export, prepared / "deeper" / "store", OPTIONS)
    assert not (prepared / "deeper").exists()


def test_labels_joins_and_exclusions_by_the_sites_tables(export: Path, prepared: Path, tmp_path: Path) -> None:
    (tmp_path / "labels.csv").write_text("key,label\nPAT-1,covid\nPAT-2,clear\ndisc2/0003.dcm,covid\nPAT-99,covid\n")
    (tmp_path / "same.csv").write_text("patient,same_as\nPAT-3,PAT-2\n")
    (tmp_path / "ids.txt").write_text("PAT-0\nPAT-77\nPAT-78\n")
    site = _site(
        prepared,
        workers=1,
        labels=tmp_path / "labels.csv",
        same_patient=tmp_path / "same.csv",
        exclude=tmp_path / "ids.txt",
    )
    report = prepare(export, tmp_path / "store", OPTIONS, site)
    assert report.labels == {"clear": SLICES - 1, "covid": SLICES + 1, "(none)": 3 * SLICES}
    assert report.unmatched == {"--labels": [5], "--exclude": [2, 3]}
    assert (report.patients, report.series) == (PATIENTS - 2, PATIENTS - 1)
    assert report.rejected["excluded"] == SLICES
    store = SliceStore.open(tmp_path / "store")
    key = load_key(prepared.with_name("store.key"))
    joined = [p.id for p in store.manifest.patients].index(key.pseudonym("patient", "PAT-2"))
    assert store.manifest.patients[joined].series == 2
    assert store.labels == ("clear", "covid")
    with pytest.raises(TableError, match="--labels: the file is not there"):
        prepare(export, tmp_path / "store", OPTIONS, _site(prepared, labels=tmp_path / "none.csv"))


def test_an_export_without_scans_gives_an_empty_store_that_says_why(tmp_path: Path) -> None:
    (tmp_path / "export").mkdir()
    (tmp_path / "export" / "a.txt").write_text("nothing")
    report = prepare(tmp_path / "export", tmp_path / "store", OPTIONS, Site(workers=1))
    assert (report.slices, report.rejected) == (0, {"not-an-image": 1})
    assert len(SliceStore.open(tmp_path / "store")) == 0


def test_pictures_are_an_image_store_labelled_by_their_folders(tmp_path: Path) -> None:
    from PIL import Image

    rng = np.random.default_rng(3)
    for folder in ("covid", "clear"):
        (tmp_path / "export" / folder).mkdir(parents=True)
        for number in range(1, 41):
            grey = rng.integers(0, 256, (90, 120)).astype(np.uint8)
            Image.fromarray(grey).save(tmp_path / "export" / folder / f"{folder} ({number}).png")
    report = prepare(tmp_path / "export", tmp_path / "store", OPTIONS, Site(workers=1))
    store = SliceStore.open(tmp_path / "store")
    assert (store.unit, store.manifest.values, store.manifest.field_mm) == ("image", "grey", None)
    assert report.labels == {"clear": 40, "covid": 40}
    assert len(store.manifest.patients) == 4
    assert sorted(p.slices for p in store.manifest.patients) == [15, 15, 25, 25]
    assert any("no patients are known" in note for note in report.notes)
