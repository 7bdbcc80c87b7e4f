"""NVFlare's admin API, as far as a run needs it: log in, see the sites, submit, watch, abort, download."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.x509.oid import NameOID
from nvflare.apis.fl_exception import FLCommunicationError
from nvflare.fuel.f3.cellnet.cell_cipher import InvalidCertChain
from nvflare.fuel.flare_api.api_spec import (
    AuthenticationError,
    AuthorizationError,
    InternalError,
    InvalidJobDefinition,
    JobNotDone,
    JobNotFound,
    JobNotRunning,
    NoConnection,
    NoReply,
    SessionClosed,
)
from nvflare.fuel.flare_api.flare_api import Session, new_secure_session

from fedscan.federation import job_form, safe_download

START_TIMEOUT_S = 180.0
_NOT_YET = (NoConnection, InternalError, AuthenticationError, FLCommunicationError, ConnectionError, TimeoutError)
ADMIN_JSON = Path("startup") / "fed_admin.json"
_CERTIFICATE = Path("startup") / "client.crt"
_UNHEARD = logging.NullHandler()
"""NVFlare warns of each try that finds no server, which is printed where a logger has no handler, or where a library
has given the root one (Opacus does). What counts of it is raised."""


class AdminError(RuntimeError):
    """The federation cannot be reached or does not do what was asked; the text says what."""


class UnreachableError(AdminError):
    """No connection, or a session that the server no longer knows: worth another try."""


class NotNowError(AdminError):
    """The job is not in the state that the command needs: not running, not ended, loading, or about to end."""


class NotAllowedError(AdminError):
    """The server's policy does not let this person do that."""


class UnknownJobError(AdminError):
    """The server knows no such job."""


def user_of(admin_kit: Path) -> str:
    """Whose admin kit this is: the common name of its certificate. Raises AdminError."""
    if not (admin_kit / ADMIN_JSON).is_file():
        raise AdminError(f"{admin_kit} is no admin kit (it has no {ADMIN_JSON}): name the folder that holds startup/")
    try:
        return str(_certificate(admin_kit).subject.get_attributes_for_oid(NameOID.COMMON_NAME)[0].value)
    except IndexError:
        raise AdminError(f"{admin_kit / _CERTIFICATE} names nobody") from None


def _certificate(admin_kit: Path) -> x509.Certificate:
    try:
        return x509.load_pem_x509_certificate((admin_kit / _CERTIFICATE).read_bytes())
    except (OSError, ValueError) as error:
        raise AdminError(f"{admin_kit / _CERTIFICATE} cannot be read: {type(error).__name__}") from None


def _must_hold(admin_kit: Path) -> None:
    """The server says nothing to a certificate that does not hold now: to ask it again would take for ever."""
    certificate, now = _certificate(admin_kit), datetime.now(UTC)
    if now > certificate.not_valid_after_utc:
        raise AdminError(
            f"{admin_kit}: its certificate ended on {certificate.not_valid_after_utc:%Y-%m-%d %H:%M} UTC. Ask the "
            "operator for a renewed kit and lay it in this one's place; what runs goes on meanwhile"
        )
    if now < certificate.not_valid_before_utc:
        raise AdminError(
            f"{admin_kit}: its certificate holds from {certificate.not_valid_before_utc:%Y-%m-%d %H:%M} UTC only: this "
            "machine's clock is behind"
        )


def project_of(admin_kit: Path) -> str:
    """The federation's name, as the kit says. Raises AdminError."""
    try:
        return str(json.loads((admin_kit / ADMIN_JSON).read_text(encoding="utf-8"))["admin"]["project_name"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise AdminError(f"{admin_kit / ADMIN_JSON} cannot be read: {type(error).__name__}") from None


@contextlib.contextmanager
def session(
    admin_kit: Path, user: str, check: Callable[[], None] = lambda: None, timeout_s: float = START_TIMEOUT_S
) -> Iterator[Session]:
    """A logged-in session; tried until the server is up. `check` is called between tries and may raise."""
    opened = _open(admin_kit, user, check, timeout_s)
    try:
        yield opened
    finally:
        opened.close()


def _open(admin_kit: Path, user: str, check: Callable[[], None], timeout_s: float) -> Session:
    warns = logging.getLogger("nvflare")
    warns.addHandler(_UNHEARD)
    warns.propagate = False
    deadline = time.monotonic() + timeout_s
    while True:
        check()
        _must_hold(admin_kit)
        try:
            # NVFlare prints to stdout while it connects; stdout belongs to our own results.
            with contextlib.redirect_stdout(io.StringIO()):
                return new_secure_session(username=user, startup_kit_location=str(admin_kit), timeout=5)
        except InvalidCertChain as error:
            raise AdminError(
                f"{admin_kit} is a kit of another federation than the server's: take the right one"
            ) from error
        except _NOT_YET as error:
            if time.monotonic() > deadline:
                raise UnreachableError(
                    f"the server took no connection in {timeout_s:.0f} s ({_words(error)}): is it running, and is its "
                    "host and port in the kit's startup/fed_admin.json reachable from here?"
                ) from error
            time.sleep(0.3)


@contextlib.contextmanager
def _plain_words(what: str) -> Iterator[None]:
    """NVFlare's errors as ours; whatever it prints is dropped."""
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    except (NoConnection, SessionClosed, AuthenticationError, ConnectionError, TimeoutError) as error:
        raise UnreachableError(f"{what}: the server did not answer ({_words(error)})") from error
    except AuthorizationError as error:
        raise NotAllowedError(
            f"{what}: the server's policy does not allow it to this kit (jobs belong to who submitted them)"
        ) from error
    except JobNotFound as error:
        raise UnknownJobError(f"{what}: the server knows no such job of yours") from error
    except (JobNotRunning, JobNotDone, NoReply) as error:
        raise NotNowError(f"{what}: {_words(error)}") from error
    except InvalidJobDefinition as error:
        raise AdminError(f"{what}: NVFlare does not take the job: {_words(error)}") from error
    except (InternalError, RuntimeError) as error:
        raise AdminError(f"{what}: {_words(error)}") from error


def _words(error: BaseException) -> str:
    return str(error).strip()[:300] or type(error).__name__


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


def connected(opened: Session) -> list[str]:
    """The sites that the server hears. Raises AdminError."""
    with _plain_words("sites"):
        return [str(client.name) for client in opened.get_system_info().client_info]


def submit(opened: Session, job: Path) -> str:
    """Signs and submits a copy of a job folder: NVFlare signs in place. Returns NVFlare's job id. Raises AdminError."""
    with tempfile.TemporaryDirectory(prefix="fedscan-") as folder, _plain_words("submit"):
        copy = Path(folder) / job.resolve().name
        shutil.copytree(job, copy, ignore=shutil.ignore_patterns(*job_form.NVFLARE_FILES))
        return str(opened.submit_job(str(copy)))


def status(opened: Session, job_id: str) -> str:
    """NVFlare's word on a job ("RUNNING", "FINISHED:COMPLETED", ...); "unknown" while the server does not answer."""
    try:
        return str(opened.get_job_meta(job_id).get("status", ""))
    except (InternalError, NoConnection, SessionClosed, ConnectionError, TimeoutError):
        return "unknown"


def meta(opened: Session, job_id: str) -> dict[str, Any]:
    """What NVFlare keeps of a job, with what our server notes there. Raises AdminError."""
    with _plain_words(f"job {job_id}"):
        return dict(opened.get_job_meta(job_id))


def ask_job(opened: Session, job_id: str, topic: str, data: dict[str, Any]) -> dict[str, Any]:
    """Asks the controller of a running job. Raises NotNowError while there is none, else AdminError."""
    with _plain_words(f"job {job_id}"):
        answer = opened.do_app_command(job_id, topic, data)
    if not isinstance(answer, dict):
        raise AdminError(f"job {job_id}: its answer is no JSON object")
    return answer


def abort(opened: Session, job_id: str) -> None:
    """Asks the server to end a job. Raises AdminError."""
    with _plain_words(f"abort of job {job_id}"):
        opened.abort_job(job_id)


def download(opened: Session, job_id: str, into: Path) -> Path:
    """A job's stored result below `into`: `workspace/` is what the server's job left. Raises AdminError."""
    with _plain_words(f"download of job {job_id}"):
        return safe_download.job_result(opened, job_id, into)
