"""`fedscan job`: what a busy person gets wrong is one line and status 1, never a traceback."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from ctslices.store import write_store
from fedscan.cli.job import app
from fedscan.federation.job_folder import read_plan


def _run(*arguments: object) -> tuple[int, str]:
    result = CliRunner().invoke(app, [str(a) for a in arguments])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, result.output


@pytest.fixture
def job(repository: Path, tmp_path: Path) -> Path:
    assert _run("new", repository / "jobs" / "ct_fedavg", tmp_path / "job", "--set", "min_responses=1")[0] == 0
    return tmp_path / "job"


def test_a_run_without_sites_or_without_a_place(job: Path, tmp_path: Path) -> None:
    code, output = _run("run", job, "--out", tmp_path / "run")
    assert code == 1
    assert output.startswith("error: no site is named")
    assert not (tmp_path / "run").exists()
    store = write_store(tmp_path / "store", np.zeros((2, 64, 64), np.int16), np.arange(2), splits=["train", "train"])
    (tmp_path / "file").write_bytes(b"")
    code, output = _run("run", job, "--site", f"a={store}", "--out", tmp_path / "run")
    assert code == 1
    assert "--no-policy" in output
    code, output = _run("run", job, "--site", f"a={store}", "--no-policy", "--out", tmp_path / "file" / "run")
    assert code == 1
    assert "Not a directory" in output


def test_fields_keep_their_names_in_one_piece_however_narrow() -> None:
    code, output = _run("fields")
    assert code == 0
    assert "model.unet.attention_levels" in output


def test_sizes_may_come_in_several_options(repository: Path, tmp_path: Path) -> None:
    template = repository / "jobs" / "ct_fedavg_dp"
    code, output = _run("new", template, tmp_path / "j", "--patients", "a=200", "--patients", "b=300,c=400")
    assert code == 0, output
    assert set(read_plan(tmp_path / "j").privacy.sites) == {"a", "b", "c"}
    code, output = _run("new", template, tmp_path / "k", "--patients", "a=200", "--patients", "a=300")
    assert code == 1
    assert "names 'a' twice" in output
