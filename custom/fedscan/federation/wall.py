"""wall.jsonl: what crossed a hospital's wall, counted at the site itself and kept there."""

from __future__ import annotations

import json
import os
import threading
from collections import defaultdict
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any


class WallLog:
    """Appends one line for each answer's tensors, and one with the totals of all messages by channel.

    Thread-safe: NVFlare calls message filters from several threads.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._bytes: dict[tuple[str, str], int] = defaultdict(int)
        self._count: dict[tuple[str, str], int] = defaultdict(int)

    def tensors(self, direction: str, round_number: int, shapes: Mapping[str, tuple[int, ...]], size: int) -> None:
        """Notes the tensors of one message: names, shapes and bytes. `direction` is "in" or "out"."""
        self._append(
            {
                "kind": "tensors",
                "direction": direction,
                "round": round_number,
                "bytes": size,
                "tensors": {name: list(shape) for name, shape in sorted(shapes.items())},
            }
        )

    def message(self, channel: str, topic: str, size: int) -> None:
        """Counts one outgoing message of the job process."""
        with self._lock:
            self._bytes[channel, topic] += size
            self._count[channel, topic] += 1

    def flush_messages(self) -> None:
        """Writes the totals by channel since the last call."""
        with self._lock:
            totals = {f"{c}/{t}": {"messages": self._count[c, t], "bytes": b} for (c, t), b in self._bytes.items()}
            self._bytes.clear()
            self._count.clear()
        if totals:
            self._append({"kind": "messages", "direction": "out", "channels": dict(sorted(totals.items()))})

    def _append(self, entry: dict[str, Any]) -> None:
        line = json.dumps({"time": datetime.now(UTC).isoformat(timespec="milliseconds"), **entry}) + "\n"
        descriptor = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        try:
            os.write(descriptor, line.encode())
        finally:
            os.close(descriptor)


def read(path: Path) -> list[dict[str, Any]]:
    """All whole lines of a wall.jsonl; none if the site has not spoken yet."""
    if not path.exists():
        return []
    entries = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            entries.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return entries
