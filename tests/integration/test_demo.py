"""The demo as a user runs it: killed three times on its way, gone on with, and judged by what it left."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pydicom
import pytest
from PIL import Image

from ctslices.store import SliceStore
from fedscan.evaluation.lungs import chest_check
from fedscan.federation import processes, records

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3000)]

HOSPITALS = ("north", "harbour", "valley")
DEADLINE_S = 1500.0


def _start(out: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "fedscan", "demo", "--out", str(out)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True)


def _kill_when(out: Path, ready: list[Path]) -> None:
    """Start a demo and kill its process, and nothing but it, once one of `ready` is there."""
    process = _start(out)
    until = time.monotonic() + DEADLINE_S
    while not any(path.exists() for path in ready) and process.poll() is None and time.monotonic() < until:
        time.sleep(0.1)
    assert process.poll() is None, process.communicate()[1]
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str, str]:
    """The demo's folder, and what its last run said."""
    out = tmp_path_factory.mktemp("story") / "demo"
    _kill_when(out, [out / "exports" / "harbour"])
    _kill_when(out, [out / "run" / "checkpoints" / "round-00002.safetensors"])
    _kill_when(out, [out / "run-private" / "checkpoints" / "round-00002.safetensors"])
    process = _start(out)
    said, progress = process.communicate(timeout=DEADLINE_S)
    assert process.returncode == 0, progress
    return out, said, progress


def test_the_last_line_is_the_reports_path(told: tuple[Path, str, str]) -> None:
    out, said, _ = told
    assert said.splitlines()[-1] == str(out / "report.html")
    assert (out / "report.html").is_file()


def test_what_was_done_before_the_kill_is_not_done_again(told: tuple[Path, str, str]) -> None:
    out, _, progress = told
    assert "DICOM: done already" in progress
    assert "slice stores: done already" in progress
    for run in ("run", "run-private"):
        rounds = records.effective_rounds(out / run / "rounds.jsonl")
        every = [r for r in records.read(out / run / "rounds.jsonl") if r.event == "round"]
        assert [r.round for r in rounds] == list(range(len(rounds)))
        assert len(every) <= len(rounds) + 1
    assert re.search(r"\[7/9\].*elapsed, about \d+:\d\d to go", progress)


def test_the_private_run_was_charged_at_every_hospital_and_says_so(told: tuple[Path, str, str]) -> None:
    from fedscan.cli.demo_privacy import read_budget
    from fedscan.training.model_file import load_model

    out, _, _ = told
    start, private, plain = (load_model(out / f / "model.safetensors") for f in ("start", "run-private", "run"))
    assert private.plan.init_sha256 == plain.plan.init_sha256 == start.sha256
    assert private.plan.privacy is not None
    assert private.provenance["stamps"] == []
    assert plain.provenance["stamps"] == ["no policy, no ledger"]
    planned = private.plan.rounds
    page = (out / "report.html").read_text(encoding="utf-8")
    for name in HOSPITALS:
        budget = read_budget(out / "sites" / name, private.provenance["run_id"])
        assert planned - 1 <= budget.rounds_charged <= planned + 2, "a busy machine may be late once"
        assert 5.0 < budget.spent <= budget.max_epsilon
        assert f"{budget.spent:.3f}</td>" in page
    assert {
        s.loss for r in records.effective_rounds(out / "run-private" / "rounds.jsonl") for s in r.sites.values()
    } == {None}


def test_exports_are_dicom_with_the_mess_of_real_ones(told: tuple[Path, str, str]) -> None:
    out, _, _ = told
    for name in HOSPITALS:
        store = SliceStore.open(out / "stores" / name)
        rejected = store.manifest.rejected
        assert {"localizer", "truncated", "duplicate-instance", "other-modality"} <= set(rejected)
        assert store.manifest.dropped_by_region["head"] > 0
        one = next(
            p for p in sorted((out / "exports" / name).rglob("*")) if p.suffix in ("", ".IMA", ".dcm") and p.is_file()
        )
        assert pydicom.dcmread(one, stop_before_pixels=True).SOPClassUID


def test_synthetic_slices_are_chests_and_spoilt_ones_are_not(told: tuple[Path, str, str]) -> None:
    from fedscan.cli.demo_facts import controls

    out, _, _ = told
    with np.load(out / "synthetic" / "slices.npz") as archive:
        hu = archive["hu"]
    assert hu.shape == (64, 64, 64)
    assert hu.dtype == np.int16
    real = np.concatenate([SliceStore.open(out / "stores" / name).hu[:] for name in HOSPITALS])
    check = chest_check(hu, real)
    assert check.two_lungs_share >= 0.9
    assert abs(check.air_difference_points) <= 3.0
    for spoilt in controls(hu).values():
        assert not chest_check(spoilt, real).is_chest
    pictures = sorted((out / "synthetic").glob("slice-*.png"))
    assert len(pictures) == 64
    with Image.open(pictures[0]) as picture:
        assert picture.size == (64, 64)


def test_a_finished_demo_is_told_at_once_and_leaves_no_process(told: tuple[Path, str, str]) -> None:
    out, _, _ = told
    before = {p: p.stat().st_mtime_ns for p in (out / "report.html", out / "run" / "model.safetensors")}
    process = _start(out)
    said, progress = process.communicate(timeout=60)
    assert said.strip() == str(out / "report.html")
    assert progress.count("done already") == 9
    assert {p: p.stat().st_mtime_ns for p in before} == before
    assert processes.belonging_to(out) == []
