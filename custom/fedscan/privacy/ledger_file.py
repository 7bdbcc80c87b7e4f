"""The bytes of a ledger: a chain of sealed lines, verified one by one, and the torn tail that a power cut leaves."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from pydantic import ValidationError

from fedscan.privacy.ledger_records import FIRST_PREV, RECORD, Created, LedgerError, Record, Restored, Torn, TornBytes
from fedscan.privacy.ledger_seal import seal, unseal

MAX_TAIL_BYTES = 1 << 16
"""Of what may lie torn at the end: one line, and the torn lines of repairs that were cut in turn."""
TORN_MARK = b"#torn\n"
"""Between torn bytes and the entry that vouches for them. A line break alone could make a whole line of them."""


@dataclass(frozen=True)
class Line:
    """A verified entry."""

    record: Record
    mac: str

    @property
    def number(self) -> int:
        """Of the entry, from 1."""
        return self.record.n


class Chain:
    """The verified lines, in order."""

    def __init__(self, key: bytes) -> None:
        self._key = key
        self._prev = FIRST_PREV
        self.lines: list[Line] = []
        self.size = 0
        """Bytes that are verified."""

    @property
    def next_number(self) -> int:
        """Of the entry that comes next."""
        return self.lines[-1].number + 1 if self.lines else 1

    @property
    def prev(self) -> str:
        """What the next entry must name as the hash of the line before it."""
        return self._prev

    def extend(self, data: bytes, anchored: int) -> bytes:
        """Takes the lines in `data`, which lie behind those that are verified; returns the torn tail, mostly none.

        Entries up to number `anchored` were on the disk for certain: a fault among them is an edit. Behind them at
        most one line was being written, so that a tail without a valid line is torn. Raises LedgerError.
        """
        at = 0
        while at < len(data):
            end = data.find(b"\n", at) + 1
            fault = self._take(data[at:end]) if end else "it is cut off"
            if fault is None:
                at = end
                continue
            repair_end = self._take_repair(data, at)
            if repair_end is None:
                self._refuse_unless_torn(data[at:], fault, anchored)
                break
            at = repair_end
        self.size += at
        return data[at:]

    def append(self, record: Record, torn: bytes = b"") -> bytes:
        """The bytes that add `record`, behind a torn tail that it vouches for. They count as verified from here on."""
        line, mac = seal(self._key, record.model_dump_json().encode())
        self._add(Line(record, mac), line)
        written = TORN_MARK + line if torn else line
        self.size += len(torn) + len(written)
        return written

    def _take(self, line: bytes) -> str | None:
        """Adds a line that is the next entry; else says what is wrong with it."""
        opened = unseal(self._key, line)
        if opened is None:
            return "its keyed hash does not hold: the line was edited, or the key is another"
        try:
            record = RECORD.validate_json(opened[0])
        except ValidationError:
            return "it is of a kind that this version does not know: use a newer Fedscan"
        if isinstance(record, Torn):
            return "the torn bytes that it vouches for are not before it"
        if (fault := self._misplaced(record)) is not None:
            return fault
        self._add(Line(record, opened[1]), line)
        return None

    def _misplaced(self, record: Record) -> str | None:
        number = self.next_number
        if isinstance(record, Restored):
            if record.lost_from != number or not number <= record.lost_to == record.n - 1:
                return "it stands for other lost entries than those that are missing"
        elif record.n != number:
            return f"the line there is entry {record.n}: lines are missing, repeated or in another order"
        if record.prev != self._prev:
            return "it follows another line than the one before it: the ledger was edited"
        if isinstance(record, Created) != (number == 1):
            return "a ledger begins with the entry that created it, and has no other"
        return None

    def _take_repair(self, data: bytes, at: int) -> int | None:
        """Adds the `torn` entry that vouches for the bytes from `at` up to it; returns where it ends."""
        start = data.find(b"\n", at) + 1
        while 0 < start < len(data) and start - at <= MAX_TAIL_BYTES:
            end = data.find(b"\n", start) + 1
            line = data[start:end]
            repair = self._repair(line)
            if repair is not None:
                if not _vouches(repair.record, data[at:start]):
                    return None
                self._add(repair, line)
                return end
            start = end
        return None

    def _repair(self, line: bytes) -> Line | None:
        opened = unseal(self._key, line)
        if opened is None:
            return None
        try:
            record = RECORD.validate_json(opened[0])
        except ValidationError:
            return None
        return Line(record, opened[1]) if isinstance(record, Torn) and self._misplaced(record) is None else None

    def _refuse_unless_torn(self, tail: bytes, fault: str, anchored: int) -> None:
        number = self.next_number
        if number <= anchored:
            raise LedgerError(f"{fault}. Bring back the ledger as it was", number)
        if len(tail) > MAX_TAIL_BYTES:
            raise LedgerError(f"{len(tail)} bytes from here on are no entries: {fault}", number)
        if any(unseal(self._key, part + b"\n") is not None for part in tail.split(b"\n")[:-1]):
            raise LedgerError(f"{fault}, and whole entries follow. Bring back the ledger as it was", number)

    def _add(self, line: Line, data: bytes) -> None:
        self.lines.append(line)
        self._prev = hashlib.sha256(data).hexdigest()


def torn_bytes(tail: bytes) -> TornBytes:
    """What a repair says about the bytes that it vouches for."""
    return TornBytes(bytes=len(tail), sha256=hashlib.sha256(tail).hexdigest())


def _vouches(record: Record, before: bytes) -> bool:
    tail = before.removesuffix(TORN_MARK)
    return isinstance(record, Torn) and b"" != tail != before and record.torn == torn_bytes(tail)
