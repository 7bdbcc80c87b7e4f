"""epsilon by ledger head, kept beside the ledger under a keyed hash: an edit costs a computation and gains nothing."""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Annotated

from pydantic import BeforeValidator, Field, ValidationError

from ctslices.files import write_whole
from fedscan.plan_form import Part, as_tuple
from fedscan.privacy.event import Event
from fedscan.privacy.ledger_records import Sha256
from fedscan.privacy.ledger_seal import seal, subkey, unseal
from fedscan.privacy.own_files import OwnFileError, read_bounded

_KEPT = 16


class _Known(Part):
    delta: float
    then: Event | None
    epsilon: str = Field(description="float.hex(): infinity too has a form")


class _File(Part):
    head: Sha256
    accountant: str
    known: Annotated[tuple[_Known, ...], BeforeValidator(as_tuple)]


@lru_cache(maxsize=1)
def _accountant() -> str:
    """The library's version and the SHA-256 of our own accounting: another one computes anew."""
    spec = importlib.util.find_spec("fedscan.privacy.accounting")
    assert spec is not None
    assert spec.origin is not None
    own = hashlib.sha256(Path(spec.origin).read_bytes()).hexdigest()
    return f"dp-accounting {importlib.metadata.version('dp-accounting')}, {own}"


class EpsilonCache:
    """Of one ledger. Good for one head and one version of the accountant."""

    def __init__(self, path: Path, key: bytes) -> None:
        self._path = path
        self._key = subkey(key, "epsilon 1")

    def epsilon(self, head: str, spent: Sequence[Event], delta: float, then: Event | None) -> float:
        """epsilon of `spent`, and `then` after it. Raises AccountingError."""
        accountant = _accountant()
        known = self._known(head, accountant)
        for item in known:
            if item.delta == delta and item.then == then:
                return float.fromhex(item.epsilon)
        from fedscan.privacy.accounting import epsilon

        value = epsilon([*spent, then] if then else list(spent), delta)
        kept = (*known, _Known(delta=delta, then=then, epsilon=value.hex()))[-_KEPT:]
        self._keep(_File(head=head, accountant=accountant, known=kept))
        return value

    def _known(self, head: str, accountant: str) -> tuple[_Known, ...]:
        try:
            opened = unseal(self._key, read_bounded(self._path, "cache"))
            file = _File.model_validate_json(opened[0]) if opened else None
        except (OwnFileError, ValidationError):
            return ()
        return file.known if file and (file.head, file.accountant) == (head, accountant) else ()

    def _keep(self, file: _File) -> None:
        try:
            write_whole(self._path, seal(self._key, file.model_dump_json().encode())[0], mode=0o600)
        except OSError:
            return  # a full disk or a read-only one: the next asker computes again
