"""What the judge is told, and what it says."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Literal, Protocol

from fedscan.privacy.event import Event

Phase = Literal["deploy", "round", "door"]


@dataclass(frozen=True)
class Verdict:
    """`reasons` are for people at the site; nobody else is told more than that policy refused."""

    reasons: tuple[str, ...]

    @property
    def ok(self) -> bool:
        """Whether nothing speaks against it."""
        return not self.reasons


@dataclass(frozen=True)
class Submitter:
    """Who signed the app folder, as its verified certificate says; never as meta or headers say."""

    name: str
    fingerprint: str
    """SHA-256 (hex) of the certificate."""
    issued: datetime | None = None
    """From when on the certificate holds."""


@dataclass(frozen=True)
class NonceUse:
    """What a site noted when it took a nonce."""

    plan_digest: str
    run_id: str
    start_round: int


@dataclass(frozen=True)
class LedgerFacts:
    """What the judge knows of a ledger."""

    spent: tuple[Event, ...]
    patients: frozenset[str] = frozenset()
    """Pseudonyms of everybody who was ever charged for."""
    removed: frozenset[str] = frozenset()
    """Pseudonyms with a removal record."""
    lacks_recorded_head: bool = False
    """Whether the server holds an entry of this site's ledger that the ledger does not contain."""
    epsilon_with: Callable[[float, Event], float] | None = None
    """The ledger's own cached answer to what an event would make of epsilon at a delta; None: computed anew."""


class TaskLike(Protocol):
    """A task as the server sends it."""

    @property
    def plan_digest(self) -> str: ...
    @property
    def run_id(self) -> str: ...
    @property
    def round_number(self) -> int: ...
    @property
    def model_digest(self) -> str: ...


@dataclass(frozen=True)
class TensorForm:
    """One tensor of an answer."""

    shape: tuple[int, ...]
    dtype: str
    """As torch names it, such as `torch.float32`."""
    finite: bool


@dataclass(frozen=True)
class Paid:
    """What a ledger entry paid for."""

    plan_digest: str
    run_id: str
    round_number: int
    model_digest: str
    answer_sha256: str | None
    """SHA-256 of the answer's bytes, noted when it was ready."""


@dataclass(frozen=True)
class AnswerFacts:
    """An answer at the door."""

    plan_digest: str
    run_id: str
    round_number: int
    model_digest: str
    sha256: str
    tensors: Mapping[str, TensorForm] = field(default_factory=dict)
    loss: float | None = None
    """Of a private answer."""
