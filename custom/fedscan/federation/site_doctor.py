"""`fedscan site doctor KIT`: what a sick site's logs, refusals and processes say, in words of known causes.

Of the logs it shows kinds, counts and times, never a line: what a library wrote there may quote a patient's data.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Literal

from fedscan.federation import refusals, site_processes, site_symptoms
from fedscan.federation.site_clean import job_folders
from fedscan.federation.site_connections import OwnConnections
from fedscan.federation.site_kit import Kit
from fedscan.federation.site_symptoms import Symptom
from fedscan.privacy.site_file import Site, SiteError

MAX_BYTES = 8 * 2**20
"""Of each log, its end: rotated logs are 5 MiB."""
_LOGS = ("log.txt", "error_log.txt", "console.log")
_STAMP = re.compile(r"^(\d{4}-\d\d-\d\d \d\d:\d\d:\d\d),\d{3} - ")
_ERROR = re.compile(r"^\S+ \S+ - [\w.]{1,80} - (ERROR|CRITICAL) - ")


@dataclass
class Seen:
    """One kind of trouble, and when."""

    symptom: Symptom
    count: int = 0
    times: list[datetime] = field(default_factory=list)
    first: datetime | None = None
    last: datetime | None = None
    places: set[str] = field(default_factory=set)

    def add(self, at: datetime | None, place: str) -> None:
        """One more of it; `at` is None for lines without a time before them."""
        self.count += 1
        self.places.add(place)
        if at is not None:
            self.times.append(at)
            self.first = at if self.first is None else min(self.first, at)
            self.last = at if self.last is None else max(self.last, at)

    @property
    def is_told(self) -> bool:
        """Whether there is enough of it, close enough together. Lines without a time count as close."""
        times, least, within = sorted(self.times), self.symptom.least, self.symptom.within
        if self.count < least or len(times) < least or within == timedelta.max:
            return self.count >= least
        return any(last - first <= within for first, last in zip(times, times[least - 1 :], strict=False))


@dataclass(frozen=True)
class Diagnosis:
    """What is known of a site's health."""

    site: str
    process: Literal["runs", "runs twice", "does not run", "died and is being started again", "gave up"]
    jobs: tuple[str, ...]
    """NVFlare's ids of the jobs that run now."""
    seen: tuple[Seen, ...]
    """The newest first."""


def diagnose(folder: Path, now: datetime | None = None, days: float = 7.0) -> Diagnosis:
    """Reads the last `days`. Raises KitError."""
    kit = Kit.open(folder)
    since = (now or datetime.now(UTC)) - timedelta(days=days)
    running = site_processes.of_kit(kit.folder)
    found = [*_from_logs(kit, since), *_from_refusals(kit, since)]
    found.sort(key=lambda one: one.last or since, reverse=True)
    return Diagnosis(kit.site, _process(kit, len(running.parents)), tuple(job for job, _ in running.jobs), tuple(found))


def _process(
    kit: Kit, parents: int
) -> Literal["runs", "runs twice", "does not run", "died and is being started again", "gave up"]:
    if parents:
        return "runs" if parents == 1 else "runs twice"
    if site_processes.is_alive(kit.folder / "daemon_pid.fl"):
        return "died and is being started again"
    gave_up = site_symptoms.BY_NAME["gave-up"].pattern
    lines = [line for _, line in _lines(kit.folder / "console.log")][-3:]
    return "gave up" if any(gave_up.search(line) for line in lines) else "does not run"


def _from_logs(kit: Kit, since: datetime) -> list[Seen]:
    found: dict[str, Seen] = {}
    told: set[int] = set()
    logs = list(_log_files(kit.folder))
    own = OwnConnections(kit.site, (line for log in logs for _, line in _lines(log)))
    for log in logs:
        place = log.relative_to(kit.folder).parts[0] if log.parent != kit.folder else ""
        for at, line in _lines(log):
            if (at is not None and at < since) or own.closes(line):
                continue
            if _STAMP.match(line):
                # log.txt, error_log.txt and the console have the same line.
                if hash(line) in told:
                    continue
                told.add(hash(line))
            for symptom in _symptoms_of(line):
                found.setdefault(symptom.name, Seen(symptom)).add(at, "a job" if place else "the site")
    return [seen for seen in found.values() if seen.is_told]


def _log_files(kit: Path) -> Iterator[Path]:
    for folder in (kit, *job_folders(kit)):
        for name in _LOGS:
            yield from sorted(folder.glob(f"{name}*"))


def _symptoms_of(line: str) -> Iterator[Symptom]:
    known = [symptom for symptom in site_symptoms.LOGS if symptom.pattern.search(line)]
    yield from known
    if not known and _ERROR.match(line):
        yield site_symptoms.OTHER_ERROR


def _lines(path: Path, most: int = 2000) -> Iterator[tuple[datetime | None, str]]:
    """Lines of a log's end, each with the time of the newest line up to it that has one. NVFlare logs local time."""
    try:
        with path.open("rb") as file:
            size = file.seek(0, 2)
            file.seek(max(0, size - MAX_BYTES))
            text = file.read().decode("utf-8", errors="replace")
    except OSError:
        return
    at: datetime | None = None
    for line in text.splitlines():
        if stamp := _STAMP.match(line):
            at = datetime.strptime(stamp[1], "%Y-%m-%d %H:%M:%S").astimezone(UTC)
        yield at, line[:most]


def _from_refusals(kit: Kit, since: datetime) -> list[Seen]:
    found: dict[str, Seen] = {}
    for folder in _state_folders(kit):
        for name in (f"{refusals.FILE}.old", refusals.FILE):
            for at, phase, reasons in _refusals(folder / name):
                if at < since:
                    continue
                for symptom in {_kind(phase, reason) for reason in reasons}:
                    found.setdefault(symptom.name, Seen(symptom)).add(at, "the site")
    return list(found.values())


def _state_folders(kit: Kit) -> Iterable[Path]:
    yield kit.local  # where the validator notes what it cannot note at the site
    try:
        yield Site.open(kit.folder).state
    except SiteError:
        return


def _refusals(path: Path) -> Iterator[tuple[datetime, str, list[str]]]:
    for _, line in _lines(path, most=MAX_BYTES):
        try:
            entry = json.loads(line)
            at = datetime.fromisoformat(entry["time"])
            yield at, str(entry.get("phase")), [str(reason) for reason in entry["reasons"]]
        except (ValueError, KeyError, TypeError):
            continue


def _kind(phase: str, reason: str) -> Symptom:
    other = site_symptoms.BY_NAME["refused-door"] if phase in ("door", "gate") else site_symptoms.OTHER_REFUSAL
    return next((one for one in site_symptoms.REFUSALS if one.pattern.search(reason)), other)
