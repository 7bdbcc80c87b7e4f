"""kill -9 of each process of a private federation through NVFlare: nothing is uncharged, and the run ends well."""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from pathlib import Path

import pytest
from federation_lives import VICTIMS, Federation

from fedscan.federation import job_folder, processes, records


@pytest.mark.slow
@pytest.mark.timeout(3000)
def test_processes_of_a_private_federation_are_killed_one_after_another(
    repository: Path, tmp_path: Path, make_site: Callable[..., Path], private_settings: Callable[..., list[str]]
) -> None:
    seed = int(os.environ.get("FEDSCAN_TEST_SEED", random.SystemRandom().randrange(10**6)))
    print(f"seed {seed}")
    rng = random.Random(seed)
    sites = {name: make_site(tmp_path, name, "max_epsilon=10000") for name in ("hosp-a", "hosp-b")}
    more = ("rounds=12", "tries_per_round=10")
    plan = job_folder.new(repository / "jobs" / "ct_fedavg", tmp_path / "job", private_settings(*sites, settings=more))
    federation = Federation(tmp_path, sites, tmp_path / "job")
    killed = []
    for victim in rng.sample(sorted(VICTIMS), len(VICTIMS)):
        if federation.kill(VICTIMS[victim], rng.uniform(0.0, 25.0)):
            killed.append(victim)
        federation.go_on()
        federation.check(plan)
    federation.finish()
    federation.check(plan)
    print(f"seed {seed}: killed {killed}")
    assert len(killed) >= 5
    done = records.effective_rounds(federation.run / "rounds.jsonl")
    assert [r.round for r in done] == list(range(12))
    assert processes.belonging_to(federation.run) == []
