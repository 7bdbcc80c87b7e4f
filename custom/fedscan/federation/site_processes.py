"""NVFlare's processes that work in one kit: its parents, and the job processes with their jobs."""

from __future__ import annotations

import contextlib
import itertools
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

_APP = "nvflare.private.fed.app"
SITE_PARENT, SITE_JOB = f"{_APP}.client.client_train", f"{_APP}.client.worker_process"
"""The modules that a site's processes run, as they stand in their command lines."""
_SERVER = (f"{_APP}.server.server_train", f"{_APP}.server.runner_process")


@dataclass(frozen=True)
class Running:
    """What runs in a kit now, as far as this user may see."""

    parents: tuple[psutil.Process, ...]
    jobs: tuple[tuple[str, psutil.Process], ...]
    """NVFlare's job ids, each with its process."""


def of_kit(kit: Path) -> Running:
    """NVFlare's client processes whose workspace (`-m`) is this kit, links followed."""
    return _of(kit, SITE_PARENT, SITE_JOB)


def of_server(kit: Path) -> Running:
    """The same of a server's kit."""
    return _of(kit, *_SERVER)


def _of(kit: Path, parent: str, job: str) -> Running:
    wanted = kit.resolve()
    users = _users(wanted)
    parents, jobs = [], []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied):
            command = process.cmdline()
            if process.uids().effective not in users:
                continue
            if parent in command and _workspace(command, parent) == wanted:
                parents.append(process)
            elif job in command and _workspace(command, job) == wanted:
                jobs.append((_after(command, ("-n", "--job_id")), process))
    return Running(tuple(parents), tuple(jobs))


def _users(kit: Path) -> frozenset[int]:
    """Whose processes may be the kit's: anybody with an account can give a process any command line."""
    with contextlib.suppress(OSError):
        return frozenset({kit.stat().st_uid, os.geteuid(), 0})
    return frozenset({os.geteuid(), 0})


def _workspace(command: Sequence[str], module: str) -> Path | None:
    """Python's own `-m` comes before the module, the workspace's after it."""
    rest = command[command.index(module) + 1 :]
    place = _after(rest, ("-m", "--workspace"))
    return Path(place).resolve() if place else None


def _after(command: Sequence[str], names: tuple[str, ...]) -> str:
    for word, following in itertools.pairwise(command):
        if word in names:
            return following
    return ""


def listening_ports(process: psutil.Process) -> frozenset[int]:
    """TCP ports at which a process listens; none where that may not be seen."""
    with contextlib.suppress(psutil.Error, OSError):
        found = process.net_connections(kind="tcp")
        return frozenset(one.laddr.port for one in found if one.status == psutil.CONN_LISTEN)
    return frozenset()


def listening_beyond_loopback(process: psutil.Process) -> frozenset[int]:
    """Those of them that other machines could reach."""
    with contextlib.suppress(psutil.Error, OSError):
        found = [one for one in process.net_connections(kind="tcp") if one.status == psutil.CONN_LISTEN]
        return frozenset(one.laddr.port for one in found if not _is_loopback(one.laddr.ip))
    return frozenset()


def _is_loopback(address: str) -> bool:
    return address.startswith("127.") or address in ("::1", "::ffff:127.0.0.1")


def is_alive(pid_file: Path) -> bool | None:
    """Whether the process of a pid file runs; None where there is no such file."""
    try:
        pid = int(pid_file.read_text(encoding="utf-8").strip())
    except (OSError, ValueError):
        return None
    return pid > 0 and os.path.exists(f"/proc/{pid}")
