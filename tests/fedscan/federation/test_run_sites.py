"""What `--site NAME=...` takes, and what it stamps."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fedscan.federation import job_folder, local_run, run_sites
from fedscan.federation.findings import JobError
from fedscan.plan import Plan


def test_a_site_file_its_folder_or_a_kit_is_a_site_and_anything_else_a_store(
    new_hospital: Callable[..., Any], tmp_path: Path
) -> None:
    path = new_hospital().site.path
    kit = tmp_path / "kit"
    (kit / "local").mkdir(parents=True)
    (kit / "local" / "site.json").symlink_to(path)
    store = new_hospital_store(path)
    for named in (path, path.parent, kit):
        sources = run_sites.read({"hosp-a": named})
        assert sources.site_files == {"hosp-a": path.resolve()}
        assert (sources.bare, sources.errors, sources.stores["hosp-a"]) == ({}, (), store)
        assert list(run_sites.findings(sources, no_policy=False)) == []
        assert run_sites.stamps(sources, None) == ()
    bare = run_sites.read({"x": store})
    assert (bare.site_files, bare.bare) == ({}, {"x": store.resolve()})
    assert run_sites.stamps(bare, None) == ("no policy, no ledger",)
    both = run_sites.read({"hosp-a": path, "x": store})
    assert run_sites.stamps(both, 7) == ("no policy, no ledger: x", "reproducible noise: demo only")


def new_hospital_store(site_json: Path) -> Path:
    return run_sites.read({"hosp-a": site_json}).stores["hosp-a"]


def test_a_site_under_another_name_and_an_unreadable_one_are_errors(
    new_hospital: Callable[..., Any], tmp_path: Path
) -> None:
    path = new_hospital().site.path
    assert "say --site hosp-a=" in run_sites.read({"hosp-b": path}).errors[0].text
    path.write_text("{}")
    assert "site_version" in run_sites.read({"hosp-a": path}).errors[0].text


def test_a_store_needs_no_policy_said_aloud_and_never_serves_a_private_plan(
    repository: Path, phantom_store: Path, private_plan: Callable[..., Plan], tmp_path: Path
) -> None:
    job_folder.new(repository / "jobs" / "ct_fedavg", tmp_path / "job", ["model.preset=tiny"])
    with pytest.raises(JobError, match="--no-policy"):
        local_run.run(tmp_path / "job", {"x": phantom_store}, tmp_path / "RUN")
    sources = run_sites.read({"hosp-a": phantom_store})
    assert "no ledger" in run_sites.private_findings(sources, private_plan())[0].text
    assert run_sites.private_findings(sources, Plan()) == []
    settings = ["model.preset=tiny", "weighting=uniform", "training.local_steps=2", "min_responses=1"]
    privacy = private_plan().privacy
    assert privacy is not None
    job_folder.new(
        repository / "jobs" / "ct_fedavg",
        tmp_path / "private",
        [*settings, f"privacy={privacy.model_dump_json()}"],
    )
    with pytest.raises(JobError, match="a private plan must be charged"):
        local_run.run(tmp_path / "private", {"hosp-a": phantom_store}, tmp_path / "RUN", no_policy=True)
    assert not (tmp_path / "RUN").exists()
