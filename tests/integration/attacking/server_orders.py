"""Orders to sites that the lab's server sends past NVFlare's own code; `server_side/sitecustomize.py` obeys."""

from __future__ import annotations

import json
import time
from typing import Any

from nvflare.private.defs import RequestHeader

LIMIT_S = 120.0


def order(lab: Any, site: str, topic: str, body: str | bytes = "", **headers: Any) -> dict[str, str]:
    """What the site answers: `code` of the message, and its `body`."""
    folder = lab.folder / "tap" / "orders"
    name = f"{site}-{time.monotonic_ns()}"
    wanted: dict[str, Any] = {"site": site, "topic": topic, "headers": headers}
    if isinstance(body, bytes):
        (folder / f"{name}.body").write_bytes(body)
        wanted["body_file"] = str(folder / f"{name}.body")
    else:
        wanted["body"] = body
    (folder / f"{name}.partial").write_text(json.dumps(wanted))
    (folder / f"{name}.partial").rename(folder / f"{name}.order")
    deadline = time.monotonic() + LIMIT_S
    while time.monotonic() < deadline:
        if (folder / f"{name}.answer").exists():
            answer: dict[str, str] = json.loads((folder / f"{name}.answer").read_text())
            return answer
        time.sleep(0.1)
    raise AssertionError("the server sent no order")


def deploy(lab: Any, site: str, app: bytes, job_id: str, meta: dict[str, Any]) -> dict[str, str]:
    """An app's archive, as the server sends it before a job starts."""
    named = {RequestHeader.JOB_ID: job_id, RequestHeader.JOB_META: meta, RequestHeader.APP_NAME: "app_client"}
    return order(lab, site, "train.deploy", app, **named)
