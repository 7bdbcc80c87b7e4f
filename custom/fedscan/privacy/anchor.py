"""The ledger's anchor: counter, keyed hash of the head, and what was spent, in a file meant for another volume."""

from __future__ import annotations

import os
from pathlib import Path

from pydantic import Field, ValidationError

from ctslices.files import write_whole
from fedscan.plan_form import Part
from fedscan.privacy.ledger_records import Events, LedgerError, Random, Sha256
from fedscan.privacy.ledger_seal import seal, subkey, unseal
from fedscan.privacy.own_files import OwnFileError, read_bounded

_MAX_BYTES = 1 << 24


class Anchor(Part):
    """How far a ledger had come. A ledger that ends earlier was rolled back."""

    ledger: Random = Field(description="the ledger's identity")
    count: int = Field(ge=1)
    head: Sha256
    spent: Events = Field(description="all that was spent, merged: it stays known when the ledger's volume is lost")
    removals: int = Field(ge=0, description="how many removal records there are, so that lost ones are noticed")
    unprotected: int = Field(default=0, ge=0, description="how many runs without privacy it notes")
    moved: bool = Field(default=False, description="the ledger goes on elsewhere: no older copy may go on here")


class AnchorFile:
    """Where the anchor lies."""

    def __init__(self, path: Path, key: bytes) -> None:
        self.path = path.resolve()
        """With links followed: else the first write would replace a link to another volume by a file here."""
        self._key = subkey(key, "anchor 1")

    @property
    def exists(self) -> bool:
        """Whether anything lies there."""
        return os.path.lexists(self.path)

    def read(self) -> Anchor:
        """Raises LedgerError for a missing, foreign or edited one."""
        try:
            data = read_bounded(self.path, "the ledger's anchor", _MAX_BYTES)
        except OwnFileError as error:
            raise LedgerError(
                f"{error}. Without its anchor an older ledger would not be noticed: bring it back, or see "
                "`fedscan site renew-anchor --help`"
            ) from None
        opened = unseal(self._key, data)
        if opened is None:
            raise LedgerError(f"its anchor was edited, or belongs to another key: bring it back ({self.path})")
        try:
            return Anchor.model_validate_json(opened[0])
        except ValidationError:
            raise LedgerError(f"its anchor is of a form that this version does not know ({self.path})") from None

    def write(self, anchor: Anchor) -> None:
        """Durable when it returns. Raises OSError."""
        write_whole(self.path, seal(self._key, anchor.model_dump_json().encode())[0], mode=0o600)
