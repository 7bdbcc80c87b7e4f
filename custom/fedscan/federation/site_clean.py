"""`fedscan site clean KIT`: NVFlare never deletes a job's folder at a site. Finished ones go after some days, live ones
never; of a run's training state and answers what no submission can ask for again."""

from __future__ import annotations

import os
import re
import shutil
import stat
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from fedscan.federation import kept_answer, site_processes
from fedscan.federation.places import CLIENT_CONFIG, PlacesError, plan_and_submission
from fedscan.federation.site_kit import Kit
from fedscan.privacy.site_file import Site, SiteError

KEEP_DAYS = 30.0
YOUNG_S = 3600.0
"""A job that was touched within an hour may be on its way to a process of its own."""
_JOB = re.compile(r"^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$")
_RUN = re.compile(r"^[0-9a-f]{32}$")
_GOING = ".removing-"


@dataclass(frozen=True)
class Item:
    """A folder, how much it holds, and why it goes or stays."""

    path: Path
    what: str
    megabytes: float
    why: str


@dataclass(frozen=True)
class Cleaned:
    """What went (or would), and what is kept."""

    removed: tuple[Item, ...]
    kept: tuple[Item, ...]


def job_folders(kit: Path) -> list[Path]:
    """Run folders of NVFlare's jobs in a kit, by name. Links are none."""
    return sorted(path for path in kit.iterdir() if _JOB.fullmatch(path.name) and _is_folder(path))


def clean(folder: Path, keep_days: float = KEEP_DAYS, *, dry_run: bool = False, now: float | None = None) -> Cleaned:
    """Removes what was finished more than `keep_days` ago; `now` in seconds of the epoch. Raises KitError, OSError.

    Each folder goes whole: it is renamed first, so that what a stopped command left is no job to anybody, and goes
    with the next.
    """
    kit = Kit.open(folder)
    now = time.time() if now is None else now
    live = {job for job, _ in site_processes.of_kit(kit.folder).jobs}
    judged = [_judge_job(path, live, keep_days, now) for path in job_folders(kit.folder)]
    judged += _judge_runs(kit, live, keep_days, now)
    if not dry_run:
        for left in _leftovers(kit):
            shutil.rmtree(left)
        for goes, item in judged:
            if goes:
                _remove(item.path)
    removed = tuple(item for goes, item in judged if goes)
    kept = tuple(item for goes, item in judged if not goes)
    return Cleaned(removed, (*kept, *_always(kit)))


def _judge_job(path: Path, live: set[str], keep_days: float, now: float) -> tuple[bool, Item]:
    goes, why = _verdict(path.name in live, path, keep_days, now)
    return goes, Item(path, "folder of a job", _megabytes(path), why)


def _judge_runs(kit: Kit, live: set[str], keep_days: float, now: float) -> list[tuple[bool, Item]]:
    """A run's training state, and an answer that was kept to go out again."""
    site = _site(kit)
    if site is None or not site.state.is_dir():
        return []
    live_runs = {_run_of(kit.folder / job, kit.site) for job in live}
    unknown = None in live_runs
    judged = []
    for path in sorted(path for path in site.state.iterdir() if _RUN.fullmatch(path.name) and _is_folder(path)):
        goes, why = _verdict(unknown or path.name in live_runs, path, keep_days, now)
        if goes and _has_answer(path, now):
            goes, why = False, "its submission has not expired: the kept answer may be asked for again"
        judged.append((goes, Item(path, "training state and kept answer of a run", _megabytes(path), why)))
    return judged


def _verdict(is_live: bool, path: Path, keep_days: float, now: float) -> tuple[bool, str]:
    if is_live:
        return False, "it runs"
    age_s = now - _newest_s(path)
    if age_s < YOUNG_S:
        return False, "it was touched within the last hour"
    days = age_s / 86400
    if days < keep_days:
        return False, f"finished {days:.1f} days ago, kept for {keep_days:g}"
    return True, f"finished {days:.1f} days ago"


def _has_answer(path: Path, now: float) -> bool:
    return (path / kept_answer.NAME).exists() and not kept_answer.has_expired(
        path / kept_answer.NAME, datetime.fromtimestamp(now, UTC)
    )


def _run_of(job: Path, site: str) -> str | None:
    try:
        return plan_and_submission(job / f"app_{site}" / "config" / CLIENT_CONFIG)[1].run_id
    except PlacesError:
        return None


def _always(kit: Kit) -> Iterator[Item]:
    """What this command never removes, so that people know where the site remembers."""
    site = _site(kit)
    places = [(kit.folder / "audit.log", "NVFlare's audit log", "it grows by a line each command")]
    places += [(log, "log of the site's process", "NVFlare rotates it") for log in sorted(kit.folder.glob("log*.txt*"))]
    if site is not None:
        places += [
            (site.file.ledger, "ledger", "what was spent stays spent"),
            (site.state / "refusals.jsonl", "refusals", "for this site's people; 8 MiB, then .old"),
            (site.state / "bytes", "log of every byte that left", "for this site's people"),
            (site.state / "audit", "audit log, chained", "for this site's people (`fedscan audit log`)"),
            (site.state / "nonces", "used submissions", "a submission is taken once"),
            (site.state / "approvals", "approvals", "until they are withdrawn"),
            (site.state / "refused", "refused plans", "the last 64"),
        ]
    yield from (Item(path, what, _megabytes(path), why) for path, what, why in places if path.exists())


def _site(kit: Kit) -> Site | None:
    try:
        return Site.open(kit.folder)
    except SiteError:
        return None


def _leftovers(kit: Kit) -> list[Path]:
    site = _site(kit)
    folders = [kit.folder, *([site.state] if site is not None and site.state.is_dir() else [])]
    return [path for folder in folders for path in folder.glob(f"{_GOING}*") if _is_folder(path)]


def _remove(path: Path) -> None:
    going = path.with_name(f"{_GOING}{path.name}")
    os.rename(path, going)
    shutil.rmtree(going)


def _is_folder(path: Path) -> bool:
    return path.is_dir() and not path.is_symlink()


def _files(path: Path) -> Iterator[os.stat_result]:
    """Of a folder, itself and all below it; of a file, itself. Links are not followed."""
    yield path.lstat()
    if _is_folder(path):
        for root, folders, files in os.walk(path):
            for name in (*folders, *files):
                yield (Path(root) / name).lstat()


def _megabytes(path: Path) -> float:
    return sum(about.st_size for about in _files(path) if stat.S_ISREG(about.st_mode)) / 1e6


def _newest_s(path: Path) -> float:
    return max(about.st_mtime for about in _files(path))
