"""A job's process at a site ends with its parent, also where that dies while the job's process starts.

NVFlare 2.9 (ClientAppRunner.notify_job_status) tells its parent of its start until it is heard: a parent that is gone
for ever and without a pause, which keeps a core busy and the log full.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import time

import psutil

from fedscan.federation import site_processes

GRACE_S = 30.0
"""For NVFlare's own end, which lets the trainer stop and the last bytes be counted."""
LOOK_S = 1.0


def end_with_parent() -> None:
    """From now on this process, if it is a job's at a site, ends `GRACE_S` after its parent at the latest."""
    if site_processes.SITE_JOB in sys.orig_argv:
        threading.Thread(target=_watch, args=(os.getppid(),), name="parent_watch", daemon=True).start()


def _watch(parent: int) -> None:
    # The parent may have died before this was called: then this is another process, init's or a supervisor's.
    if _is_sites(parent):
        while os.getppid() == parent:
            time.sleep(LOOK_S)
    time.sleep(GRACE_S)
    os._exit(1)


def _is_sites(parent: int) -> bool:
    with contextlib.suppress(psutil.Error):
        return site_processes.SITE_PARENT in psutil.Process(parent).cmdline()
    return False
