"""FOLDER/audit/audit.jsonl: what was commanded, refused, trained and answered here, as a chain that shows each edit.

A record of our own, not NVFlare's audit.log: that one is spread over the parent process and each job's folder, which
goes with the job, knows no refusals, and is plain text that anybody with the file can change. Each line here names the
SHA-256 of the line before it and ends in a keyed hash. An anchor beside it, or better on another volume, says how far
the log had come: without it the newest lines could be cut off, and nobody would see.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import secrets
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ctslices.files import write_whole
from fedscan.privacy.ledger_seal import seal, subkey, unseal
from fedscan.privacy.own_files import OwnFileError, read_bounded, read_key

FOLDER, FILE, KEY, ANCHOR = "audit", "audit.jsonl", "audit.key", "audit.anchor"
FIRST_PREV = "0" * 64
MAX_TEXT = 300
MAX_BYTES = 1 << 30
"""Of a log that is read."""
_TAIL_BYTES = 1 << 16
What = Literal["start", "command", "register", "refused", "job", "round", "answer", "connection"]


class AuditError(ValueError):
    """The log cannot be read or written; the text says what to do."""


class Event(BaseModel):
    """One record."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    n: int = Field(ge=1, description="from 1, without gaps")
    time: str = Field(description="UTC, ISO 8601, by this machine's clock")
    what: What
    who: str = Field(default="", description="a person, a site, or empty: this machine itself")
    text: str = Field(max_length=MAX_TEXT)
    job: str = Field(default="", description="NVFlare's id of the job")
    torn: int = Field(default=0, ge=0, description="bytes of a line that a power failure cut off before this one")
    prev: str = Field(pattern=r"^[0-9a-f]{64}$", description="SHA-256 of the line before")


class _Anchor(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    count: int = Field(ge=1)
    head: str = Field(pattern=r"^[0-9a-f]{64}$")


@dataclass(frozen=True)
class Head:
    """How far a log has come: to be noted elsewhere."""

    count: int
    sha256: str

    def __str__(self) -> str:
        return f"{self.count}:{self.sha256}"

    @classmethod
    def parse(cls, text: str) -> Head:
        """From `COUNT:SHA256`. Raises AuditError."""
        count, _, sha256 = text.partition(":")
        if not count.isdecimal() or len(sha256) != len(FIRST_PREV):
            raise AuditError(f"a head is COUNT:SHA256, as `fedscan audit log` prints it, got {text[:80]!r}")
        return cls(int(count), sha256)


class AuditLog:
    """The log below one folder; several processes may append at once."""

    def __init__(self, folder: Path, anchor: Path | None = None) -> None:
        self._folder = folder / FOLDER
        self.path = self._folder / FILE
        self._anchor = anchor or self._folder / ANCHOR

    @property
    def anchor(self) -> Path:
        """Where the anchor lies: with a link followed, else a write would replace it by a file here."""
        return Path(os.path.realpath(self._anchor)) if self._anchor.is_symlink() else self._anchor

    @contextlib.contextmanager
    def held(self) -> Iterator[AuditLog]:
        """Nothing is added meanwhile. Raises OSError, and AuditError for a log that is not as its anchor says."""
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with self._locked() as file:
            last, _ = _tail(file)
            if last or self.anchor.exists():
                self._must_not_be_cut(self._key(), _number(last), last)
            yield self

    def append(self, what: What, text: str, who: str = "", job: str = "") -> Head:
        """Adds a record, durable when it returns. Raises OSError and AuditError."""
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with self._locked() as file:
            key = self._key()
            last, torn = _tail(file)
            count = _number(last)
            self._must_not_be_cut(key, count, last)
            event = Event(
                n=count + 1,
                time=datetime.now(UTC).isoformat(timespec="milliseconds"),
                what=what,
                who=_plain(who),
                text=_plain(text),
                job=_plain(job),
                torn=len(torn),
                prev=_link(_hash(last) if last else FIRST_PREV, torn),
            )
            line, _ = seal(subkey(key, "audit 1"), event.model_dump_json().encode())
            whole = (b"\n" if torn else b"") + line
            size = os.fstat(file).st_size
            if os.pwrite(file, whole, size) != len(whole):
                os.ftruncate(file, size)
                raise OSError("the audit log could not be written: is the disk full?")
            os.fsync(file)
            head = Head(event.n, _hash(line))
            body = _Anchor(count=head.count, head=head.sha256).model_dump_json().encode()
            write_whole(self.anchor, seal(subkey(key, "audit anchor 1"), body)[0], mode=0o600)
        return head

    def _must_not_be_cut(self, key: bytes, count: int, last: bytes) -> None:
        """A log that ends before its anchor is not continued: what shows that it was cut would go."""
        if count == 0 and not self.anchor.exists():
            return
        known = self._read_anchor(key)
        if isinstance(known, str):
            raise AuditError(f"the audit log is not continued: {known}. Bring the anchor back ({self.anchor})")
        if count not in (known.count, known.count + 1) or (count == known.count and _hash(last) != known.sha256):
            raise AuditError(
                f"the audit log is not continued: its anchor knows record {known.count}, and the log does not end "
                f"there. Keep {self._folder} for whoever looks into it; moved away, a new log begins"
            )

    def verify(self, noted: Head | None = None) -> Verified:
        """Reads the whole log. `noted`: a head that was written down elsewhere. Raises AuditError if it cannot be read.

        Without the key's file the chain alone is checked, which an editor could have made anew.
        """
        try:
            data = read_bounded(self.path, "the audit log", MAX_BYTES)
            key = self._key() if (self._folder / KEY).exists() else None
        except OwnFileError as error:
            raise AuditError(str(error)) from None
        found = _Chain(key)
        found.read(data)
        found.hold_against(self._read_anchor(key), "the anchor")
        found.hold_against(noted, "the head that was noted")
        return Verified(tuple(found.events), tuple(found.faults), found.head, keyed=key is not None)

    def _read_anchor(self, key: bytes | None) -> Head | str:
        """Or what is wrong with it."""
        try:
            opened = unseal(subkey(key or b"", "audit anchor 1"), read_bounded(self.anchor, "the audit log's anchor"))
            if key is None:
                return "the anchor cannot be checked without the key"
            if opened is None:
                return "the anchor was edited, or is another log's"
            anchor = _Anchor.model_validate_json(opened[0])
        except (OwnFileError, ValidationError) as error:
            return str(error) if isinstance(error, OwnFileError) else "the anchor is of another form"
        return Head(anchor.count, anchor.head)

    def anchor_at(self, place: Path) -> Head | str | None:
        """What an anchor of this log knows that lies there; None: nothing does; a text: it is none of this log's.
        Raises AuditError."""
        return AuditLog(self._folder.parent, place)._read_anchor(self._key()) if os.path.lexists(place) else None

    def _key(self) -> bytes:
        """Made with the first record. Raises AuditError."""
        path = self._folder / KEY
        if not path.exists() and not (self.path.exists() and self.path.stat().st_size):
            write_whole(path, secrets.token_hex(32).encode() + b"\n", mode=0o600)
        try:
            return read_key(path, "the audit log's key")
        except OwnFileError as error:
            raise AuditError(str(error)) from None

    @contextlib.contextmanager
    def _locked(self) -> Iterator[int]:
        file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield file
        finally:
            os.close(file)


@dataclass(frozen=True)
class Verified:
    """What a log says, and what is wrong with it."""

    events: tuple[Event, ...]
    faults: tuple[str, ...]
    head: Head
    keyed: bool

    @property
    def ok(self) -> bool:
        """Nothing is wrong."""
        return not self.faults


class _Chain:
    def __init__(self, key: bytes | None) -> None:
        self._key = subkey(key, "audit 1") if key is not None else None
        self.events: list[Event] = []
        self.faults: list[str] = []
        self._hashes = [FIRST_PREV]

    @property
    def head(self) -> Head:
        return Head(len(self.events), self._hashes[-1])

    def read(self, data: bytes) -> None:
        """Stops at the first fault: behind it nothing is known."""
        strange: list[bytes] = []
        *whole, rest = data.split(b"\n")
        for number, line in enumerate(whole, start=1):
            event = self._event(line + b"\n")
            if event is None:
                strange.append(line)  # the next record may vouch for it
                continue
            fault = self._misplaced(event, strange)
            if fault is not None:
                self.faults.append(f"line {number - len(strange)}: {fault}")
                return
            strange = []
            self.events.append(event)
            self._hashes.append(_hash(line + b"\n"))
        if strange:
            self.faults.append(f"line {len(whole) - len(strange) + 1}: it was changed, or another key sealed it")
        elif rest:
            self.faults.append(f"line {len(whole) + 1} is cut off: a power failure, or somebody's cut")

    def _event(self, line: bytes) -> Event | None:
        if self._key is not None:
            opened = unseal(self._key, line)
            body = opened[0] if opened is not None else b""
        else:
            body = line.partition(b',"mac":"')[0] + b"}"
        try:
            return Event.model_validate_json(body)
        except ValidationError:
            return None

    def _misplaced(self, event: Event, strange: list[bytes]) -> str | None:
        before = b"\n".join(strange)
        if event.torn != len(before) or bool(strange) != bool(before):
            return "it was changed, or lines before it are missing"
        if event.n != len(self.events) + 1:
            return f"record {event.n} stands where {len(self.events) + 1} should: lines are missing or repeated"
        if event.prev != _link(self._hashes[-1], before):
            return "the line before it was changed or taken out"
        return None

    def hold_against(self, noted: Head | str | None, what: str) -> None:
        """A log that ends before the head, or has another line there, was cut or made anew."""
        if noted is None:
            return
        if isinstance(noted, str):
            self.faults.append(f"{what} does not help: {noted}")
        elif noted.count > len(self.events):
            self.faults.append(f"{what} knows record {noted.count}, the log ends at {len(self.events)}: it was cut")
        elif self._hashes[noted.count] != noted.sha256:
            self.faults.append(f"{what} knows another record {noted.count}: the log was made anew or put back")


def _tail(file: int) -> tuple[bytes, bytes]:
    """The last whole record with its line break, and what a power failure left behind it. Raises AuditError."""
    size = os.fstat(file).st_size
    data = os.pread(file, min(size, _TAIL_BYTES), max(0, size - _TAIL_BYTES))
    end = len(data)
    while (stop := data.rfind(b"\n", 0, end)) >= 0:
        line = data[data.rfind(b"\n", 0, stop) + 1 : stop + 1]
        if _number(line):
            return line, data[stop + 1 :]
        end = stop
    if size > _TAIL_BYTES:
        raise AuditError(f"the audit log ends in {_TAIL_BYTES} bytes that are no record: keep it, and move it away")
    return b"", data


def _number(line: bytes) -> int:
    """Of the record in a line; 0: it is none."""
    try:
        return Event.model_validate_json(line.partition(b',"mac":"')[0] + b"}").n if line else 0
    except ValidationError:
        return 0


def _hash(line: bytes) -> str:
    return hashlib.sha256(line).hexdigest()


def _link(hash_before: str, torn: bytes) -> str:
    """What the next record names as `prev`: the hash of the record before, and of torn bytes between them."""
    return hashlib.sha256(hash_before.encode() + torn).hexdigest() if torn else hash_before


def _plain(text: str) -> str:
    """One line of printable characters."""
    return "".join(c if c.isprintable() else "?" for c in text)[:MAX_TEXT]
