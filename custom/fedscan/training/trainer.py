"""The trainer child: `python -m fedscan.training.trainer`. Sees images, has no network, ends with its parent.

Reads JSON lines (trainer_protocol) from standard input and answers on standard output, which nothing else may use:
prints of libraries go to standard error, a log file of the site.
"""

from __future__ import annotations

import ctypes
import os
import queue
import signal
import sys
import threading
import time
from collections.abc import Callable
from typing import BinaryIO, NoReturn

from fedscan.training import trainer_protocol as protocol
from fedscan.training.trainer_protocol import Done, ProtocolError, Refused, Start, Train

_PR_SET_PDEATHSIG = 1
PROGRESS_EVERY_S = 1.0


class Child:
    """The warm trainer of one run at one site."""

    def __init__(self, start: Start) -> None:
        import torch

        from ctslices.store import SliceStore
        from fedscan.training.data import TrainingSet
        from fedscan.training.local import LocalTrainer
        from fedscan.training.site_state import SiteStates

        torch.set_num_threads(start.threads)
        device = "cuda" if torch.cuda.is_available() else "cpu"
        data = TrainingSet.from_store(SliceStore.open(start.store), start.plan)
        self._trainer = LocalTrainer(start.plan, data, start.site, device)
        self._states = SiteStates(start.state_folder, start.plan.digest, start.run_id, start.site)

    def train(self, order: Train, say: Callable[[protocol.Progress], None]) -> Done:
        """One round: the update's file first, then the state's, then the word."""
        from fedscan.training.tensor_file import drop_leftovers, load_tensors, save_tensors

        started = time.monotonic()
        weights, _ = load_tensors(order.weights)
        before = self._states.before(order.round_number, weights)
        result = self._trainer.round(
            weights, order.round_number, before[1] if before else None, _reporter(say, PROGRESS_EVERY_S)
        )
        drop_leftovers(order.out.parent, order.out.name)
        save_tensors(order.out, result.update, {"round": str(order.round_number)})
        if result.state is not None:
            self._states.save(order.round_number, result.state)
        return Done(
            round_number=order.round_number,
            loss=result.loss,
            epoch_losses=result.epoch_losses,
            examples=result.examples,
            patients=result.patients,
            unit=self._trainer.data.unit,
            values=self._trainer.data.values,
            field_mm=self._trainer.data.field_mm,
            steps=result.steps,
            seconds=time.monotonic() - started,
            from_round=before[0] if before else None,
        )


def _reporter(say: Callable[[protocol.Progress], None], every_s: float) -> Callable[[object], None]:
    last = time.monotonic()

    def report(step: object) -> None:
        nonlocal last
        from fedscan.training.local import Progress

        if isinstance(step, Progress) and (now := time.monotonic()) - last >= every_s:
            last = now
            say(protocol.Progress(step=step.step, steps=step.steps, loss=step.loss))

    return report


def serve(lines: queue.Queue[bytes], out: BinaryIO) -> NoReturn:
    """Answers requests; the end of the input ends the process. What keeps the child from starting answers each one."""

    def say(line: protocol.Progress | Done | Refused) -> None:
        out.write(protocol.encode(line))
        out.flush()

    start = protocol.request(lines.get())
    if not isinstance(start, Start):
        raise ProtocolError("the first line must be a start")
    die_with(start.parent)
    child = _begin(start)
    while True:
        order = protocol.request(lines.get())
        if not isinstance(order, Train):
            raise ProtocolError("a second start")
        say(_answer(child, order, say))
        if isinstance(child, Refused):
            child = _begin(start)


def _begin(start: Start) -> Child | Refused:
    try:
        return Child(start)
    except REFUSALS as error:
        return _refusal(error)


def _answer(child: Child | Refused, order: Train, say: Callable[[protocol.Progress], None]) -> Done | Refused:
    if isinstance(child, Refused):
        return child
    try:
        return child.train(order, say)
    except REFUSALS as error:
        return _refusal(error)


def _refusal(error: Exception) -> Refused:
    print(f"refused: {type(error).__name__}: {error}", file=sys.stderr)
    return Refused(reason=reason_of(error))


def reason_of(error: Exception) -> str:
    """What may be told of `error`: our own texts hold nothing about data; others may, so only their kind is told."""
    return str(error) if type(error).__module__.split(".")[0] in {"fedscan", "ctslices"} else type(error).__name__


REFUSALS = (OSError, ValueError, RuntimeError, MemoryError)
"""What a round may end with and the child go on: bad stores and models (ValueError), divergence and torch's errors
(RuntimeError), disks. Anything else is a mistake in the program: the child dies of it, and the log says where."""


def die_with(parent: int) -> None:
    """The kernel kills this process when its parent dies (Linux); at once if that has happened already."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        os._exit(1)


def _read_lines(source: BinaryIO, lines: queue.Queue[bytes]) -> None:
    """Feeds `lines`; the end of `source` means that the parent is gone or done: ends the process in mid-step too."""
    for line in source:
        lines.put(line)
    os._exit(0)


def main() -> NoReturn:
    """The child's main."""
    out = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    lines: queue.Queue[bytes] = queue.Queue()
    threading.Thread(target=_read_lines, args=(sys.stdin.buffer, lines), daemon=True).start()
    serve(lines, out)


if __name__ == "__main__":
    main()
