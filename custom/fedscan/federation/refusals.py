"""STATE/refusals.jsonl: why this site did not go along, for its own people; the server learns one constant."""

from __future__ import annotations

import contextlib
import json
import os
import threading
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from fedscan.federation.audit_log import AuditError, AuditLog
from fedscan.federation.hourly import Hour

FILE = "refusals.jsonl"
MAX_BYTES = 8 * 2**20
"""A larger file becomes FILE.old first: nobody fills a site's disk by asking."""
_MAX_REASONS = 50
_lock = threading.Lock()
_hours: dict[Path, Hour] = {}


def note(state: Path, phase: str, reasons: Sequence[str], run_id: str | None = None, job: str = "") -> None:
    """Appends one line (file mode 0600). `job` is NVFlare's id, where it is known. Raises OSError."""
    state.mkdir(mode=0o700, parents=True, exist_ok=True)
    path = state / FILE
    if path.exists() and path.stat().st_size > MAX_BYTES:
        os.replace(path, state / f"{FILE}.old")
    entry = {
        "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
        "phase": phase,
        "run_id": run_id,
        "reasons": [reason[:1000] for reason in reasons[:_MAX_REASONS]],
    }
    # A chain that was cut is not continued: `fedscan audit log --verify` says so, and this file goes on.
    run = f" in run {run_id}" if run_id else ""
    with _lock:
        hour = _hours.setdefault(state, Hour(time.monotonic()))
        texts = [*hour.texts(f"{phase}{run}: {'; '.join(reasons)}", time.monotonic())]
    with contextlib.suppress(AuditError):
        for text in texts:
            AuditLog(state).append("refused", text, job=job)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    try:
        os.write(descriptor, json.dumps(entry).encode() + b"\n")
    finally:
        os.close(descriptor)
