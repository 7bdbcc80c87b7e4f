"""What a ledger's entries come to, taken one by one: spend, running job, paid rounds, patients."""

from __future__ import annotations

from fedscan.privacy.event import Event
from fedscan.privacy.ledger_file import Line
from fedscan.privacy.ledger_records import (
    Announced,
    Answered,
    Created,
    Head,
    JobOpened,
    LedgerError,
    MovedIn,
    MovedOut,
    PaidFor,
    Removed,
    Reserved,
    Restored,
    Unprotected,
    events_of,
    merged,
)
from fedscan.privacy.populations import Populations


class LedgerState:
    """The sum of the entries taken so far."""

    def __init__(self, populations: Populations) -> None:
        self.populations = populations
        self.identity = ""
        self.events: list[Event] = []
        self.running: Announced | None = None
        """The job that a torn line is charged to."""
        self.paid: dict[int, PaidFor] = {}
        self.moved = False
        self.unprotected: set[tuple[str, str]] = set()
        """Run id and plan digest of what was trained without privacy."""
        self._macs: dict[int, str] = {}
        self._lost: list[range] = []
        self._removals: list[Removed] = []
        self._lost_removals = 0
        self._lost_unprotected = 0
        self._spent: tuple[int, tuple[Event, ...]] = (0, ())

    def take(self, line: Line) -> None:
        """The next entry."""
        record = line.record
        self._macs[line.number] = line.mac
        self.events += events_of(record)
        if isinstance(record, Created):
            self.identity = record.ledger
        elif isinstance(record, JobOpened):
            self.running = record.job
        elif isinstance(record, Reserved):
            self.paid[record.n] = PaidFor(record.charge, None)
            self.populations.name(record.charge.population, record.n)
        elif isinstance(record, Answered):
            self._answered(record)
        elif isinstance(record, Unprotected):
            self.unprotected.add((record.run_id, record.plan_digest))
        elif isinstance(record, Removed):
            self._removals.append(record)
            self.populations.name(record.old, record.n)
            self.populations.name(record.new, record.n)
        elif isinstance(record, Restored):
            self._lost.append(range(record.lost_from, record.lost_to))
            self._macs[record.lost_to] = record.lost_head
            self._lost_removals += record.lost_removals
            self._lost_unprotected += record.lost_unprotected
        elif isinstance(record, MovedOut | MovedIn):
            self.moved = isinstance(record, MovedOut)

    def _answered(self, record: Answered) -> None:
        paid = self.paid.get(record.entry)
        if paid is None or paid.answer_sha256 is not None:
            raise LedgerError(f"it names an answer to entry {record.entry}, which has one or paid for none", record.n)
        self.paid[record.entry] = PaidFor(paid.charge, record.sha256)

    @property
    def spent(self) -> tuple[Event, ...]:
        """All events, merged."""
        done, spent = self._spent
        if done < len(self.events):
            spent = merged((*spent, *self.events[done:]))
            self._spent = (len(self.events), spent)
        return spent

    @property
    def removal_records(self) -> int:
        """How many there are, lost ones included."""
        return len(self._removals) + self._lost_removals

    @property
    def unprotected_runs(self) -> int:
        """How many there are, lost ones included."""
        return len(self.unprotected) + self._lost_unprotected

    @property
    def removed(self) -> frozenset[str]:
        """Who was taken out of the store, by pseudonym."""
        gone = (self.populations[record.old] - self.populations[record.new] for record in self._removals)
        return frozenset().union(*gone)

    def contains(self, head: Head) -> bool:
        """Heads between the entries that a restoration stands for are not known, but what they spent is."""
        if any(head.count in lost for lost in self._lost):
            return True
        return self._macs.get(head.count) == head.mac
