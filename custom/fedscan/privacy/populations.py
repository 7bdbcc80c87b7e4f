"""Whom a round concerns: pseudonyms by keyed fingerprint, in files beside the ledger that never leave the site."""

from __future__ import annotations

import hashlib
import hmac
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from ctslices.files import sync_folder, write_whole
from fedscan.privacy.ledger_records import LedgerError
from fedscan.privacy.ledger_seal import subkey
from fedscan.privacy.own_files import OwnFileError, read_bounded

_MAX_BYTES = 1 << 28


class Populations(Mapping[str, frozenset[str]]):
    """FOLDER/FINGERPRINT.json, mode 0600: a sorted list. The fingerprint is keyed over it, so that an edit shows."""

    def __init__(self, folder: Path, key: bytes) -> None:
        self.folder = folder
        self._key = subkey(key, "population 1")
        self._read: dict[str, frozenset[str]] = {}
        self._named: dict[str, int] = {}

    def name(self, fingerprint: str, entry: int) -> None:
        """Entry number `entry` speaks of this population: from now on it must be there."""
        self._named.setdefault(fingerprint, entry)

    def keep(self, pseudonyms: Iterable[str]) -> str:
        """Writes them, durably, where they are not there yet; returns their fingerprint. Raises OSError."""
        data = _form(pseudonyms)
        fingerprint = self._fingerprint(data)
        if fingerprint not in self._read:
            if not os.path.lexists(self.folder):
                self.folder.mkdir(mode=0o700)
                sync_folder(self.folder.parent)
            path = self._path(fingerprint)
            if not path.is_file() or path.read_bytes() != data:
                write_whole(path, data, mode=0o600)
            self._read[fingerprint] = frozenset(json.loads(data))
        return fingerprint

    def __getitem__(self, fingerprint: str) -> frozenset[str]:
        """Pseudonyms behind a fingerprint. Raises KeyError for one that no entry names, LedgerError for a lost file."""
        entry = self._named[fingerprint]
        if fingerprint not in self._read:
            try:
                data = read_bounded(self._path(fingerprint), "the population of an entry", _MAX_BYTES)
            except OwnFileError as error:
                raise LedgerError(f"whom it concerns is not known: {error}", entry) from None
            if self._fingerprint(data) != fingerprint:
                raise LedgerError(f"whom it concerns was edited: bring back {self._path(fingerprint)}", entry)
            self._read[fingerprint] = frozenset(json.loads(data))
        return self._read[fingerprint]

    def __iter__(self) -> Iterator[str]:
        return iter(self._named)

    def __len__(self) -> int:
        return len(self._named)

    def _fingerprint(self, data: bytes) -> str:
        return hmac.new(self._key, data, hashlib.sha256).hexdigest()

    def _path(self, fingerprint: str) -> Path:
        return self.folder / f"{fingerprint}.json"


def _form(pseudonyms: Iterable[str]) -> bytes:
    return json.dumps(sorted(set(pseudonyms)), separators=(",", ":")).encode()
