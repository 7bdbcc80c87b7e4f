"""Patients taken out of a store for good: the store is written anew without them and put in place in one step."""

from __future__ import annotations

import errno
import os
import re
import shutil
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from filelock import FileLock, Timeout

from ctslices.files import sync_folder
from ctslices.labels import SamePatient, Table, read_ids, read_same_patient
from ctslices.manifest import Manifest
from ctslices.montage import montage_path
from ctslices.pseudonym import SiteKey
from ctslices.quarantine import quarantine_path
from ctslices.store import SliceStore, read_manifest
from ctslices.subset import write_subset
from ctslices.swap import new_beside, put_in_place, recover

NOTE = "patients were removed from this store"
_PSEUDONYM = re.compile(r"^[0-9a-f]{32}$")


class ForgetError(ValueError):
    """Patients cannot be taken out as asked: got, wanted, cure; no identifier."""


@dataclass(frozen=True, slots=True)
class Named:
    """Whom ids.txt names."""

    pseudonyms: frozenset[str]
    """Of those who are known: in the store, or removed before."""
    unknown_rows: tuple[int, ...]
    """Rows that name nobody who is known."""


@dataclass(frozen=True, slots=True)
class Forgotten:
    """What was taken out."""

    patients: int
    slices: int
    patients_left: int
    slices_left: int


def named(
    manifest: Manifest,
    ids: Path,
    key: SiteKey | None,
    same_patient: Path | None = None,
    removed: Collection[str] = (),
) -> Named:
    """Finds who is meant by ids.txt: PatientIDs as in the export, or pseudonyms, one a line.

    `key` makes pseudonyms of PatientIDs (None: rows must be pseudonyms); `same_patient` is the map.csv that the store
    was prepared with; `removed` are pseudonyms that may have been taken out before. Raises TableError, ForgetError.
    """
    if key is not None and key.fingerprint != manifest.key_fingerprint:
        raise ForgetError("the key is not the one that the store was made with: name the right key file")
    table = read_ids(ids, "--patients")
    if not table.rows:
        raise ForgetError("--patients: the file names nobody")
    same = read_same_patient(same_patient)
    known = {patient.id for patient in manifest.patients} | set(removed)
    found = {row: _pseudonyms_of(row, key, same) & known for row in table.rows}
    return Named(
        pseudonyms=frozenset().union(*found.values()),
        unknown_rows=_rows(table, (row for row in found if not found[row])),
    )


def _pseudonyms_of(row: str, key: SiteKey | None, same: SamePatient) -> set[str]:
    """A row may be a pseudonym, a PatientID, or one of joined identities."""
    found = {row} if _PSEUDONYM.fullmatch(row) else set()
    if key is not None:
        found |= {key.pseudonym("patient", same.identity(row)), key.pseudonym("patient", row)}
    return found


def _rows(table: Table, keys: Iterable[str]) -> tuple[int, ...]:
    return tuple(sorted(table.rows[key][0] for key in keys))


def forget(store: Path, pseudonyms: Collection[str]) -> Forgotten:
    """Writes the store at `store` anew without these patients, and removes what lies beside it and may show them:
    the montage, the quarantine's pictures, unfinished work. Killed at any moment, the store is the old one or the new
    one, whole; the same call again ends it.

    Raises ForgetError, StoreError.
    """
    store = store.resolve()
    try:
        with FileLock(_beside(store, "lock"), timeout=0, mode=0o600):
            recover(store)
            return _rewrite(store, frozenset(pseudonyms))
    except Timeout:
        raise ForgetError("a prepare is writing this store: wait for it") from None
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise ForgetError("no space left for the store's new copy: nothing was changed") from None
        raise ForgetError(f"the store cannot be written ({os.strerror(error.errno or 0)}): run it again") from None


def _rewrite(store: Path, pseudonyms: frozenset[str]) -> Forgotten:
    new = new_beside(store)
    shutil.rmtree(new, ignore_errors=True)  # of a run that was killed; it may hold the old slices
    manifest = read_manifest(store)
    left = manifest
    if pseudonyms & {patient.id for patient in manifest.patients}:
        opened = SliceStore.open(store)
        staying = np.flatnonzero([patient.id not in pseudonyms for patient in opened.manifest.patients])
        new.mkdir(mode=0o700)
        try:
            left = write_subset(opened, staying, new, notes=tuple(dict.fromkeys((*manifest.notes, NOTE))))
        except BaseException:
            shutil.rmtree(new, ignore_errors=True)
            raise
        del opened
        put_in_place(new, store)
    _drop_beside(store)
    return Forgotten(
        patients=len(manifest.patients) - len(left.patients),
        slices=manifest.slices - left.slices,
        patients_left=len(left.patients),
        slices_left=left.slices,
    )


def _drop_beside(store: Path) -> None:
    """What was made of slices is not known by patient, so all of it goes; the quarantine's decisions stay."""
    montage_path(store).unlink(missing_ok=True)
    _beside(store, "state.json").unlink(missing_ok=True)
    shutil.rmtree(_beside(store, "work"), ignore_errors=True)
    for picture in quarantine_path(store).glob("*.png"):
        picture.unlink(missing_ok=True)
    sync_folder(store.parent)


def _beside(store: Path, suffix: str) -> Path:
    return store.with_name(f"{store.name}.{suffix}")
