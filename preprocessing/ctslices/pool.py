"""Worker processes that may die: each does one task at a time, and a death costs that task alone."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from typing import Any, Generic, Literal, TypeVar

Task = TypeVar("Task")
Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class Outcome(Generic[Task, Result]):
    """What became of one task: `done` with its result, `failed` (the function raised), `crashed` (its process died),
    `timeout` (its process was ended).

    `error` of a failed task names the exception's type and the line that raised it. It never holds the exception's
    text: libraries quote header values there.
    """

    task: Task
    state: Literal["done", "failed", "crashed", "timeout"]
    result: Result | None = None
    error: str = ""


def _where(error: BaseException) -> str:
    frames = traceback.extract_tb(error.__traceback__)
    place = f" at {os.path.basename(frames[-1].filename)}:{frames[-1].lineno}" if frames else ""
    return f"{type(error).__name__}{place}"


MEMORY_LIMIT_BYTES = 6 << 30
"""Address space of a worker: a file that unpacks to more is damage or an attack, and costs itself alone."""


def _limit_memory() -> None:
    """Also no core dumps: they would hold pixels and headers."""
    import resource

    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    limits = [MEMORY_LIMIT_BYTES, *(limit for limit in (soft, hard) if limit != resource.RLIM_INFINITY)]
    resource.setrlimit(resource.RLIMIT_AS, (min(limits), hard))


def serve(descriptor: int) -> None:
    """The worker's main: until the parent goes away, which closes the socket."""
    _limit_memory()
    connection = Connection(descriptor)
    try:
        sys.path[:] = connection.recv()
        function = connection.recv()
    except (EOFError, KeyboardInterrupt):
        return
    while True:
        try:
            task = connection.recv()
        except (EOFError, KeyboardInterrupt):
            return
        try:
            answer = (True, function(task))
        except KeyboardInterrupt:
            return
        except Exception as error:  # noqa: BLE001 - the process edge: one task's failure must not end the others
            answer = (False, _where(error))
        try:
            connection.send(answer)
        except (BrokenPipeError, ConnectionResetError):
            return


# One thread for linear algebra: small products gain nothing by more, lose a factor of ten where the processors are
# busy, and round alike whatever the machine.
_THREADS = ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS", "VECLIB_MAXIMUM_THREADS")


class _Worker:
    """One process and the parent's end of its socket.

    A process of its own and not multiprocessing's: that would import the caller's main module again.
    """

    def __init__(self, function: Callable[[Any], Any]) -> None:
        mine, theirs = socket.socketpair()
        with theirs:
            self.process = subprocess.Popen(  # nosec B603 # this Python, our own words, a number
                [sys.executable, "-P", "-c", f"from ctslices.pool import serve; serve({theirs.fileno()})"],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,  # libraries may quote there what they decode
                env=os.environ | dict.fromkeys(_THREADS, "1") | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
            )
        self.connection = Connection(mine.detach())
        self.connection.send(sys.path)
        self.connection.send(function)
        self.task: Any = None
        self.since = 0.0

    def give(self, task: Any) -> bool:
        """Hand over a task; False when the process is already gone."""
        self.task, self.since = task, time.monotonic()
        try:
            self.connection.send(task)
        except (BrokenPipeError, ConnectionResetError):
            return False
        return True

    def end(self) -> None:
        """End the process now."""
        self.connection.close()
        self.process.kill()
        self.process.wait()


class WorkerPool(Generic[Task, Result]):
    """`workers` fresh processes that call `function`, which must be picklable, as must tasks and results.

    Use as a context manager: leaving it ends the processes. `timeout_s` bounds one task.
    """

    def __init__(self, function: Callable[[Task], Result], workers: int, timeout_s: float = 900.0) -> None:
        if workers < 1:
            raise ValueError(f"workers must be at least 1: got {workers}")
        self._function = function
        self._count = workers
        self._timeout_s = timeout_s
        self._workers: list[_Worker] = []

    def __enter__(self) -> WorkerPool[Task, Result]:
        return self

    def __exit__(self, *_: object) -> None:
        for worker in self._workers:
            worker.end()
        self._workers = []

    def another(self) -> WorkerPool[Task, Result]:
        """A pool like this one, of one process."""
        return WorkerPool(self._function, 1, self._timeout_s)

    def run(self, tasks: Iterable[Task]) -> Iterator[Outcome[Task, Result]]:
        """Outcomes in the order in which they come; tasks are drawn only as workers become free."""
        waiting = deque(tasks)
        busy: list[_Worker] = []
        while waiting or busy:
            while waiting and len(busy) < self._count:
                worker = self._idle(busy)
                task = waiting.popleft()
                if worker.give(task):
                    busy.append(worker)
                else:
                    self._drop(worker)
                    waiting.appendleft(task)
            for worker in self._ready(busy):
                busy.remove(worker)
                yield self._collect(worker)

    def _idle(self, busy: list[_Worker]) -> _Worker:
        for worker in self._workers:
            if worker not in busy:
                return worker
        self._workers.append(_Worker(self._function))
        return self._workers[-1]

    def _drop(self, worker: _Worker) -> None:
        self._workers.remove(worker)
        worker.end()

    def _ready(self, busy: list[_Worker]) -> list[_Worker]:
        """Workers that have answered, died, or run out of time; waits for the first."""
        now = time.monotonic()
        patience = max(0.0, min(w.since + self._timeout_s - now for w in busy))
        ready = set(wait([w.connection for w in busy], timeout=patience))
        now = time.monotonic()
        return [w for w in busy if w.connection in ready or now >= w.since + self._timeout_s]

    def _collect(self, worker: _Worker) -> Outcome[Task, Result]:
        if not worker.connection.poll():
            self._drop(worker)
            return Outcome(worker.task, "timeout")
        try:
            good, answer = worker.connection.recv()
        except (EOFError, ConnectionResetError):
            self._drop(worker)
            return Outcome(worker.task, "crashed")
        if not good:
            return Outcome(worker.task, "failed", error=answer)
        return Outcome(worker.task, "done", answer)


def call(task: tuple[Callable[[Any], Any], Any]) -> Any:
    """A pool's function where each task brings its own: (function, argument)."""
    function, argument = task
    return function(argument)


def call_each(task: tuple[Callable[[Any], Any], list[Any]]) -> list[Any]:
    """Several small calls in one task."""
    function, arguments = task
    return [function(argument) for argument in arguments]


def ordered_map(
    pool: WorkerPool[Any, Any],
    function: Callable[[Any], Any],
    items: Sequence[Any],
    instead: Callable[[str], Any],
    chunk: int = 32,
) -> Iterator[Any]:
    """`map(function, items)` over a pool whose function is `call`, in chunks; results in the order of `items`.

    A chunk that fails is done again item by item; an item that fails alone becomes `instead(what happened)`.
    """
    chunks = [(function, list(items[start : start + chunk])) for start in range(0, len(items), chunk)]
    done: dict[int, list[Any]] = {}
    following = 0
    for outcome in pool.run([(call_numbered, (number, task)) for number, task in enumerate(chunks)]):
        number, (_, arguments) = outcome.task[1]
        done[number] = outcome.result if outcome.result else list(_alone(pool, function, arguments, instead))
        while following in done:
            yield from done.pop(following)
            following += 1


def _alone(
    pool: WorkerPool[Any, Any], function: Callable[[Any], Any], items: list[Any], instead: Callable[[str], Any]
) -> Iterator[Any]:
    """One process more, for the items of a chunk that failed."""
    with pool.another() as single:
        for item in items:
            for outcome in single.run([(function, item)]):
                yield outcome.result if outcome.state == "done" else instead(outcome.error or outcome.state)


def call_numbered(task: tuple[int, Any]) -> list[Any]:
    """`call_each` of a chunk that carries its number."""
    return call_each(task[1])


def default_workers() -> int:
    """The processors this process may run on."""
    return max(1, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)
