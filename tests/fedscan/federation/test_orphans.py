"""A job's process whose parent is gone: real processes, named as NVFlare names its own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from fedscan.federation import site_processes

JOB = """
import sys, time
time.sleep(float(sys.argv[2]))
from fedscan.federation import orphans
orphans.GRACE_S, orphans.LOOK_S = 0.5, 0.1
orphans.end_with_parent()
print("watches", flush=True)
time.sleep(60)
"""
PARENT = """
import subprocess, sys, time
job = subprocess.Popen([sys.executable, *sys.argv[2:]])
print(job.pid, flush=True)
time.sleep(60)
"""


@pytest.fixture
def start(tmp_path: Path) -> Callable[..., tuple[subprocess.Popen[str], psutil.Process]]:
    """A parent and its job's process, which begins to watch after `wait_s`."""
    (tmp_path / "job.py").write_text(JOB)
    (tmp_path / "parent.py").write_text(PARENT)

    def begin(
        wait_s: float = 0.0, parent: str = site_processes.SITE_PARENT, job: str = site_processes.SITE_JOB
    ) -> tuple[subprocess.Popen[str], psutil.Process]:
        command = [sys.executable, str(tmp_path / "parent.py"), parent, str(tmp_path / "job.py"), job, str(wait_s)]
        started = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True)
        assert started.stdout is not None
        found = psutil.Process(int(started.stdout.readline()))
        if not wait_s:
            assert started.stdout.readline() == "watches\n"
        return started, found

    return begin


def has_ended(process: psutil.Process, timeout_s: float = 15.0) -> bool:
    ends = time.monotonic() + timeout_s
    while time.monotonic() < ends:
        if not process.is_running() or process.status() == psutil.STATUS_ZOMBIE:
            return True
        time.sleep(0.1)
    return False


def test_it_ends_after_its_parent(start: Callable[..., tuple[subprocess.Popen[str], psutil.Process]]) -> None:
    parent, job = start()
    assert not has_ended(job, timeout_s=2.0)
    parent.kill()
    parent.wait()
    assert has_ended(job)


def test_it_ends_where_its_parent_was_gone_before(
    start: Callable[..., tuple[subprocess.Popen[str], psutil.Process]],
) -> None:
    parent, job = start(wait_s=1.0)
    parent.kill()
    parent.wait()
    assert has_ended(job)


def test_another_process_goes_on(start: Callable[..., tuple[subprocess.Popen[str], psutil.Process]]) -> None:
    parent, other = start(job="a test that has an executor")
    parent.kill()
    parent.wait()
    try:
        assert not has_ended(other, timeout_s=3.0)
    finally:
        os.kill(other.pid, signal.SIGKILL)
