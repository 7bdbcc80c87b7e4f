"""A place where a ledger can be put back, changed, and opened; and what a good one is."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from fedscan.privacy.event import Event
from fedscan.privacy.ledger import Charge, Ledger

KEY = bytes(range(32))
EVENT = Event(noise_multiplier=2.0, sample_rate=0.05, steps=20, unit="patient")
DEARER = Event(noise_multiplier=1.0, sample_rate=0.1, steps=50, unit="patient")
ROUND = EVENT.steps


def charge(round_number: int, event: Event = EVENT, run_id: str = "a" * 32) -> Charge:
    return Charge(
        run_id=run_id,
        plan_digest="1" * 64,
        round_number=round_number,
        model_digest="2" * 64,
        event=event,
        population=frozenset({"p1", "p2"}),
    )


@dataclass(frozen=True)
class Kept:
    """The bytes of a ledger, with its anchor now and before its last entry."""

    ledger: bytes
    anchor: bytes
    anchor_before: bytes
    first_anchor: bytes
    steps: int

    @property
    def lines(self) -> list[bytes]:
        return self.ledger.splitlines(keepends=True)


class Bench:
    """A place where a ledger can be put back, changed, and opened."""

    def __init__(self, folder: Path) -> None:
        self.path, self.anchor = folder / "ledger", folder / "anchor"

    def open(self) -> Ledger:
        return Ledger.open(self.path, KEY, self.anchor)

    def put(self, ledger: bytes, anchor: bytes) -> None:
        for path, data in ((self.path, ledger), (self.anchor, anchor)):
            path.write_bytes(data)
            path.chmod(0o600)

    def anchor_at(self, kept: Kept, count: int) -> bytes:
        """The anchor as it was at entry `count`."""
        self.put(b"".join(kept.lines[:count]), kept.first_anchor)
        self.open()
        return self.anchor.read_bytes()

    def spent(self, ledger: bytes, anchor: bytes) -> int:
        """Steps that the ledger, so changed, has spent. Raises LedgerError."""
        self.put(ledger, anchor)
        return steps(self.open())


def steps(ledger: Ledger) -> int:
    return sum(event.steps for event in ledger.events())


def keep(bench: Bench) -> Kept:
    """A ledger of four rounds, three of them answered, and one removal."""
    ledger = Ledger.create(bench.path, KEY, bench.anchor)
    first = bench.anchor.read_bytes()
    for number in range(3):
        entry = ledger.reserve(charge(number))
        ledger.note_answer(entry.number, f"{number}" * 64)
    ledger.record_removal({"p1", "p2"}, {"p1"})
    before = bench.anchor.read_bytes()
    ledger.reserve(charge(3))
    return Kept(bench.path.read_bytes(), bench.anchor.read_bytes(), before, first, steps(ledger))
