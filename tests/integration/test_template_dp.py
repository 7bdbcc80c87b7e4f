"""The template jobs/ct_fedavg_dp through real processes, for two small hospitals under their own policies."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from fedscan.federation import job_check, job_folder, local_run
from fedscan.privacy.site_file import Site
from fedscan.training import public_start
from fedscan.training.model_file import load_model

pytestmark = [pytest.mark.timeout(600), pytest.mark.slow]

PATIENTS = 12


def test_it_runs_from_its_start_within_a_new_sites_policy(
    repository: Path, tmp_path: Path, make_site: Callable[..., Path]
) -> None:
    """Nothing but the sizes and shorter times is set; nobody names the start's file."""
    names = ("hosp-a", "hosp-b")
    sites = {name: make_site(tmp_path, name, patients=PATIENTS) for name in names}
    shorter = ["rounds=2", "privacy.answer_after_s=20", "round_timeout_s=120"]
    job_folder.new(
        repository / "jobs" / "ct_fedavg_dp", tmp_path / "job", shorter, patients=dict.fromkeys(names, PATIENTS)
    )
    stores = {name: Site.open(path).store for name, path in sites.items()}
    assert [f.text for f in job_check.check(tmp_path / "job", stores) if f.level == "error"] == []
    model = load_model(local_run.run(tmp_path / "job", sites, tmp_path / "RUN"))
    start = load_model(public_start.SHELF / "ct_phantom.safetensors")
    assert model.plan.init_sha256 == start.sha256
    # 20 warm-up steps of at most 0.001 from the start's weights; a fresh network's lie much farther away.
    moved = max(float((model.weights[name] - start.weights[name]).abs().max()) for name in start.weights)
    assert 0.0 < moved < 0.02
    spent = [site["epsilon"] for site in model.provenance["privacy_spent"]["sites"].values()]
    assert len(spent) == 2
    assert all(7.5 < epsilon <= 8.0 for epsilon in spent)
    assert model.provenance["stamps"] == []
