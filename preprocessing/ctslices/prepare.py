"""An export to a store, in several processes; killed at any moment, the next run finishes with the same bytes."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from ctslices import assemble
from ctslices.files import write_whole
from ctslices.identity import Owned, Owners
from ctslices.inventory import listing_digest
from ctslices.labels import Table, read_labels
from ctslices.options import Options
from ctslices.part import (
    NO_PIXELS,
    Work,
    WriteFailed,
    failed_part,
    make_part,
    options_text,
    part_name,
    read_part,
    write_part,
)
from ctslices.pool import WorkerPool, call, default_workers, ordered_map
from ctslices.pseudonym import KeyFileError, SiteKey, create_key, default_key_path, load_key
from ctslices.quarantine import quarantine_path, released_planes, write_quarantine
from ctslices.reject import Reason, Rejected
from ctslices.rejected import count_by_reason, rejected_path, write_rejected
from ctslices.report import PrepareReport, label_counts, split_counts, store_notes
from ctslices.shards import in_a_store
from ctslices.sources.dicom_file import Refusal
from ctslices.sources.scan import find
from ctslices.store import MANIFEST, SliceStore, StoreError, read_manifest
from ctslices.swap import new_beside, put_in_place, recover
from ctslices.version import VERSION

Progress = Callable[[str, int, int], None]
"""(phase, done, total): `reading headers`, `converting`, `writing`."""
SERIES_TIMEOUT_S = 1800.0


class PrepareError(ValueError):
    """The export cannot be prepared as asked: got, wanted, cure; no path and no identifier."""


@dataclass(frozen=True, slots=True)
class Site:
    """What the site says beside `Options`: its tables, its key, the split, how many processes."""

    labels: Path | None = None
    patient_from: str | None = None
    """`folder`, or the path of a map.csv (columns key,patient), for NIfTI and NRRD."""
    same_patient: Path | None = None
    exclude: Path | None = None
    key: Path | None = None
    """Default: STORE.key beside the store, made where it is missing."""
    holdout: float = 0.2
    split_seed: int = 0
    workers: int | None = None
    """Default: the processors at hand."""

    def tables(self) -> list[Path]:
        """The site's own files that decide what comes out."""
        mapping = Path(self.patient_from) if self.patient_from and self.patient_from != "folder" else None
        return [path for path in (self.labels, mapping, self.same_patient, self.exclude) if path is not None]


def prepare(
    export: Path, out: Path, options: Options, site: Site | None = None, progress: Progress | None = None
) -> PrepareReport:
    """Make the store `out` from all scans below `export`, or find that it is there already.

    Beside the store lie, for the site alone: OUT.key, OUT.rejected.jsonl, OUT.quarantine/ (where slices are
    suspected of burned-in text), OUT.state.json, and while it runs OUT.work/. PrepareError, TableError, KeyFileError
    say what is wrong; whatever store was there before is then still there.
    """
    export, out, site = Path(export).resolve(), Path(out).resolve(), site or Site()
    _check_places(export, out, site)
    with _disk_errors():
        out.parent.mkdir(parents=True, exist_ok=True)
        try:
            with FileLock(_beside(out, "lock"), timeout=0, mode=0o600):
                return _Run(export, out, options, site, progress or _silent).run()
        except Timeout:
            raise PrepareError("another prepare is writing this store: wait for it, or choose another --out") from None


def _silent(phase: str, done: int, total: int) -> None:
    """No progress wanted."""


def _beside(out: Path, suffix: str) -> Path:
    return out.with_name(f"{out.name}.{suffix}")


def _check_places(export: Path, out: Path, site: Site) -> None:
    if not export.is_dir():
        raise PrepareError("the export is not a folder that is there: name the folder of the scans")
    if out == export or export in out.resolve().parents or out in export.parents:
        raise PrepareError("the store and the export lie within each other: choose an --out beside the export")
    if in_a_store(out.parent):
        raise PrepareError("--out lies in another store, and would go when that one is made anew: choose another place")
    if out.exists() and not (out / MANIFEST).is_file() and not (out.is_dir() and not any(out.iterdir())):
        raise PrepareError(f"--out is there and is not a store (it has no {MANIFEST}): choose another place")
    if not 0 <= site.holdout < 1:
        raise PrepareError(f"--holdout must lie in 0 (included) to 1 (excluded): got {site.holdout}")
    if site.workers is not None and site.workers < 1:
        raise PrepareError(f"--workers must be at least 1: got {site.workers}")


@contextmanager
def _disk_errors() -> Iterator[None]:
    """OSErrors of the store's own files as one clear error without their paths."""
    try:
        yield
    except OSError as error:
        raise _disk_error(error.errno or 0) from None


def _disk_error(number: int) -> PrepareError:
    kept = "nothing was replaced; what is finished is kept, and the next run goes on from it"
    if number in (errno.ENOSPC, errno.EDQUOT):
        return PrepareError(f"no space left where the store is written: {kept} once there is space")
    return PrepareError(f"the store cannot be written ({os.strerror(number)}): {kept} once that is mended")


class _Run:
    """One run's places and state, under the store's lock."""

    def __init__(self, export: Path, out: Path, options: Options, site: Site, progress: Progress) -> None:
        self.export, self.out, self.site, self.progress = export, out, site, progress
        self.work, self.new, self.state = _beside(out, "work"), new_beside(out), _beside(out, "state.json")
        recover(out)
        self.key = self._key()
        self.released = released_planes(quarantine_path(out))
        self.options = replace(
            options,
            released=self.released,
            not_scans=frozenset(str(path.resolve()) for path in site.tables()),
        )
        self.owners = Owners(site.patient_from, site.same_patient, site.exclude)
        self.labels: Table | None = read_labels(site.labels) if site.labels else None

    def run(self) -> PrepareReport:
        inputs = self._inputs()
        if (report := self._unchanged(inputs)) is not None:
            # A kill between the store's last word and the end leaves the slices' parts there.
            shutil.rmtree(self.work, ignore_errors=True)
            return report
        self.work.mkdir(mode=0o700, exist_ok=True)
        os.chmod(self.work, 0o700)
        with WorkerPool[Any, Any](call, self.site.workers or default_workers(), SERIES_TIMEOUT_S) as pool:
            owned, rejected = self._scan(pool)
            named = [(owner, part_name(owner.series, self.options, self.key)) for owner in owned]
            self._convert(pool, named)
        return self._write(named, rejected, inputs)

    def _key(self) -> SiteKey:
        path = self.site.key or default_key_path(self.out)
        known = read_manifest(self.out).key_fingerprint if (self.out / MANIFEST).is_file() else None
        if self.out.resolve() in path.resolve().parents:
            raise KeyFileError("the key must not lie in the store: name a file elsewhere with --key")
        key = load_key(path) if known is not None or path.exists() else create_key(path)
        if known is not None and known != key.fingerprint:
            raise KeyFileError(
                "the store that is there was made with another key: give its key file with --key, "
                "or choose another --out"
            )
        return key

    def _inputs(self) -> str:
        """The seal over all that decides the store: the export's listing, the site's tables, options, version."""
        tables = [hashlib.sha256(path.read_bytes()).hexdigest() for path in self.site.tables()]
        said = [self.site.patient_from == "folder", self.site.holdout, self.site.split_seed]
        names = [field for field in ("labels", "same_patient", "exclude") if getattr(self.site, field)]
        listing = listing_digest(self.export)
        return self.key.seal(json.dumps([VERSION, listing, tables, said, names, options_text(self.options)]))

    def _unchanged(self, inputs: str) -> PrepareReport | None:
        try:
            state = json.loads(self.state.read_bytes())
            same = state["inputs"] == inputs and state["manifest"] == _digest(self.out / MANIFEST)
            store = SliceStore.open(self.out) if same else None
        except (FileNotFoundError, ValueError, KeyError, TypeError, StoreError):
            return None
        if store is None:
            return None
        unmatched = {str(k): [int(n) for n in v] for k, v in state.get("unmatched", {}).items()}
        return self._report(store, int(state.get("quarantined", 0)), unmatched, unchanged=True)

    def _scan(self, pool: WorkerPool[Any, Any]) -> tuple[list[Owned], list[Rejected]]:
        self.progress("reading headers", 0, 0)

        def mapper(function: Callable[[Path], Any], files: Any) -> Iterator[Any]:
            files = list(files)
            for done, result in enumerate(ordered_map(pool, function, files, _unread), start=1):
                self.progress("reading headers", done, len(files))
                yield result

        series, rejected = find(self.export, self.options, mapper)
        owned, refused = self.owners.assign(series, self.key)
        return owned, rejected + refused

    def _convert(self, pool: WorkerPool[Any, Any], named: list[tuple[Owned, str]]) -> None:
        tasks = [
            Work(owner.series, owner.series_id, self.options, self.work, name)
            for owner, name in named
            if read_part(self.work, name) is None
        ]
        tasks.sort(key=lambda work: -len(work.series.planes))
        done = len(named) - len(tasks)
        self.progress("converting", done, len(named))
        while tasks:
            again = []
            for outcome in pool.run([(make_part, work) for work in tasks]):
                work: Work = outcome.task[1]
                if isinstance(outcome.result, WriteFailed):
                    raise _disk_error(outcome.result.errno)
                if outcome.state in ("crashed", "timeout") and not work.isolate:
                    again.append(replace(work, isolate=True))
                    continue
                if outcome.state != "done":
                    write_part(work, failed_part(work, *_reason(outcome.state, outcome.error)), NO_PIXELS)
                done += 1
                self.progress("converting", done, len(named))
            tasks = again

    def _write(self, named: list[tuple[Owned, str]], rejected: list[Rejected], inputs: str) -> PrepareReport:
        self.progress("writing", 0, 1)
        shutil.rmtree(self.new, ignore_errors=True)
        self.new.mkdir(mode=0o700)
        found = assemble.gather(self.work, named, self.labels)
        rejected = rejected + found.rejected
        manifest = assemble.write(
            self.new,
            self.work,
            found,
            self.options.size,
            self.site.holdout,
            self.site.split_seed,
            ctslices_version=VERSION,
            field_mm=None if found.values == {"grey"} else float(self.options.field_mm),
            every_mm=None if self.options.every_mm is None else float(self.options.every_mm),
            region=self.options.region,
            key_fingerprint=self.key.fingerprint,
            rejected=count_by_reason(rejected),
            options={name: getattr(self.options, name) for name in ("kernel", "min_slices", "allow_burned_in")},
        )
        write_rejected(rejected_path(self.out), rejected)
        write_quarantine(quarantine_path(self.out), self.work, found.suspects, self.released)
        put_in_place(self.new, self.out)
        unmatched = self._unmatched()
        state = {"manifest": _digest(self.out / MANIFEST), "quarantined": len(found.suspects), "unmatched": unmatched}
        write_whole(self.state, json.dumps({"inputs": inputs} | state).encode(), mode=0o600)
        shutil.rmtree(self.work)
        self.progress("writing", 1, 1)
        assert manifest.slices == found.slices
        return self._report(SliceStore.open(self.out), len(found.suspects), unmatched)

    def _unmatched(self) -> dict[str, list[int]]:
        labels = {"--labels": self.labels.unmatched_rows()} if self.labels is not None else {}
        return {option: rows for option, rows in (labels | self.owners.unmatched()).items() if rows}

    def _report(
        self, store: SliceStore, quarantined: int, unmatched: dict[str, list[int]], unchanged: bool = False
    ) -> PrepareReport:
        manifest = store.manifest
        return PrepareReport(
            slices=manifest.slices,
            patients=len(manifest.patients),
            series=len(manifest.series),
            unit=manifest.unit,
            by_split=split_counts(manifest),
            labels=label_counts(manifest.labels, store.label),
            rejected=manifest.rejected,
            dropped_by_region=manifest.dropped_by_region,
            quarantined=quarantined,
            unmatched=unmatched,
            notes=store_notes(manifest),
            unchanged=unchanged,
        )


def _unread(what: str) -> Refusal:
    return Refusal(Reason.UNREADABLE, f"reading the header failed: {what}")


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _reason(state: str, error: str) -> tuple[Reason, str]:
    if state == "crashed":
        return Reason.DECODER_CRASHED, "the process that converted the series died, also with its decoder apart"
    if state == "timeout":
        return Reason.DECODER_TIMEOUT, f"not converted within {SERIES_TIMEOUT_S:.0f} s"
    return Reason.UNDECODABLE, f"conversion failed: {error}"
