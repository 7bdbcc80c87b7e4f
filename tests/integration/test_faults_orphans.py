"""kill -9 of the parents while their job's processes start: none of these stays, to keep a core busy and a log full."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from fedscan.federation import job_folder, kits, orphans, site_processes

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

AFTER_S = {"hosp-a": 0.2, "hosp-b": 3.0, "hosp-c": 6.0}
"""From when a job's process is there to its parent's end: Python, NVFlare and torch load for some 5 s."""


def test_no_process_of_a_job_outlives_its_parent(
    tmp_path: Path, stores: dict[str, Path], lab: Callable[..., Any], repository: Path
) -> None:
    job_folder.new(repository / "jobs" / "ct_fedavg", tmp_path / "job", ["model.preset=tiny"], list(AFTER_S))
    with lab(tmp_path / "lab", stores) as running:
        kit_of = {name: running.federation.kit(name) for name in (kits.SERVER, *AFTER_S)}
        running.submit(tmp_path / "job")
        jobs: dict[str, psutil.Process] = {}
        seen: dict[str, float] = {}
        waiting = dict(AFTER_S)
        ends = time.monotonic() + 120
        while waiting and time.monotonic() < ends:
            for name, after_s in dict(waiting).items():
                now = site_processes.of_kit(kit_of[name])
                if now.jobs and name not in seen:
                    (_, jobs[name]) = now.jobs[0]
                    seen[name] = time.monotonic()
                if name in seen and time.monotonic() - seen[name] >= after_s:
                    now.parents[0].kill()
                    del waiting[name]
            time.sleep(0.05)
        server = site_processes.of_server(kit_of[kits.SERVER])
        (_, jobs[kits.SERVER]) = server.jobs[0]
        server.parents[0].kill()
        assert set(jobs) == set(kit_of)
        left = list(jobs.values())
        left += [child for job in jobs.values() if job.is_running() for child in job.children(recursive=True)]
        _, alive = psutil.wait_procs(left, timeout=orphans.GRACE_S + 30)
        assert [process.cmdline() for process in alive] == []
