"""The parent's handle of the trainer child. Imports neither torch nor MONAI: job processes that only wait need none."""

from __future__ import annotations

import contextlib
import os
import resource
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import IO

from fedscan.plan import Plan
from fedscan.training import trainer_protocol as protocol
from fedscan.training.trainer_protocol import (
    Done,
    Finished,
    Prepare,
    PrivateDone,
    PrivateProgress,
    Progress,
    Ready,
    Said,
    Start,
    Train,
)
from fedscan.training.trainer_replies import (
    Answer,
    PrivateAnswer,
    TrainerAborted,
    TrainerDied,
    TrainerTimeout,
    judge,
    parse,
)

LOOK_EVERY_S = 0.2
STOP_GRACE_S = 2.0
LOG_NAME = "trainer.log"
LOG_BYTES = 2**20
CHILD_ENVIRONMENT = {
    "MALLOC_MMAP_THRESHOLD_": "4294967296",
    "MALLOC_TRIM_THRESHOLD_": "17179869184",
    "MALLOC_TOP_PAD_": "268435456",
    "PYTHONUNBUFFERED": "1",
}
"""glibc would give the memory of large activations back after each use: a tenth of a step, and cannot be set later."""


@dataclass
class _Running:
    process: subprocess.Popen[bytes]
    stdin: IO[bytes]
    stdout: IO[bytes]
    rest: bytes = b""
    asked: bool = False
    """Whether it owes an answer to `Prepare`."""
    ready: bool = False


class Trainer:
    """A trainer child that stays warm over rounds; started when first needed and again after a death.

    Not for several threads at once.
    """

    def __init__(
        self,
        store: Path,
        state_folder: Path,
        plan: Plan,
        site: str,
        run_id: str,
        threads: int | None = None,
        reproducible_noise_seed: int | None = None,
        memory_gib: float | None = None,
        gpu: bool = True,
    ) -> None:
        """`state_folder` (0700) is the run's own at this site; None for `threads`: 1.

        `memory_gib` bounds what the child may allocate (None: no bound), `gpu` says whether it sees one.
        `reproducible_noise_seed` is for a site whose policy allows noise that protects nobody; None: secure noise.
        """
        self._store = store
        self._folder = state_folder
        self._plan = plan
        self._site = site
        self._run_id = run_id
        self._threads = threads or 1
        self._noise_seed = reproducible_noise_seed
        self._memory_gib = memory_gib
        self._environment = {
            "OMP_NUM_THREADS": str(self._threads),
            # torch makes this folder when an optimiser is built, else below /tmp, where another user may lay it first.
            "TORCHINDUCTOR_CACHE_DIR": str(state_folder.absolute() / "torch"),
        } | ({} if gpu else {"CUDA_VISIBLE_DEVICES": ""})
        self._child: _Running | None = None

    @property
    def pid(self) -> int | None:
        """The living child's process id."""
        return self._child.process.pid if self._child and self._child.process.poll() is None else None

    def start(self) -> None:
        """Starts the child if none is alive; does not wait until it has loaded its libraries."""
        if self.pid is not None:
            return
        self.stop()
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._child = _spawner(os.getpid()).submit(self._spawn).result()
        self._say(
            Start(
                parent=os.getpid(),
                store=self._store.absolute(),
                state_folder=self._folder.absolute(),
                plan=self._plan,
                site=self._site,
                run_id=self._run_id,
                threads=self._threads,
                reproducible_noise_seed=self._noise_seed,
            )
        )

    def ready(self, within_s: float, abort: Callable[[], bool]) -> bool:
        """Whether the child has loaded all that it needs; waits at most `within_s` for it. One that is still loading
        goes on loading. Raises TrainerRefused for a store or plan that it cannot train on (child stays), TrainerDied,
        TrainerAborted."""
        self.start()
        child = self._living()
        if not child.ready and not child.asked:
            self._say(Prepare())
            child.asked = True
        try:
            while not child.ready:
                line = next(self._lines_until(time.monotonic() + within_s, abort, "the trainer child's start"))
                child.asked = False
                child.ready = isinstance(parse(line), Ready)
        except TrainerTimeout:
            return False
        except (TrainerDied, TrainerAborted):
            self.stop(grace_s=0.0)
            raise
        return True

    def train(
        self,
        round_number: int,
        weights_path: Path,
        out_path: Path,
        deadline_s: float,
        abort: Callable[[], bool],
        progress: Callable[[Progress], None] | None = None,
    ) -> Answer:
        """Trains one round without privacy from the weights in `weights_path`; its update is then whole in `out_path`.

        `deadline_s` counts from now and includes the child's start. Deadline, `abort` and the child's life are looked
        at five times a second; `progress` is told about once a second how far the round is. Raises TrainerRefused
        (child stays), TrainerDied, TrainerTimeout, TrainerAborted (child is gone; the next call starts another).
        """
        order = Train(round_number=round_number, weights=weights_path.absolute(), out=out_path.absolute())

        def heard(reply: Said) -> None:
            if progress is not None and isinstance(reply, Progress):
                progress(reply)

        done = self._round(order, deadline_s, abort, heard)
        assert isinstance(done, Done)  # _judge takes no other from a plan without privacy
        return Answer(update_path=out_path, **done.model_dump(exclude={"kind", "round_number"}))

    def train_private(
        self,
        round_number: int,
        weights_path: Path,
        out_path: Path,
        deadline_s: float,
        abort: Callable[[], bool],
        charge: int,
        progress: Callable[[PrivateProgress], None] | None = None,
    ) -> PrivateAnswer:
        """As `train`, under DP. `charge` is the number of the ledger's entry that pays for this training; the child
        refuses one that is not higher than all before. A training that was begun is paid for, whatever came of it:
        the next call needs another charge. Under DP a refusal's text tells no reason: that is in the child's log.
        """
        order = Train(
            round_number=round_number, weights=weights_path.absolute(), out=out_path.absolute(), charge=charge
        )

        def heard(reply: Said) -> None:
            if progress is not None and isinstance(reply, PrivateProgress):
                progress(reply)

        done = self._round(order, deadline_s, abort, heard)
        assert isinstance(done, PrivateDone)  # _judge takes no other from a private plan
        return PrivateAnswer(update_path=out_path, **done.model_dump(exclude={"kind", "round_number"}))

    def stop(self, grace_s: float = STOP_GRACE_S) -> None:
        """Ends the child: first by closing its input, after `grace_s` by SIGKILL. Harmless where there is none."""
        child, self._child = self._child, None
        if child is None:
            return
        with contextlib.suppress(OSError):
            child.stdin.close()
        try:
            child.process.wait(grace_s)
        except subprocess.TimeoutExpired:
            child.process.kill()
            child.process.wait()
        child.stdout.close()

    def _spawn(self) -> _Running:
        log = self._folder / LOG_NAME
        big = log.exists() and log.stat().st_size > LOG_BYTES
        flags = os.O_WRONLY | os.O_CREAT | (os.O_TRUNC if big else os.O_APPEND)
        with os.fdopen(os.open(log, flags, 0o600), "wb") as stderr:
            process = subprocess.Popen(  # nosec B603 # this Python and our own module, no shell
                [sys.executable, "-P", "-m", "fedscan.training.trainer"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stderr,
                env=os.environ | CHILD_ENVIRONMENT | self._environment,
            )
        if self._memory_gib is not None:
            most = int(self._memory_gib * 2**30)
            # Of data, not of addresses: libraries map far more than they use.
            resource.prlimit(process.pid, resource.RLIMIT_DATA, (most, most))
        assert process.stdin is not None
        assert process.stdout is not None
        return _Running(process, process.stdin, process.stdout)

    def _say(self, line: Start | Train | Prepare) -> None:
        """Lines are far smaller than a pipe, and the child has a thread that reads: this does not block."""
        child = self._living()
        try:
            child.stdin.write(protocol.encode(line))
            child.stdin.flush()
        except OSError:
            error = TrainerDied(f"the trainer child ended before a round ({_end_of(child.process)}); see {LOG_NAME}")
            self.stop(grace_s=0.0)
            raise error from None

    def _round(
        self, order: Train, deadline_s: float, abort: Callable[[], bool], heard: Callable[[Said], None]
    ) -> Finished:
        until = time.monotonic() + deadline_s
        self.start()
        self._say(order)
        try:
            return self._wait(until, abort, order, heard)
        except (TrainerDied, TrainerTimeout, TrainerAborted):
            self.stop(grace_s=0.0)
            raise

    def _wait(self, until: float, abort: Callable[[], bool], order: Train, heard: Callable[[Said], None]) -> Finished:
        for line in self._lines_until(until, abort, f"round {order.round_number}"):
            reply = judge(line, order, self._plan.privacy)
            if isinstance(reply, Finished):
                return reply
            if not isinstance(reply, Ready):
                heard(reply)
        raise AssertionError("lines end by an error alone")

    def _lines_until(self, until: float, abort: Callable[[], bool], what: str) -> Iterator[bytes]:
        child = self._living()
        with selectors.DefaultSelector() as selector:
            selector.register(child.stdout, selectors.EVENT_READ)
            while True:
                if abort():
                    raise TrainerAborted(f"{what} was aborted")
                if (left := until - time.monotonic()) <= 0.0:
                    raise TrainerTimeout(
                        f"{what} was not trained within its deadline: the plan's privacy.answer_after_s or "
                        "round_timeout_s is too short for this machine"
                    )
                if selector.select(min(LOOK_EVERY_S, left)):
                    yield from self._lines(child)

    def _lines(self, child: _Running) -> list[bytes]:
        """Whole lines that have come. Raises TrainerDied at the end of the stream."""
        data = os.read(child.stdout.fileno(), 1 << 16)
        if data == b"":
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.process.wait(LOOK_EVERY_S)
            raise TrainerDied(f"the trainer child ended in a round ({_end_of(child.process)}); see {LOG_NAME}")
        *lines, child.rest = (child.rest + data).split(b"\n")
        if len(child.rest) > protocol.MAX_LINE_BYTES:
            raise TrainerDied("the trainer child spoke a line without end and was ended")
        return lines

    def _living(self) -> _Running:
        if self._child is None:
            raise TrainerDied("the trainer child was not started")
        return self._child


def _end_of(process: subprocess.Popen[bytes]) -> str:
    code = process.poll()
    if code is None:
        return "its pipe is closed"
    return f"by {signal.Signals(-code).name}" if code < 0 else f"with exit code {code}"


@cache
def _spawner(_process: int) -> ThreadPoolExecutor:
    """One thread that lives as long as this process: Linux ties a child's PR_SET_PDEATHSIG to the thread that made it,
    and the caller's may end before the next round. By process, since a fork has no threads but one."""
    return ThreadPoolExecutor(max_workers=1, thread_name_prefix="trainer-spawner")
