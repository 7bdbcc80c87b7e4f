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
    names = [made.server, *made.sites]
    with _ended_by_signals():
        try:
            parents = {name: processes.start_by_script(made.kit(name)) for name in names}
            check = functools.partial(_all_alive, parents, made)
            lead = made.lead
            with admin.session(made.kit(lead), lead, check) as session:
                admin.wait_for_sites(session, made.sites, check)
            yield check
        finally:
            processes.stop_all(made.folder)


@contextlib.contextmanager
def _ended_by_signals() -> Iterator[None]:
    """SIGTERM and a closed terminal end the block as ctrl-C does, so that its processes are ended too."""

    def stop(_number: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _all_alive(parents: Mapping[str, subprocess.Popen[bytes]], made: Consortium) -> None:
    for name, parent in parents.items():
        if parent.poll() is not None:
            log = made.kit(name) / "console.log"
            raise admin.AdminError(f"the process of {name} ended with status {parent.returncode} (its words: {log})")
