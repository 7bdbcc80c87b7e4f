"""A site's ledger: what was ever spent on its patients, over all jobs, in one file that only grows: `Ledger`."""

from __future__ import annotations

import secrets
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

from fedscan.privacy.event import Event
from fedscan.privacy.ledger_cache import EpsilonCache
from fedscan.privacy.ledger_disk import LedgerDisk, beside
from fedscan.privacy.ledger_file import Line
from fedscan.privacy.ledger_records import (
    Announced,
    Answered,
    Charge,
    Charged,
    Entry,
    Head,
    JobOpened,
    LedgerError,
    PaidFor,
    Removed,
    Reserved,
    Unprotected,
)
from fedscan.privacy.populations import Populations

__all__ = ["Charge", "Charged", "Entry", "Head", "Ledger", "LedgerError", "PaidFor"]


class Ledger:
    """An opened, verified ledger. One instance belongs to one thread; several processes may open one ledger."""

    def __init__(self, disk: LedgerDisk, cache: EpsilonCache) -> None:
        """For `create` and `open`."""
        self.disk = disk
        self._cache = cache

    @classmethod
    def create(cls, path: Path, key: bytes, anchor: Path) -> Ledger:
        """A new ledger in `path`, and its anchor. Raises LedgerError where an earlier one left anything, OSError."""
        LedgerDisk(path, key, anchor).create(secrets.token_hex(16))
        return cls.open(path, key, anchor)

    @classmethod
    def open(cls, path: Path, key: bytes, anchor: Path) -> Ledger:
        """Verifies every line, charges a line that a power cut tore, and brings the anchor up.

        `key` has 32 bytes or more. Raises LedgerError, with the number of the entry where the ledger was edited,
        truncated or rolled back; OSError.
        """
        ledger = cls(LedgerDisk(path, key, anchor), EpsilonCache(beside(path, "epsilon"), key))
        with ledger.lock():
            return ledger

    @contextmanager
    def lock(self) -> Iterator[Ledger]:
        """Keeps other processes out, with all that they wrote read. May be nested. Raises LedgerError, OSError."""
        with self.disk.locked():
            yield self

    @property
    def head(self) -> Head:
        """The newest entry."""
        return self.disk.head

    @property
    def lines(self) -> tuple[Line, ...]:
        """All entries."""
        return tuple(self.disk.chain.lines)

    def contains(self, head: Head) -> bool:
        """Whether this ledger had this head at some time: False for that of a fork, or of a newer ledger."""
        return self.disk.state.contains(head)

    def events(self) -> list[Event]:
        """All that was spent, in order."""
        return list(self.disk.state.events)

    @property
    def populations(self) -> Populations:
        """Pseudonyms by fingerprint, of all who were ever charged for or removed. Reading raises LedgerError."""
        return self.disk.state.populations

    @property
    def removed(self) -> frozenset[str]:
        """Pseudonyms with a removal record. Raises LedgerError."""
        return self.disk.state.removed

    @property
    def unprotected_runs(self) -> int:
        """How many runs without privacy were trained here: no epsilon bounds what their models tell."""
        return self.disk.state.unprotected_runs

    def epsilon(self, delta: float, then: Event | None = None) -> float:
        """What all events come to at `delta`, with `then` after them where it is given. Raises AccountingError."""
        return self._cache.epsilon(self.head.mac, self.disk.state.spent, delta, then)

    def open_job(self, run_id: str, plan_digest: str, event: Event) -> None:
        """Notes that from here on this job is the one that is running: a torn line is charged as one `event` of it.

        Raises LedgerError, OSError; ValueError for ids of another form.
        """
        job = Announced(run_id=run_id, plan_digest=plan_digest, event=event)
        with self.lock():
            self._refuse(event)
            if self.disk.state.running != job:
                self.disk.append(JobOpened(**self.disk.stamp(), job=job))

    def reserve(self, charge: Charge) -> Entry:
        """Pays for a whole round: on the disk and anchored when it returns. The same round again is paid for again.

        Raises LedgerError, OSError: nothing may be trained then, though it may have been charged.
        """
        with self.lock():
            self.open_job(charge.run_id, charge.plan_digest, charge.event)
            charged = Charged(
                run_id=charge.run_id,
                plan_digest=charge.plan_digest,
                event=charge.event,
                round_number=charge.round_number,
                model_digest=charge.model_digest,
                population=self.populations.keep(charge.population),
            )
            return self.disk.append(Reserved(**self.disk.stamp(), charge=charged))

    def note_unprotected(self, run_id: str, plan_digest: str) -> None:
        """Notes, once for a run, that a plan without privacy is trained. Raises LedgerError, OSError."""
        with self.lock():
            self.refuse_moved()
            if (run_id, plan_digest) not in self.disk.state.unprotected:
                self.disk.append(Unprotected(**self.disk.stamp(), run_id=run_id, plan_digest=plan_digest))

    def refuse_moved(self) -> None:
        """Raises LedgerError for a copy that went to another machine."""
        if self.disk.state.moved:
            raise LedgerError("it moved to another machine: this copy pays for nothing any more", self.head.count)

    def _refuse(self, event: Event) -> None:
        self.refuse_moved()
        state = self.disk.state
        if state.events and state.events[0].unit != event.unit:
            raise LedgerError(
                f"its unit is the {state.events[0].unit}, this round's is the {event.unit}: their epsilons do not add "
                "up to a bound for either. Such stores need a site and a ledger of their own"
            )

    def note_answer(self, entry_number: int, sha256: str) -> None:
        """Notes the one answer that a reserve paid for. Raises LedgerError for another answer, or no such entry."""
        with self.lock():
            paid = self.paid_for(entry_number)
            if paid is None:
                raise LedgerError("it paid for no round", entry_number)
            if paid.answer_sha256 == sha256:
                return
            if paid.answer_sha256 is not None:
                raise LedgerError("another answer of it was noted: one round pays for one answer", entry_number)
            self.refuse_moved()
            self.disk.append(Answered(**self.disk.stamp(), entry=entry_number, sha256=sha256))

    def paid_for(self, entry_number: int) -> PaidFor | None:
        """The charge of entry `entry_number` and its answer; None where it paid for no round."""
        return self.disk.state.paid.get(entry_number)

    def record_removal(self, before: Collection[str], after: Collection[str]) -> Entry:
        """The signed record that patients were taken out of the store, by pseudonym. Their spend stays.

        Raises LedgerError where somebody came in by it, OSError.
        """
        if not set(after) <= set(before):
            raise LedgerError("a removal record cannot bring patients in: take out some of those who are there")
        with self.lock():
            if self.disk.state.moved:
                raise LedgerError("it moved to another machine: remove them there", self.head.count)
            old, new = self.populations.keep(before), self.populations.keep(after)
            return self.disk.append(Removed(**self.disk.stamp(), old=old, new=new))
