"""How much of one kind is noted within an hour: whoever may ask could else fill disk and log with words of his own."""

from __future__ import annotations

from collections.abc import Iterator

MOST = 1000
HOUR_S = 3600.0


class Hour:
    """What was noted since its start, and how much was not. Not thread-safe."""

    def __init__(self, start: float) -> None:
        """In seconds of time.monotonic()."""
        self._start, self._count = start, 0

    def texts(self, text: str, now: float) -> Iterator[str]:
        """What is to be noted now: this text while there is room; that there is none, once; how many there were."""
        if now - self._start > HOUR_S:
            if self._count > MOST:
                yield f"{self._count - MOST} of these were not noted, within an hour"
            self._start, self._count = now, 0
        self._count += 1
        if self._count <= MOST:
            yield text
        elif self._count == MOST + 1:
            yield f"more than {MOST} of these within an hour: no more is noted until it is over"
