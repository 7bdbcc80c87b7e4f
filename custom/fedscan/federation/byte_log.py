"""STATE/bytes/: what left this site, by channel and minute, counted before it leaves; for the site's own people.

A file for the site's parent process and one for each job; JSON Lines. Lines are appended; the last one is written anew
with each message until its minute is over, so that a killed process leaves nothing uncounted.
"""

from __future__ import annotations

import fcntl
import os
import re
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError

FOLDER = "bytes"
PARENT = "parent"
MAX_BYTES = 64 * 2**20
"""A larger file becomes NAME.old.jsonl first: some years of an idle site."""
EVERY_S = 60.0
INSIDE = "inside"


class Row(BaseModel):
    """Messages of one kind within one line's time."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    channel: str = Field(description="NVFlare's channel and topic; connection/... for handshakes and heartbeats")
    to: str = Field(description="server, or inside: another process of this site")
    messages: int = Field(ge=0)
    bytes: int = Field(ge=0, description="of whole frames, before the connection's own framing and TLS")
    blocked: bool = Field(description="true: they did not leave")


class Line(BaseModel):
    """One line of bytes.jsonl."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    since: str = Field(description="UTC, ISO 8601")
    until: str
    process: str = Field(description="parent, or the job's id")
    pid: int
    rows: tuple[Row, ...]


@dataclass(frozen=True)
class _Kind:
    channel: str
    to: str
    blocked: bool


class ByteLog:
    """Counts of one process. Thread-safe. Until a folder is known, they are kept in memory."""

    def __init__(self, process: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._process = process
        self._clock = clock
        self._lock = threading.Lock()
        self._file: int | None = None
        self._at = 0
        self._counts: dict[_Kind, list[int]] = defaultdict(lambda: [0, 0])
        self._since = datetime.now(UTC)
        self._due = clock() + EVERY_S

    def write_to(self, state: Path) -> None:
        """From now on counts are on disk before `count` returns. Raises OSError."""
        with self._lock:
            if self._file is None:
                self._file = _open(state / FOLDER, self._process)
                self._at = os.fstat(self._file).st_size
                self._write()

    def count(self, channel: str, to: str, size: int, *, blocked: bool = False) -> None:
        """One message of `size` bytes. Raises OSError where it cannot be noted; it counts all the same."""
        with self._lock:
            if self._clock() >= self._due:
                self._next_line()
            counts = self._counts[_Kind(channel, to, blocked)]
            counts[0] += 1
            counts[1] += size
            self._write()

    def _write(self) -> None:
        if self._file is None or not self._counts:
            return
        rows = tuple(
            Row(channel=kind.channel, to=kind.to, messages=messages, bytes=size, blocked=kind.blocked)
            for kind, (messages, size) in sorted(self._counts.items(), key=lambda item: str(item[0]))
        )
        line = Line(
            since=_iso(self._since), until=_iso(datetime.now(UTC)), process=self._process, pid=os.getpid(), rows=rows
        )
        data = line.model_dump_json().encode() + b"\n"
        # The line only grows, so that nothing of an earlier writing is left behind it.
        if (written := os.pwrite(self._file, data, self._at)) != len(data):
            raise OSError(f"only {written} of {len(data)} bytes of the byte log could be written")

    def _next_line(self) -> None:
        if self._file is not None:
            self._write()
            self._at = os.fstat(self._file).st_size
            self._counts.clear()
            self._since = datetime.now(UTC)
        self._due = self._clock() + EVERY_S


def _open(folder: Path, process: str) -> int:
    """The process's own file, at a line's beginning; another one while a process of the same name writes it."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    name = re.sub(r"[^\w.-]", "_", process)[:100]
    for candidate in (name, f"{name}.{os.getpid()}"):
        path = folder / f"{candidate}.jsonl"
        if path.exists() and path.stat().st_size > MAX_BYTES:
            os.replace(path, folder / f"{candidate}.old.jsonl")
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            continue
        size = os.fstat(descriptor).st_size
        if size and os.pread(descriptor, 1, size - 1) != b"\n":
            os.pwrite(descriptor, b"\n", size)  # a line that a power failure cut off
        return descriptor
    raise OSError(f"another process writes {folder}/{name}.jsonl")


def read(state: Path) -> Iterator[Line]:
    """All whole lines of all processes; a line that was cut by a power failure is passed over. Raises OSError."""
    for path in sorted((state / FOLDER).glob("*.jsonl")):
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                yield Line.model_validate_json(line)
            except ValidationError:
                continue


@dataclass(frozen=True)
class Total:
    """All messages of one channel."""

    channel: str
    to: str
    messages: int
    bytes: int
    blocked: bool


def totals(lines: Iterable[Line], process: str | None = None) -> list[Total]:
    """Sums by channel, largest first; `process`: of that one alone."""
    sums: dict[_Kind, list[int]] = defaultdict(lambda: [0, 0])
    for line in lines:
        if process is not None and line.process != process:
            continue
        for row in line.rows:
            counts = sums[_Kind(row.channel, row.to, row.blocked)]
            counts[0] += row.messages
            counts[1] += row.bytes
    found = [Total(kind.channel, kind.to, messages, size, kind.blocked) for kind, (messages, size) in sums.items()]
    return sorted(found, key=lambda total: (-total.bytes, total.channel, total.blocked))


def left(found: list[Total]) -> int:
    """Bytes that left the site."""
    return sum(total.bytes for total in found if total.to != INSIDE and not total.blocked)


def as_dict(found: list[Total]) -> dict[str, object]:
    """For scripts."""
    return {"left_bytes": left(found), "channels": [asdict(total) for total in found]}


def _iso(moment: datetime) -> str:
    return moment.isoformat(timespec="milliseconds")
