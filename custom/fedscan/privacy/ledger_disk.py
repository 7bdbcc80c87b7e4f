"""A ledger on the disk: locked, verified, appended to, and anchored. What its entries mean is `Ledger`'s."""

from __future__ import annotations

import os
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TypedDict

from filelock import FileLock, Timeout

from ctslices.files import write_whole
from fedscan.privacy.anchor import Anchor, AnchorFile
from fedscan.privacy.ledger_file import Chain, torn_bytes
from fedscan.privacy.ledger_records import Created, Entry, Head, LedgerError, Record, Torn
from fedscan.privacy.ledger_seal import subkey
from fedscan.privacy.ledger_state import LedgerState
from fedscan.privacy.populations import Populations

LOCK_TIMEOUT_S = 60.0
KEY_BYTES = 32
_MAX_BYTES = 1 << 31


class Stamp(TypedDict):
    """What every record begins with."""

    n: int
    prev: str
    time: str
    salt: str


class LedgerDisk:
    """Files of one ledger. `chain` and `state` are as of the last time that the lock was taken."""

    def __init__(self, path: Path, key: bytes, anchor: Path) -> None:
        if len(key) < KEY_BYTES:
            raise ValueError(f"a ledger's key has at least {KEY_BYTES} bytes, got {len(key)}")
        self.path = path
        self.anchor = AnchorFile(anchor, key)
        self.populations_folder = beside(path, "populations")
        self._key = key
        self._lock = FileLock(beside(path, "lock"), timeout=LOCK_TIMEOUT_S, mode=0o600, thread_local=False)
        self._held = 0
        self._file = -1
        self._inode: tuple[int, int] | None = None
        self._forget()

    def _forget(self) -> None:
        self.chain = Chain(subkey(self._key, "ledger 1"))
        self.state = LedgerState(Populations(self.populations_folder, self._key))
        self._inode = None

    def create(self, identity: str) -> None:
        """The first entry. Raises LedgerError where an earlier ledger left anything, OSError."""
        with self._exclusively():
            self._refuse_earlier()
            line = self.chain.append(Created(**self.stamp(), ledger=identity))
            self.state.take(self.chain.lines[-1])
            self.write_anchor()
            write_whole(self.path, line, mode=0o600)
        self._forget()

    def _refuse_earlier(self) -> None:
        left = {"a ledger": self.path, "the patients": self.populations_folder}
        if self.anchor.exists and self.anchor.read().count > 1:  # 1: creation was cut before anything was spent
            left["the anchor"] = self.anchor.path
        for what, place in left.items():
            if os.path.lexists(place):
                raise LedgerError(f"{what} of an earlier one lies at {place}: what was spent stays spent")

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keeps other processes out, with all that they wrote verified. May be nested. Raises LedgerError, OSError."""
        if self._held:
            self._held += 1
            try:
                yield
            finally:
                self._held -= 1
            return
        with self._opened():
            self._refresh()
            yield

    @contextmanager
    def unanchored(self) -> Iterator[bytes]:
        """The lock for recovery alone: the chain is verified in itself, and not held against the anchor. Gives the
        torn tail, which the first `append` must vouch for. Raises LedgerError, OSError."""
        with self._opened():
            self._forget()
            tail = self._extend(anchored=0)
            if not self.chain.lines:
                raise LedgerError("it is missing: the ledger is empty", 1)
            yield tail

    @contextmanager
    def _opened(self) -> Iterator[None]:
        with self._exclusively():
            self._file = self._open()
            self._held = 1
            try:
                yield
            finally:
                self._held = 0
                os.close(self._file)
                self._file = -1

    @contextmanager
    def _exclusively(self) -> Iterator[None]:
        try:
            self._lock.acquire()
        except Timeout:
            raise LedgerError(f"another process holds it for more than {LOCK_TIMEOUT_S:g} s: try again") from None
        try:
            yield
        finally:
            self._lock.release()

    def _open(self) -> int:
        try:
            file = os.open(self.path, os.O_RDWR | os.O_APPEND | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError as error:
            raise LedgerError(
                f"it cannot be opened: {error.strerror} ({self.path}): bring it back from a package with `fedscan site "
                "restore` (docs/site.md), or make a site's first one with `fedscan site init`"
            ) from None
        about = os.fstat(file)
        if stat.S_ISREG(about.st_mode) and not about.st_mode & 0o077 and about.st_uid == os.geteuid():
            return file
        os.close(file)
        raise LedgerError(
            f"it must be a plain file of this user with mode 0600, got {stat.S_IMODE(about.st_mode):04o}: {self.path}"
        )

    def _refresh(self) -> None:
        about = os.fstat(self._file)
        if self._inode != (about.st_dev, about.st_ino) or about.st_size < self.chain.size:
            self._forget()
        anchor = self.anchor.read()
        tail = self._extend(anchor.count)
        try:
            self._compare(anchor)
        except LedgerError:
            self._forget()
            raise
        self._inode = (about.st_dev, about.st_ino)
        if tail:
            self.repair(tail)
        elif anchor.count < self.head.count:
            self.write_anchor()

    def _extend(self, anchored: int) -> bytes:
        """Takes what is new in the file; returns the torn tail."""
        if (size := os.fstat(self._file).st_size) > _MAX_BYTES:
            raise LedgerError(f"it has {size} bytes, more than any ledger ({self.path})")
        known = len(self.chain.lines)
        try:
            tail = self.chain.extend(_read_from(self._file, self.chain.size), anchored)
            for line in self.chain.lines[known:]:
                self.state.take(line)
        except LedgerError:
            self._forget()
            raise
        return tail

    def repair(self, tail: bytes) -> None:
        """Vouches for a torn tail, and charges it as one round of the job then running. Raises as `append`."""
        self.append(Torn(**self.stamp(), torn=torn_bytes(tail), charged=self.state.running), torn=tail)

    def _compare(self, anchor: Anchor) -> None:
        """A ledger behind its anchor was rolled back; one that is ahead of it was cut off before the anchor's write."""
        if not self.chain.lines:
            raise LedgerError("it is missing: the ledger is empty. Bring back the newest ledger", 1)
        if anchor.ledger != self.state.identity:
            raise LedgerError("the anchor belongs to another ledger: bring back the one that belongs to it")
        if anchor.count > self.head.count:
            raise LedgerError(
                f"it is missing, and the anchor knows {anchor.count} entries: the ledger was truncated or rolled back. "
                "Bring back the newest ledger",
                self.chain.next_number,
            )
        if not self.state.contains(Head(anchor.count, anchor.head)):
            raise LedgerError("it is another than the anchor knows: the ledger was replaced", anchor.count)

    def stamp(self) -> Stamp:
        """For the next record."""
        now = datetime.now(UTC).isoformat(timespec="seconds")
        return {"n": self.chain.next_number, "prev": self.chain.prev, "time": now, "salt": secrets.token_hex(16)}

    def append(self, record: Record, torn: bytes = b"") -> Entry:
        """Durable in ledger and anchor when it returns; only under the lock.

        Raises LedgerError, OSError: the entry may then be on the disk or not, and all is read anew next time.
        """
        if self._held == 0:
            raise RuntimeError("a ledger is written under its lock")
        if os.fstat(self._file).st_size != self.chain.size + len(torn):
            raise LedgerError("another process wrote into it without its lock", record.n)
        try:
            written = self.chain.append(record, torn)
            done = os.write(self._file, written)
            os.fsync(self._file)
            if done != len(written) or os.fstat(self._file).st_size != self.chain.size:
                raise LedgerError("it was not written whole: is the disk full?", record.n)
            self.state.take(self.chain.lines[-1])
            self.write_anchor()
        except BaseException:
            self._inode = None
            raise
        return Entry(number=record.n, head=self.head)

    @property
    def head(self) -> Head:
        """The newest entry."""
        last = self.chain.lines[-1]
        return Head(last.number, last.mac)

    def write_anchor(self) -> None:
        """Brings the anchor to the head. Raises OSError."""
        head = self.head
        state = self.state
        self.anchor.write(
            Anchor(
                ledger=state.identity,
                count=head.count,
                head=head.mac,
                spent=state.spent,
                removals=state.removal_records,
                unprotected=state.unprotected_runs,
                moved=state.moved,
            )
        )


def beside(path: Path, suffix: str) -> Path:
    """The ledger's file of that suffix."""
    return path.with_name(f"{path.name}.{suffix}")


def _read_from(file: int, offset: int) -> bytes:
    with os.fdopen(os.dup(file), "rb") as stream:
        stream.seek(offset)
        return stream.read()
