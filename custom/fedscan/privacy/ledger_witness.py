"""The last head of this site's ledger that a server sent back: a witness that lies with the server too."""

from __future__ import annotations

import re
from pathlib import Path

from pydantic import Field, ValidationError

from fedscan.plan_form import Part
from fedscan.privacy.ledger_records import Head, LedgerError, Sha256
from fedscan.privacy.own_files import OwnFileError, read_bounded

RECEIVED_HEAD = "received_head.json"


class _Received(Part):
    count: int = Field(ge=0)
    mac: Sha256


def received_head(state: Path) -> Head | None:
    """What STATE/received_head.json holds; None where no server sent any yet. Raises LedgerError."""
    path = state / RECEIVED_HEAD
    if not path.exists():
        return None
    try:
        found = _Received.model_validate_json(read_bounded(path, "the server's last head"))
    except (OwnFileError, ValidationError):
        raise LedgerError(f"the head that a server sent back cannot be read: {path}") from None
    return Head(found.count, found.mac)


def parse_head(text: str) -> Head:
    """COUNT:MAC, as `fedscan budget` prints it. Raises LedgerError."""
    found = re.fullmatch(r"([0-9]{1,12}):([0-9a-f]{64})", text)
    if found is None:
        raise LedgerError("a head is COUNT:MAC, a number and 64 hexadecimal digits")
    return Head(int(found[1]), found[2])
