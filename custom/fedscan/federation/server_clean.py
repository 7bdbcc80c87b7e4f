"""`fedscan server clean KIT`: what runs and jobs left at the server goes after the days that local/server.json names.

Of a run's folder its verdict and the sites' ledger heads stay: by the heads a ledger that was put back is noticed.
"""

from __future__ import annotations

import fcntl
import json
import shutil
import time
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from fedscan.federation import (
    kit_files,
    retention,
    revocation,
    run_owner,
    server_shelf,
    site_heads,
    site_processes,
    verdict,
)
from fedscan.federation.job_form import MAX_FILE_BYTES
from fedscan.federation.places import SERVER_CONFIG, Retention, ServerPlaces
from fedscan.federation.retention import Cleaned, Item, item

UPDATES = "updates"
_LOCK = ".server.lock"
STUB = (verdict.FILE, site_heads.FILE, run_owner.FILE)
"""Of a run that went, what stays."""
_META, _DATA = "meta", "data"
_ENTRY = {_META, "scheduled"}
"""Of a job in NVFlare's store: these a running server reads. Were they to go in mid-scan its scheduler would end."""
_MAX_META_BYTES = 1 << 24


@dataclass(frozen=True)
class _Plan:
    """One thing, and what is to be done with it: a folder goes whole, or the paths in it that are named."""

    item: Item
    goes: bool
    parts: tuple[Path, ...] = ()


def clean(kit: Path, own: Retention | None = None, *, dry_run: bool = False, now: float | None = None) -> Cleaned:
    """Removes what is older than `own` says (None: the kit's local/server.json); `now` in seconds of the epoch.

    Never of a run or job that is at work, nor of one that was touched within the hour. Raises ShelfError, OSError.
    """
    places = server_shelf.places_of(kit)
    days = own or places.retention
    now = time.time() if now is None else now
    running = site_processes.of_server(kit)
    live_jobs = {job for job, _ in running.jobs}
    planned = [
        *_runs(kit, places, days, live_jobs, now),
        *_store(kit, days, live_jobs, now, is_up=bool(running.parents)),
        *_left_by_jobs(kit, days, live_jobs, now),
    ]
    if not dry_run:
        for left in _leftovers(kit, places):
            shutil.rmtree(left)
        for one in planned:
            if one.goes:
                _carry_out(one)
    removed = tuple(one.item for one in planned if one.goes)
    return Cleaned(removed, (*(one.item for one in planned if not one.goes), *_always(kit, places)))


def _runs(kit: Path, places: ServerPlaces, days: Retention, live_jobs: set[str], now: float) -> Iterator[_Plan]:
    waiting = _runs_that_wait(kit, live_jobs)
    for run in _run_folders(places):
        is_live = waiting is None or run.name in waiting or _is_locked(run)
        yield from _updates(run, is_live, now)
        parts = tuple(path for path in sorted(run.iterdir()) if path.name not in (*STUB, _LOCK, UPDATES))
        if not parts:
            yield _Plan(item(run, "what stays of a run", "verdict, and the sites' ledger heads"), goes=False)
            continue
        goes, why = retention.verdict(is_live, run, days.runs_days, now)
        what = "run: model, records, checkpoints"
        if not goes:
            why += "" if is_live or (run / verdict.FILE).exists() else "; it may be resumed"
        yield _Plan(item(run, what, why), goes, parts)


def _updates(run: Path, is_live: bool, now: float) -> Iterator[_Plan]:
    """Of a round that a kill ended: single sites' updates, which nobody will ask for."""
    left = run / UPDATES
    if retention.is_folder(left):
        goes, why = retention.verdict(is_live, left, 0.0, now)
        yield _Plan(item(left, "updates of a round that did not end", why), goes)


def _above_runs(places: ServerPlaces) -> Path | None:
    """Where the runs lie; None where their folders cannot be told from others."""
    folder = Path(places.run_folder)
    return folder.parent if folder.name == "{run_id}" and "{run_id}" not in str(folder.parent) else None


def _run_folders(places: ServerPlaces) -> list[Path]:
    above = _above_runs(places)
    return [] if above is None else retention.folders(above, retention.RUN)


def _is_locked(run: Path) -> bool:
    """By the job process that works on it. FileLock itself would touch the file, and the run's age with it."""
    try:
        with (run / _LOCK).open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    return False


def _jobs(kit: Path) -> list[Path]:
    return retention.folders(kit / kit_files.JOB_STORE, retention.JOB)


def _runs_that_wait(kit: Path, live_jobs: set[str]) -> set[str] | None:
    """Of jobs that have not ended; None where one of them cannot be read: it may be of any run."""
    found = set()
    for job in _jobs(kit):
        if job.name not in live_jobs and _has_ended(job):
            continue
        run = _run_of(job)
        if run is None:
            return None
        found.add(run)
    return found


def _has_ended(job: Path) -> bool:
    """By NVFlare's meta; one that cannot be read has not."""
    try:
        with (job / _META).open("rb") as file:
            return str(json.loads(file.read(_MAX_META_BYTES))["status"]).startswith("FINISHED")
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return False


def _run_of(job: Path) -> str | None:
    try:
        with zipfile.ZipFile(job / _DATA) as packed:
            [name] = [name for name in packed.namelist() if name.endswith(f"/config/{SERVER_CONFIG}")]
            with packed.open(name) as file:
                text = file.read(MAX_FILE_BYTES + 1)  # a lead packed it: a little can be very much
        return str(json.loads(text)["submission"]["run_id"]) if len(text) <= MAX_FILE_BYTES else None
    except (OSError, ValueError, KeyError, TypeError, RecursionError, RuntimeError, zlib.error, zipfile.BadZipFile):
        return None


def _store(kit: Path, days: Retention, live_jobs: set[str], now: float, *, is_up: bool) -> Iterator[_Plan]:
    """NVFlare's own copies of what was submitted, and of what can be downloaded."""
    for job in _jobs(kit):
        parts = tuple(path for path in sorted(job.iterdir()) if path.name not in _ENTRY)
        ended = _has_ended(job)
        goes, why = retention.verdict(job.name in live_jobs, job, days.jobs_days, now)
        if not ended:
            goes, why = False, "it has not ended"
        if goes and is_up and not parts:
            goes, why = False, "its entry alone is left; it goes when the server is stopped"
        yield _Plan(item(job, "job in NVFlare's store, with its results", why), goes, parts if is_up else ())


def _left_by_jobs(kit: Path, days: Retention, live_jobs: set[str], now: float) -> Iterator[_Plan]:
    for path in retention.folders(kit, retention.JOB):
        goes, why = retention.verdict(path.name in live_jobs, path, days.jobs_days, now)
        yield _Plan(item(path, "folder of a job that a kill left", why), goes)
    for path in retention.folders(kit / kit_files.SNAPSHOT_STORE, retention.JOB):
        goes, why = retention.verdict(path.name in live_jobs, path, days.jobs_days, now)
        yield _Plan(item(path, "NVFlare's snapshot of a job", why), goes)


def _carry_out(one: _Plan) -> None:
    if not one.parts:
        retention.remove(one.item.path)
        return
    for part in one.parts:
        if retention.is_folder(part):
            retention.remove(part)
        else:
            part.unlink()


def _leftovers(kit: Path, places: ServerPlaces) -> Iterator[Path]:
    runs = _run_folders(places)
    above = {run.parent for run in runs}
    for folder in (kit, kit / kit_files.JOB_STORE, kit / kit_files.SNAPSHOT_STORE, *above, *runs):
        yield from retention.leftovers(folder)


def _always(kit: Path, places: ServerPlaces) -> Iterator[Item]:
    known = [
        (places.shelf, "shelf", "models that plans name by SHA-256"),
        (kit / "local" / "audit", "audit log, chained", "for the operator (`fedscan audit log`)"),
        (kit / "local" / revocation.FILE, "revocations", "the newest list of the root"),
        (kit / "audit.log", "NVFlare's audit log", "it grows by a line each command"),
    ]
    known += [(log, "log of the server's process", "NVFlare rotates it") for log in sorted(kit.glob("log*.txt*"))]
    yield from (item(path, what, why) for path, what, why in known if path.exists())
    if _above_runs(places) is None:
        why = "`run_folder` in local/server.json is not FOLDER/{run_id}: look after it by hand"
        yield Item(Path(places.run_folder), "runs", 0.0, why)


def with_days(own: Retention, runs_days: float | None, jobs_days: float | None) -> Retention:
    """The kit's own days, but for those that are given."""
    given = {"runs_days": runs_days, "jobs_days": jobs_days}
    return own.model_copy(update={name: days for name, days in given.items() if days is not None})
