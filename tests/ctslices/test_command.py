from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from ctslices import write_store


def _run(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "ctslices", *map(str, arguments)], capture_output=True, text=True, check=False
    )


@pytest.fixture
def store(tmp_path: Path) -> Path:
    hu = np.random.default_rng(0).integers(-1024, 900, (30, 16, 16)).astype(np.int16)
    return write_store(
        tmp_path / "store",
        hu,
        np.arange(30) // 10,
        label=np.arange(30) % 3 - 1,
        labels=("clear", "covid"),
        splits=["train", "train", "holdout"],
    )


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys, ctslices.command, fedscan.cli.prepare, fedscan.cli.inspect\n"
        "print([m for m in ('numpy', 'pydantic', 'pydicom', 'scipy', 'nibabel', 'torch') if m in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
    told = _run("prepare", "--help").stdout
    for option in (
        "--field-mm",
        "--every-mm",
        "--patient-from",
        "--same-patient",
        "--holdout",
        "--split-seed",
        "--key",
    ):
        assert option in told


def test_inspect_says_what_is_in_a_store(store: Path) -> None:
    done = _run("inspect", store, "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert (found["slices"], found["patients"], found["size"], found["unit"]) == (30, 3, 16, "patient")
    assert found["by_split"] == {"train": {"patients": 2, "slices": 20}, "holdout": {"patients": 1, "slices": 10}}
    assert found["labels"] == {
        "clear": {"train": 7, "holdout": 3},
        "covid": {"train": 6, "holdout": 4},
        "(none)": {"train": 7, "holdout": 3},
    }
    assert Path(found["montage"]) == store.with_name("store.montage.png")
    assert Path(found["montage"]).stat().st_size > 1000
    told = _run("inspect", store, "--out", store.with_name("other.png")).stdout
    assert "30 slices of 16 x 16 pixels, field 360 mm, HU -1024..899" in told
    assert store.with_name("other.png").exists()
    assert sorted(p.name for p in store.iterdir()) == ["manifest.json", "slices-00000.safetensors"]


def test_what_is_wrong_is_one_line_and_status_1(store: Path, tmp_path: Path) -> None:
    for arguments, message in (
        (("inspect", tmp_path), "error: not a slice store: it has no manifest.json"),
        (("inspect", store, "--window", "brain"), "error: window must be one of full, lung"),
        (("inspect", store, "--out", tmp_path / "no" / "x.png"), "error: the picture cannot be written there"),
        (("prepare", tmp_path / "none", "--out", tmp_path / "s"), "error: the export is not a folder that is there"),
        (("prepare", store, "--out", tmp_path / "s", "--region", "leg"), "error: region must be 'chest' or 'any'"),
    ):
        done = _run(*arguments)
        assert (done.returncode, done.stdout) == (1, "")
        assert done.stderr.startswith(message), done.stderr
        assert done.stderr.count("\n") == 1


def test_prepare_ends_with_what_to_do_next(tmp_path: Path) -> None:
    (tmp_path / "export").mkdir()
    (tmp_path / "export" / "note.txt").write_text("no scan")
    done = _run("prepare", tmp_path / "export", "--out", tmp_path / "store", "--workers", "1")
    assert done.returncode == 0, done.stderr
    assert "not-an-image" in done.stdout
    assert "The store is empty: see the reasons above" in done.stdout
    told = _run("inspect", tmp_path / "store").stdout
    assert "The store is empty: nothing can be trained" in told
    assert "Scanners" not in told
    (tmp_path / "export" / "note.txt").unlink()
    done = _run("prepare", tmp_path / "export", "--out", tmp_path / "store", "--workers", "1")
    assert "no file lies in the export" in done.stdout
