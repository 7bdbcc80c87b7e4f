"""Progress of several steps: what is said, when, and the estimate of what remains."""

from __future__ import annotations

import io

import pytest

from fedscan.cli.demo_progress import StepProgress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_a_log_gets_whole_lines_with_step_elapsed_and_remaining_time() -> None:
    stream, clock = io.StringIO(), Clock()
    progress = StepProgress(["writing", "training"], [10.0, 90.0], stream, clock)
    progress.start(0)
    clock.now = 10.0
    progress.done("3 files")
    progress.start(1)
    clock.now = 55.0
    progress.update(0.5, "round 5")
    lines = stream.getvalue().splitlines()
    assert lines[0] == "[1/2] writing  [0:00 elapsed, about 1:40 to go]"
    assert lines[1] == "[1/2] writing: 3 files  (10.0 s)"
    assert lines[-1] == "[2/2] training: round 5  [0:55 elapsed, about 0:45 to go]"


def test_the_estimate_stretches_with_the_machine() -> None:
    stream, clock = io.StringIO(), Clock()
    progress = StepProgress(["writing", "training"], [10.0, 90.0], stream, clock)
    progress.start(0)
    clock.now = 30.0
    progress.done()
    progress.start(1)
    assert stream.getvalue().splitlines()[-1].endswith("about 2:15 to go]")


def test_a_log_is_not_flooded() -> None:
    stream, clock = io.StringIO(), Clock()
    progress = StepProgress(["one"], [100.0], stream, clock)
    progress.start(0)
    for tenth in range(100):
        clock.now = tenth / 10
        progress.update(tenth / 1000)
    assert len(stream.getvalue().splitlines()) == 2


def test_a_terminal_sees_one_line_that_is_rewritten_whole() -> None:
    stream = Terminal()
    progress = StepProgress(["one"], [100.0], stream, Clock())
    progress.start(0)
    progress.update(0.1, "a long detail that the next one must cover")
    progress.update(0.2, "x")
    progress.done()
    assert stream.getvalue().count("\n") == 1
    shown = stream.getvalue().split("\r")
    assert len(shown[-2]) == len(shown[-3])


def test_skipped_steps_are_told() -> None:
    stream = io.StringIO()
    StepProgress(["one", "two"], [1.0, 1.0], stream, Clock()).skip(0)
    assert stream.getvalue() == "[1/2] one: done already\n"


def test_every_step_needs_a_duration() -> None:
    with pytest.raises(ValueError, match="one usual duration a step"):
        StepProgress(["one"], [], io.StringIO())
