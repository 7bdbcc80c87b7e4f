"""`fedscan site clean KIT`: NVFlare never deletes a job's folder at a site. Finished ones go after some days, live ones
never; of a run's training state and answers what no submission can ask for again."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

from fedscan.federation import kept_answer, retention, site_processes
from fedscan.federation.places import CLIENT_CONFIG, PlacesError, plan_and_submission
from fedscan.federation.retention import KEEP_DAYS, Cleaned, Item, item
from fedscan.federation.site_kit import Kit
from fedscan.privacy.site_file import Site, SiteError


def job_folders(kit: Path) -> list[Path]:
    """Run folders of NVFlare's jobs in a kit, by name. Links are none."""
    return retention.folders(kit, retention.JOB)


def clean(folder: Path, keep_days: float | None = None, *, dry_run: bool = False, now: float | None = None) -> Cleaned:
    """Removes what was finished more than `keep_days` ago (None: those of site.json); `now` in seconds of the epoch.

    Each folder goes whole. Raises KitError, OSError.
    """
    kit = Kit.open(folder)
    if keep_days is None:
        site = _site(kit)
        keep_days = KEEP_DAYS if site is None else site.file.keep_days
    now = time.time() if now is None else now
    live = {job for job, _ in site_processes.of_kit(kit.folder).jobs}
    judged = [_judge_job(path, live, keep_days, now) for path in job_folders(kit.folder)]
    judged += _judge_runs(kit, live, keep_days, now)
    if not dry_run:
        for left in _leftovers(kit):
            shutil.rmtree(left)
        for goes, one in judged:
            if goes:
                retention.remove(one.path)
    removed = tuple(one for goes, one in judged if goes)
    kept = tuple(one for goes, one in judged if not goes)
    return Cleaned(removed, (*kept, *_always(kit)))


def _judge_job(path: Path, live: set[str], keep_days: float, now: float) -> tuple[bool, Item]:
    goes, why = retention.verdict(path.name in live, path, keep_days, now)
    return goes, item(path, "folder of a job", why)


def _judge_runs(kit: Kit, live: set[str], keep_days: float, now: float) -> list[tuple[bool, Item]]:
    """A run's training state, and an answer that was kept to go out again."""
    site = _site(kit)
    if site is None or not site.state.is_dir():
        return []
    live_runs = {_run_of(kit.folder / job, kit.site) for job in live}
    unknown = None in live_runs
    judged = []
    for path in retention.folders(site.state, retention.RUN):
        goes, why = retention.verdict(unknown or path.name in live_runs, path, keep_days, now)
        if goes and _has_answer(path, now):
            goes, why = False, "its submission has not expired: the kept answer may be asked for again"
        judged.append((goes, item(path, "training state and kept answer of a run", why)))
    return judged


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
    yield from (item(path, what, why) for path, what, why in places if path.exists())


def _site(kit: Kit) -> Site | None:
    try:
        return Site.open(kit.folder)
    except SiteError:
        return None


def _leftovers(kit: Kit) -> list[Path]:
    site = _site(kit)
    folders = [kit.folder, *([site.state] if site is not None and site.state.is_dir() else [])]
    return [path for one in folders for path in retention.leftovers(one)]
