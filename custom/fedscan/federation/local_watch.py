"""`fedscan job watch RUN` for a run on this machine: its rounds.jsonl as it grows."""

from __future__ import annotations

import time
from pathlib import Path

from fedscan.federation import job_folder, processes, records, run_lines
from fedscan.federation.findings import JobError
from fedscan.federation.local_run import RUN_FILE, Listener, Progress, RunError

_IDLE_S = 20.0
"""Between two attempts of one command no process works for some seconds."""


def watch(out: Path, listen: Listener) -> None:
    """Shows every round until the run is done or nobody works on it any more. Raises RunError."""
    if not (out / RUN_FILE).exists():
        raise RunError(f"{out} holds no run (it has no {RUN_FILE}): start one with `fedscan job run`")
    try:
        plan = job_folder.read_plan(out / "job")
    except JobError as error:
        raise RunError(str(error)) from None
    shown, busy = 0, time.monotonic()
    while True:
        seen = list(records.read(out / "rounds.jsonl"))
        for record in seen[shown:]:
            text = run_lines.describe(record, plan)
            if record.event == "round":
                text += f"; {run_lines.outlook(seen[: seen.index(record) + 1], plan)}"
            listen(Progress(text, record))
        shown = len(seen)
        if seen and seen[-1].event == "finished":
            return
        if processes.belonging_to(out):
            busy = time.monotonic()
        elif time.monotonic() - busy > _IDLE_S or (seen and seen[-1].event == "stopped"):
            raise RunError(f"nobody works on {out}: go on with `fedscan job resume {out}`")
        time.sleep(1.0)
