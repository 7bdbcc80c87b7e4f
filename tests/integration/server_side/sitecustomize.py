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


def _obey(folder: Path) -> None:
    """Sends each order in `folder` to a site as NVFlare's server sends commands, but without a word on who asks."""
    from nvflare.fuel.f3.cellnet.core_cell import CoreCell
    from nvflare.fuel.f3.cellnet.utils import new_cell_message
    from nvflare.private.admin_defs import Message

    folder.mkdir(parents=True, exist_ok=True)
    while True:
        for path in sorted(folder.glob("*.order")):
            order = json.loads(path.read_text())
            body: Any = Path(order["body_file"]).read_bytes() if "body_file" in order else order["body"]
            message = Message(topic=order["topic"], body=body)
            message.set_headers(order.get("headers", {}))
            request = new_cell_message({}, message)
            reply = CoreCell.ALL_CELLS["server"].send_request("admin", "admin", order["site"], request, timeout=5.0)
            said = reply.payload if isinstance(reply.payload, Message) else None
            answer = {"code": reply.get_header("cn__return_code"), "body": str(said.body if said else None)}
            path.with_suffix(".partial").write_text(json.dumps(answer))
            path.unlink()
            path.with_suffix(".partial").rename(path.with_suffix(".answer"))
        time.sleep(0.2)


if TAP and any("nvflare.private.fed.app.server" in part for part in sys.orig_argv):
    _tap(Path(TAP))
    if any("server_train" in part for part in sys.orig_argv):
        threading.Thread(target=_obey, args=(Path(TAP) / "orders",), daemon=True).start()
