"""Progress of a command of several steps: step k of n, elapsed, an estimate of what remains."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from typing import TextIO

QUIET_S = 5.0
"""Where nobody watches (a log file), one line in so many seconds."""
TRUST_S = 30.0
"""So much work at the usual pace is assumed to have gone before: the first seconds do not turn the estimate over."""


class StepProgress:
    """Tells of steps whose usual durations are known; `usual_s` also weighs the estimate of what remains.

    On a terminal one line is rewritten; elsewhere lines are printed, at most one in `QUIET_S` within a step.
    """

    def __init__(
        self,
        names: Sequence[str],
        usual_s: Sequence[float],
        stream: TextIO | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        if len(names) != len(usual_s) or not names:
            raise ValueError(f"wanted one usual duration a step: got {len(names)} names, {len(usual_s)} durations")
        self._names, self._usual_s = tuple(names), tuple(usual_s)
        self._stream = stream or sys.stderr
        self._clock = clock
        self._live = self._stream.isatty()
        self._began = clock()
        self._worked_s = 0.0
        self._expected_s = 0.0
        self._step = 0
        self._step_began = self._began
        self._last_line = -QUIET_S
        self._width = 0

    def skip(self, step: int, why: str = "done already") -> None:
        """Step number `step` (from 0) needs no work."""
        self._step = step
        self._line(f"{self._names[step]}: {why}", final=True)

    def start(self, step: int) -> None:
        """Work on step number `step` (from 0) begins."""
        self._step = step
        self._step_began = self._clock()
        self._last_line = -QUIET_S
        self.update(0.0)

    def update(self, share: float, detail: str = "") -> None:
        """`share` in 0..1 of the step is done."""
        now = self._clock()
        if not self._live and now - self._last_line < QUIET_S:
            return
        self._last_line = now
        words = self._names[self._step] + (f": {detail}" if detail else "")
        self._line(f"{words}  [{_clock_text(now - self._began)} elapsed, {self._remaining(share, now)}]", final=False)

    def done(self, detail: str = "") -> None:
        """The step that began last is complete."""
        now = self._clock()
        took = now - self._step_began
        self._worked_s += took
        self._expected_s += self._usual_s[self._step]
        words = self._names[self._step] + (f": {detail}" if detail else "")
        self._line(f"{words}  ({took:.1f} s)", final=True)

    def _remaining(self, share: float, now: float) -> str:
        """Usual durations of what is left, stretched by how slow the steps so far were."""
        usual = self._usual_s[self._step]
        share = min(max(share, 0.0), 1.0)
        in_step = now - self._step_began
        expected = self._expected_s + share * usual
        pace = (self._worked_s + in_step + TRUST_S) / (expected + TRUST_S)
        left = (1.0 - share) * usual + sum(self._usual_s[self._step + 1 :])
        return f"about {_clock_text(left * pace)} to go"

    def _line(self, text: str, *, final: bool) -> None:
        line = f"[{self._step + 1}/{len(self._names)}] {text}"
        if not self._live:
            self._stream.write(line + "\n")
        else:
            self._stream.write("\r" + line.ljust(self._width) + ("\n" if final else ""))
            self._width = 0 if final else len(line)
        self._stream.flush()


def _clock_text(seconds: float) -> str:
    minutes, rest = divmod(max(round(seconds), 0), 60)
    return f"{minutes}:{rest:02d}"
