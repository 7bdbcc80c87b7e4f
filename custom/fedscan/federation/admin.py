"""NVFlare's admin API, as far as a run needs it: log in, see the sites, submit, ask for the status."""

from __future__ import annotations

import contextlib
import io
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from nvflare.fuel.flare_api.api_spec import AuthenticationError, InternalError, NoConnection, SessionClosed
from nvflare.fuel.flare_api.flare_api import Session, new_secure_session

START_TIMEOUT_S = 180.0


class AdminError(RuntimeError):
    """The federation cannot be reached or does not do what was asked; the text says what."""


@contextlib.contextmanager
def session(admin_kit: Path, user: str, check: Callable[[], None]) -> Iterator[Session]:
    """A logged-in session; tried until the server is up. `check` is called between tries and may raise."""
    deadline = time.monotonic() + START_TIMEOUT_S
    while True:
        check()
        try:
            # NVFlare prints to stdout while it connects; stdout belongs to our own results.
            with contextlib.redirect_stdout(io.StringIO()):
                opened = new_secure_session(username=user, startup_kit_location=str(admin_kit), timeout=5)
            break
        except (NoConnection, InternalError, AuthenticationError, ConnectionError, TimeoutError) as error:
            if time.monotonic() > deadline:
                raise AdminError(f"the server took no connection in {START_TIMEOUT_S:.0f} s") from error
            time.sleep(0.3)
    try:
        yield opened
    finally:
        opened.close()


def wait_for_sites(opened: Session, sites: Sequence[str], check: Callable[[], None]) -> None:
    """Returns when all these sites have registered. Raises AdminError naming the missing ones."""
    deadline = time.monotonic() + START_TIMEOUT_S
    while True:
        check()
        missing = set(sites) - {client.name for client in opened.get_system_info().client_info}
        if not missing:
            return
        if time.monotonic() > deadline:
            raise AdminError(f"these sites did not register in {START_TIMEOUT_S:.0f} s: {', '.join(sorted(missing))}")
        time.sleep(0.2)


def submit(opened: Session, job: Path) -> str:
    """Signs and submits a job folder. Returns NVFlare's job id."""
    return str(opened.submit_job(str(job.resolve())))


def status(opened: Session, job_id: str) -> str:
    """NVFlare's word on a job ("RUNNING", "FINISHED:COMPLETED", ...); "unknown" while the server does not answer."""
    try:
        return str(opened.get_job_meta(job_id).get("status", ""))
    except (InternalError, NoConnection, SessionClosed, ConnectionError, TimeoutError):
        return "unknown"
