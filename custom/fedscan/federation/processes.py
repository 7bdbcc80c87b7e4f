"""The processes of a local federation: started to die with their parent, found again after a kill, stopped for sure."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil

from fedscan.federation import kit_files
from fedscan.federation.kits import SERVER, Federation

_PR_SET_PDEATHSIG = 1
_HANDED_ON = ("HOME", "LANG", "TMPDIR", "MPLCONFIGDIR", "OMP_NUM_THREADS")


def _die_with_parent() -> None:
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def environment(kit: Path) -> dict[str, str]:
    """For server and site processes, as the kit's start scripts set it, with this Python first on PATH."""
    return {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}",
        kit_files.KIT_VARIABLE: str(kit),
        "NVFLARE_SECURE_LOGGING": "true",
        "PYTHONSAFEPATH": "1",
        "NVFLARE_TENSOR_DOWNLOAD_CHUNK_SIZE": "8388608",
        "NVFLARE_STREAMING_MAX_BLOB_SIZE": "67108864",
        "NVFLARE_TENSOR_STREAMING_PER_REQUEST_TIMEOUT": "60",
        "MALLOC_ARENA_MAX": "4",
        "OMP_NUM_THREADS": "1",
        "PYTHONUNBUFFERED": "1",
    }


def start(federation: Federation, name: str) -> subprocess.Popen[bytes]:
    """Starts one participant's parent process from its kit, as the kit's sub_start.sh --once does."""
    kit = federation.kit(name)
    kind = "server" if name == SERVER else "client"
    who = [] if name == SERVER else [f"uid={name}"]
    org = "coordinator" if name == SERVER else "hospital"
    settings = ["secure_train=true", *who, f"org={org}", "config_folder=config"]
    command = [sys.executable, "-u", "-m", f"nvflare.private.fed.app.{kind}.{kind}_train"]
    command += ["-m", str(kit), "-s", f"fed_{kind}.json", "--set", *settings]
    (kit / "transfer").mkdir(exist_ok=True)
    return _spawn(kit, command, environment(kit))


def start_by_script(kit: Path) -> subprocess.Popen[bytes]:
    """Starts a server's or site's kit by its own sub_start.sh --once, which replaces itself by the parent process.

    Of this process's environment it has PATH (with this Python first) and a few places: the script sets the rest.
    """
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}"
    given = {name: os.environ[name] for name in _HANDED_ON if name in os.environ}
    script = kit.resolve() / "startup" / "sub_start.sh"
    return _spawn(kit.resolve(), [str(script), "--once"], given | {"PATH": path, "PYTHONUNBUFFERED": "1"})


def _spawn(kit: Path, command: list[str], env: dict[str, str]) -> subprocess.Popen[bytes]:
    """With its words in KIT/console.log, in a session of its own, and no longer alive than this process."""
    opened = os.open(kit / "console.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    with os.fdopen(opened, "ab") as console:
        return subprocess.Popen(  # nosec B603 # this Python or a kit's checked script, no shell
            command,
            cwd=kit,
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=console,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            umask=0o077,
            preexec_fn=_die_with_parent,  # noqa: PLW1509 - it calls prctl alone, which is safe after a fork
        )


def belonging_to(folder: Path) -> list[psutil.Process]:
    """All other NVFlare processes whose command line names a path below `folder`.

    Not each process that does: a shell whose script goes on with RUN's model, or an editor, is somebody else's.
    """
    found = []
    prefix = str(folder.resolve()) + os.sep
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied):
            command = process.cmdline()
            of_nvflare = any(part.startswith("nvflare.") for part in command)
            if process.pid != os.getpid() and of_nvflare and any(part.startswith(prefix) for part in command):
                found.append(process)
    return found


def wait_for_jobs(folder: Path, timeout_s: float) -> None:
    """Returns when the job processes have ended by themselves (they write their last counts then), or in time."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        if not [p for p in belonging_to(folder) if _is_job(p)]:
            return
        time.sleep(0.2)


def _is_job(process: psutil.Process) -> bool:
    with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied):
        return any(part.endswith((".worker_process", ".runner_process")) for part in process.cmdline())
    return False


def stop_all(folder: Path, grace_s: float = 5.0) -> int:
    """Ends every process that works below `folder`: asks, waits, then kills. Returns how many there were."""
    processes = belonging_to(folder)
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.terminate()
    _, alive = psutil.wait_procs(processes, timeout=grace_s)
    deadline = time.monotonic() + 30
    while alive and time.monotonic() < deadline:
        for process in alive:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        _, alive = psutil.wait_procs(belonging_to(folder), timeout=1)
    return len(processes)
