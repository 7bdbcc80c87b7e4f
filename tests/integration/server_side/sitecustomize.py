"""Loaded by Python at the start of the server's processes in a test: writes down every frame that they receive."""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from pathlib import Path
from typing import Any

TAP = os.environ.get("FEDSCAN_TEST_TAP")


def _tap(folder: Path) -> None:
    from nvflare.fuel.f3.sfm import conn_manager

    folder.mkdir(parents=True, exist_ok=True)
    handle = os.open(folder / f"{os.getpid()}.frames", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    lock = threading.Lock()
    original = conn_manager.ConnManager.process_frame_task

    def process_frame_task(self: Any, sfm_conn: Any, frame: Any) -> None:
        endpoint = sfm_conn.sfm_endpoint
        name = endpoint.endpoint.name if endpoint else ""
        head = json.dumps({"from": name, "bytes": len(frame), "time": time.time()}).encode() + b"\n"
        with lock:
            os.write(handle, head + bytes(frame))
        original(self, sfm_conn, frame)

    conn_manager.ConnManager.process_frame_task = process_frame_task


if TAP and any("nvflare.private.fed.app.server" in part for part in sys.orig_argv):
    _tap(Path(TAP))
