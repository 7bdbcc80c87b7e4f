"""STATE/refusals.jsonl: why this site did not go along, for its own people; the server learns one constant."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from fedscan.federation.audit_log import AuditError, AuditLog

FILE = "refusals.jsonl"
MAX_BYTES = 8 * 2**20
"""A larger file becomes FILE.old first: nobody fills a site's disk by asking."""
_MAX_REASONS = 50


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
    with contextlib.suppress(AuditError):
        run = f" in run {run_id}" if run_id else ""
        AuditLog(state).append("refused", f"{phase}{run}: {'; '.join(reasons)}", job=job)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    try:
        os.write(descriptor, json.dumps(entry).encode() + b"\n")
    finally:
        os.close(descriptor)
