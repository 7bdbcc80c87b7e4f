"""A consortium at work on this machine: the server and each site a process of its own, started by its kit's script."""

from __future__ import annotations

import contextlib
import functools
import signal
import subprocess
from collections.abc import Callable, Iterator, Mapping
from types import FrameType

from fedscan.federation import admin, processes
from fedscan.federation.consortium import Consortium


@contextlib.contextmanager
def running(made: Consortium) -> Iterator[Callable[[], None]]:
    """Server and sites, all connected; ended for sure at the end of the block, also by a signal.

    Yields a check, which raises AdminError once one of them has ended by itself. Raises AdminError.
    """
    processes.stop_all(made.folder)  # of a run that was killed
    parents: dict[str, subprocess.Popen[bytes]] = {}
    with _ended_by_signals():
        try:
            for name in (made.server, *made.sites):
                parents[name] = processes.start_by_script(made.kit(name))
            check = functools.partial(_all_alive, parents, made)
            lead = made.lead
            with admin.session(made.kit(lead), lead, check) as session:
                admin.wait_for_sites(session, made.sites, check)
            yield check
        finally:
            with _deaf_to_signals():
                processes.stop_all(made.folder)
                for parent in parents.values():
                    parent.wait()


@contextlib.contextmanager
def _ended_by_signals() -> Iterator[None]:
    """SIGTERM and a closed terminal end the block as ctrl-C does, so that its processes are ended too."""

    def stop(_number: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    with _handled(stop, signal.SIGTERM, signal.SIGHUP):
        yield


def _deaf_to_signals() -> contextlib.AbstractContextManager[None]:
    """For the few seconds in which the processes are ended: a second ctrl-C must not leave some of them."""
    return _handled(signal.SIG_IGN, signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@contextlib.contextmanager
def _handled(handler: Callable[[int, FrameType | None], None] | signal.Handlers, *numbers: int) -> Iterator[None]:
    before = {number: signal.signal(number, handler) for number in numbers}
    try:
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)


def _all_alive(parents: Mapping[str, subprocess.Popen[bytes]], made: Consortium) -> None:
    for name, parent in parents.items():
        if parent.poll() is not None:
            log = made.kit(name) / "console.log"
            raise admin.AdminError(f"the process of {name} ended with status {parent.returncode} (its words: {log})")
