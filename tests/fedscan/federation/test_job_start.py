from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from ctslices.store import Values, write_store
from fedscan.federation import job_check, job_folder, local_run
from fedscan.training import public_start

CT_PHANTOM = public_start.SHELF / "ct_phantom.safetensors"


@pytest.fixture
def job(repository: Path, tmp_path: Path) -> Path:
    job_folder.new(repository / "jobs" / "ct_fedavg_dp", tmp_path / "job", patients={"a": 2000, "b": 2000})
    return tmp_path / "job"


def make_store(path: Path, values: Values) -> Path:
    field_mm = 360.0 if values == "hu" else None
    hu = np.full((4, 64, 64), 100, np.int16)
    return write_store(path, hu, np.arange(4) // 2, splits=["train"] * 2, values=values, field_mm=field_mm)


def warnings(job: Path, stores: dict[str, Path]) -> list[str]:
    return [f.text for f in job_check.check(job, stores) if f.level == "warning" and f.where == str(CT_PHANTOM)]


def test_a_start_from_hu_is_said_not_to_fit_stores_of_pictures(job: Path, tmp_path: Path) -> None:
    hu, grey = make_store(tmp_path / "hu", "hu"), make_store(tmp_path / "grey", "grey")
    assert warnings(job, {}) == []
    assert warnings(job, {"a": hu, "b": hu}) == []
    [text] = warnings(job, {"a": hu, "b": grey})
    assert "the store at b holds grey values of pictures" in text
    assert "fedscan warm-start --look pictures" in text


def test_for_another_network_or_window_it_says_how_to_make_a_start(repository: Path, tmp_path: Path) -> None:
    template = repository / "jobs" / "ct_fedavg_dp"
    job_folder.new(template, tmp_path / "small", ["model.preset=small"], patients={"a": 2000, "b": 2000})
    found = [f for f in job_check.check(tmp_path / "small") if f.where == str(CT_PHANTOM)]
    assert [f.level for f in found] == ["error"]
    assert "more such differences" in found[0].text
    assert "fedscan warm-start" in found[0].text
    job_folder.new(template, tmp_path / "lung", ["window=lung"], patients={"a": 2000, "b": 2000})
    [text] = warnings(tmp_path / "lung", {})
    assert "window 'full', the plan's is 'lung'" in text
    assert "fedscan warm-start" in text


def test_a_run_puts_the_start_that_comes_with_fedscan_on_its_shelf(job: Path, tmp_path: Path) -> None:
    plan = job_folder.read_plan(job)
    local_run._shelve(tmp_path, plan, job_folder.remembered_init(job))
    assert (tmp_path / "shelf" / f"{plan.init_sha256}.safetensors").read_bytes() == CT_PHANTOM.read_bytes()
