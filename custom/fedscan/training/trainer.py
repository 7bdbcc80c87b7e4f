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
from typing import TYPE_CHECKING, BinaryIO, NoReturn, TypeAlias

from fedscan.training import trainer_protocol as protocol
from fedscan.training.trainer_protocol import (
    Done,
    Finished,
    PrivateDone,
    ProtocolError,
    Ready,
    Refused,
    Said,
    Start,
    Train,
)

if TYPE_CHECKING:
    from fedscan.privacy.noise import NoiseSource
    from fedscan.training.optimiser import OptimiserState
    from fedscan.training.weights import Weights

_PR_SET_PDEATHSIG = 1
PROGRESS_EVERY_S = 1.0


class _Child:
    """The warm trainer of one run at one site: what plain and private training share."""

    def __init__(self, start: Start) -> None:
        import torch

        from ctslices.store import SliceStore
        from fedscan.training.data import TrainingSet
        from fedscan.training.site_state import SiteStates

        torch.set_num_threads(start.threads)
        self._start = start
        self._device = "cuda" if torch.cuda.is_available() else "cpu"
        self._data = TrainingSet.from_store(SliceStore.open(start.store), start.plan)
        self._states = SiteStates(start.state_folder, start.plan.digest, start.run_id, start.site)

    def _received(self, order: Train) -> tuple[Weights, int | None, OptimiserState | None]:
        """The global weights; the round whose optimiser state this one goes on from, and that state."""
        from fedscan.training.tensor_file import load_tensors

        weights, _ = load_tensors(order.weights)
        before = self._states.before(order.round_number, weights)
        return (weights, *before) if before else (weights, None, None)

    def _write(self, order: Train, update: Weights, state: OptimiserState | None) -> None:
        """The update's file first, then the state's: a state without its update would be a round never answered.

        Without a state there is nothing that has to outlive the machine's going down."""
        from fedscan.training.tensor_file import drop_leftovers, save_tensors

        drop_leftovers(order.out.parent, order.out.name)
        save_tensors(order.out, update, {"round": str(order.round_number)}, durable=state is not None)
        if state is not None:
            self._states.save(order.round_number, state)


class PlainChild(_Child):
    """Trains without privacy."""

    def __init__(self, start: Start) -> None:
        from fedscan.training.local import LocalTrainer

        super().__init__(start)
        self._trainer = LocalTrainer(start.plan, self._data, start.site, self._device)

    def train(self, order: Train, say: Callable[[Said], None]) -> Done:
        """One round: the update's file first, then the state's, then the word."""
        if order.charge is not None:
            raise ProtocolError("a charge for a plan without privacy: nothing of it can be charged")
        started = time.monotonic()
        weights, from_round, state = self._received(order)
        said = _Seldom(say)
        result = self._trainer.round(
            weights,
            order.round_number,
            state,
            lambda step: said(protocol.Progress(step=step.step, steps=step.steps, loss=step.loss)),
        )
        self._write(order, result.update, result.state)
        return Done(
            round_number=order.round_number,
            loss=result.loss,
            epoch_losses=result.epoch_losses,
            examples=result.examples,
            patients=result.patients,
            unit=self._data.unit,
            values=self._data.values,
            field_mm=self._data.field_mm,
            steps=result.steps,
            seconds=time.monotonic() - started,
            from_round=from_round,
        )


class PrivateChild(_Child):
    """Trains under DP: makes its noise itself, and takes no step that was not charged."""

    def __init__(self, start: Start) -> None:
        from fedscan.training.private_round import PrivateTrainer

        super().__init__(start)
        self._trainer = PrivateTrainer(
            start.plan,
            self._data,
            start.site,
            self._device,
            allow_reproducible=start.reproducible_noise_seed is not None,
        )
        self._secure: NoiseSource | None = None
        self._paid = -1

    def train(self, order: Train, say: Callable[[Said], None]) -> PrivateDone:
        """As `PlainChild.train`. The charge is used up before anything else, whatever becomes of the round."""
        if order.charge is None or order.charge <= self._paid:
            raise ProtocolError(
                f"no step is taken uncharged: got charge {order.charge}, wanted the number of a ledger entry above "
                f"{self._paid}; charge the round anew"
            )
        self._paid = order.charge
        weights, from_round, state = self._received(order)
        said = _Seldom(say)
        result = self._trainer.round(
            weights,
            order.round_number,
            state,
            self._noise(order.round_number),
            lambda step: said(protocol.PrivateProgress(step=step.step, steps=step.steps)),
        )
        print(f"round {order.round_number}, charge {order.charge}: {self._trainer.local_note}", file=sys.stderr)
        self._write(order, result.update, result.state)
        return PrivateDone(
            round_number=order.round_number,
            charge=order.charge,
            unit=result.unit,
            steps=result.steps,
            from_round=from_round,
            loss=result.loss,
        )

    def _noise(self, round_number: int) -> NoiseSource:
        from fedscan.privacy.noise import ReproducibleNoise, SecureNoise
        from fedscan.training.seeds import derived_seed

        if self._start.reproducible_noise_seed is not None:
            seed = derived_seed(
                "reproducible noise", self._start.reproducible_noise_seed, self._start.site, round_number
            )
            return ReproducibleNoise(seed)
        if self._secure is None:
            self._secure = SecureNoise()
        return self._secure


Child: TypeAlias = PlainChild | PrivateChild


class _Seldom:
    """Passes on a word at most once a second."""

    def __init__(self, say: Callable[[Said], None]) -> None:
        self._say = say
        self._last = time.monotonic()

    def __call__(self, word: Said) -> None:
        if (now := time.monotonic()) - self._last >= PROGRESS_EVERY_S:
            self._last = now
            self._say(word)


def serve(lines: queue.Queue[bytes], out: BinaryIO) -> NoReturn:
    """Answers requests; the end of the input ends the process. What keeps the child from starting answers each one."""

    def say(line: Said | Finished | Refused | Ready) -> None:
        out.write(protocol.encode(line))
        out.flush()

    start = protocol.request(lines.get())
    if not isinstance(start, Start):
        raise ProtocolError("the first line must be a start")
    die_with(start.parent)
    private = start.plan.privacy is not None
    child = _begin(start)
    while True:
        order = protocol.request(lines.get())
        if isinstance(order, Start):
            raise ProtocolError("a second start")
        if isinstance(order, Train):
            say(_answer(child, order, say, private))
        else:
            say(child if isinstance(child, Refused) else Ready())
        if isinstance(child, Refused):
            child = _begin(start)


def _begin(start: Start) -> Child | Refused:
    try:
        return PlainChild(start) if start.plan.privacy is None else PrivateChild(start)
    except REFUSALS as error:
        return _refusal(error, start.plan.privacy is not None)


def _answer(child: Child | Refused, order: Train, say: Callable[[Said], None], private: bool) -> Finished | Refused:
    if isinstance(child, Refused):
        return child
    try:
        return child.train(order, say)
    except REFUSALS as error:
        return _refusal(error, private)


def _refusal(error: Exception, private: bool) -> Refused:
    print(f"refused: {type(error).__name__}: {error}", file=sys.stderr)
    return Refused(reason=PRIVATE_REASON if private else reason_of(error))


PRIVATE_REASON = "the trainer child does not train this: see its log at the site"
"""Under DP a reason may depend on a patient: it stays in the log."""


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
