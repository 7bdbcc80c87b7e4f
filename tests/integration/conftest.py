"""Small stores and a small job for runs through real NVFlare processes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from ctslices.phantom import chest_slices
from ctslices.store import write_store
from fedscan.federation import job_folder

SITES = ("hosp-a", "hosp-b", "hosp-c")


@pytest.fixture(scope="session")
def stores(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Three sites with 24, 32 and 40 phantom slices; every patient in the train split."""
    folder = tmp_path_factory.mktemp("stores")
    made = {}
    for number, site in enumerate(SITES):
        n = 24 + 8 * number
        hu, _ = chest_slices(np.random.default_rng(number), n)
        patient = np.arange(n) // 8
        made[site] = write_store(folder / site, hu, patient, splits=["train"] * (n // 8))
    return made


@pytest.fixture
def job(repository: Path, tmp_path: Path) -> Path:
    """Three rounds of four steps with the tiny preset."""
    settings = [
        "model.preset=tiny",
        "rounds=3",
        "training.local_steps=4",
        "training.batch_size=8",
        "training.warmup_steps=2",
        "min_responses=3",
        "round_timeout_s=120",
    ]
    job_folder.new(repository / "jobs" / "ct_fedavg", tmp_path / "job", settings)
    return tmp_path / "job"
