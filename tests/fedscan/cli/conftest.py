"""A site made by the command itself, and a private job for it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

Command = Callable[..., tuple[int, str]]


@pytest.fixture
def private_job(repository: Path, tmp_path: Path, command: Command) -> Path:
    """A job of 20 rounds under DP for site `a`."""
    privacy = {
        "noise_multiplier": 3.0,
        "delta": 1e-4,
        "sites": {"a": {"sample_rate": 0.25, "expected_patients_per_step": 15.0}},
    }
    settings = [f"privacy={json.dumps(privacy)}", "init_sha256=" + "d" * 64, "weighting=uniform", "rounds=20"]
    settings += ["training.local_steps=10", "min_responses=1", "model.size=16", "model.preset=tiny"]
    arguments = [part for setting in settings for part in ("--set", setting)]
    code, output = command("job", "new", repository / "jobs" / "ct_fedavg", tmp_path / "job", *arguments)
    assert code == 0, output
    return tmp_path / "job"
