"""A site that is killed and started again, over two jobs in one ledger."""

from __future__ import annotations

import json
import os
import random
import signal
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
from asking_server import STEPS, Job, Server, listening
from ledger_checks import check_left, check_steps, ledger_copy, sha256_of, steps_noted

from fedscan.federation import kept_answer
from fedscan.plan import Submission
from fedscan.privacy.event import Event
from fedscan.privacy.site_file import Site

SIDE = Path(__file__).parent.parent / "site_side"
COLD_EVERY = 8
"""So many starts have a forked trainer child, which is fast; then one has the executed one."""


class Starter:
    """The process that forks the site's."""

    def __init__(self, plan: Path) -> None:
        environment = os.environ | {"PYTHONPATH": str(SIDE), "FEDSCAN_TEST_STEPS": os.devnull, "OMP_NUM_THREADS": "1"}
        self._process = subprocess.Popen(
            [sys.executable, str(SIDE / "site_process.py"), str(plan)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment,
            text=True,
        )
        assert self._said() == "ready"

    def _said(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline().strip()

    def ask(self, **order: Any) -> int:
        """What it answers to an order."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()
        return int(self._said())

    def end(self) -> None:
        """Ends it."""
        self._process.kill()
        self._process.communicate()


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def _kill(pid: int, victim: str) -> bool:
    """Whether the site itself goes on. Raises where the process is gone."""
    children = psutil.Process(pid).children()
    if victim == "trainer" and children:
        children[0].kill()
        return True
    (os.kill if victim == "site" else os.killpg)(pid, signal.SIGKILL)
    return False


class Hospital:
    """A site that is killed and started again."""

    def __init__(
        self, folder: Path, site_json: Path, starter: Starter, rng: random.Random, lasted: list[float]
    ) -> None:
        """`lasted`: seconds of earlier lives that no kill ended, on this machine as it is now."""
        self.folder, self.site_json, self.starter, self.rng, self.lasted = folder, site_json, starter, rng, lasted
        self.server = Server(rng)
        self.steps = folder / "steps.jsonl"
        self.state = Site.open(site_json).state
        self.kills: Counter[str] = Counter()
        self.hit: Counter[str] = Counter()
        self._starts = 0
        self._events: list[Event] = []
        self._states: dict[Path, str] = {}
        self._asked = 0

    def live(self, kills: int) -> int:
        """One start of the site; the number of kills that hit it. Without any it must end by itself, well."""
        job = self.server.job
        assert job is not None
        self._starts += 1
        self.server.start_round = job.round_number
        described = {
            "plan": job.plan.model_dump(mode="json"),
            "submission": Submission.new(run_id=job.run_id, start_round=job.round_number).model_dump(mode="json"),
            "site": str(self.site_json),
            "socket": str(self.folder / f"{self._starts}.sock"),
            "steps": str(self.steps),
            "log": str(self.folder / "site.log"),
            "cold": self._starts % COLD_EVERY == 0,
            "answer_within_s": 60.0,
        }
        order = self.folder / "start.json"
        order.write_text(json.dumps(described))
        with listening(Path(described["socket"]), self.server, job):
            began = time.monotonic()
            pid = self.starter.ask(start=str(order))
            done = self._kill_some(pid, job, kills)
            status = self.starter.ask(wait=pid)
        if status == 0:
            self.lasted += [] if done else [time.monotonic() - began]
        else:
            assert done, f"the site ended by itself: {(self.folder / 'site.log').read_text()[-3000:]}"
            assert status == -signal.SIGKILL, (self.folder / "site.log").read_text()[-3000:]
            self.hit[self._stage(job)] += 1
        self.check()
        return done

    def _kill_some(self, pid: int, job: Job, kills: int) -> int:
        for number in range(kills):
            moment = self.rng.choice(
                (self._after_a_while, self._when_ledger_grows, self._when_run_changes, self._when_a_step_begins)
            )
            moment(pid, job)
            if not is_alive(pid):
                return number
            victim = self.rng.choice(("group", "site", "trainer", "site"))
            try:
                goes_on = _kill(pid, victim)
            except (ProcessLookupError, psutil.NoSuchProcess):  # it ended since it was looked at
                return number
            self.kills[f"{victim}, {moment.__name__.strip('_').replace('_', ' ')}"] += 1
            if not goes_on:
                return number + 1
        return kills

    def _after_a_while(self, pid: int, job: Job) -> None:
        self._look(pid, lambda: None, 0, self.rng.uniform(0.0, statistics.median(self.lasted)))

    def _when_ledger_grows(self, pid: int, job: Job) -> None:
        ledger = self.site_json.parent / "ledger.jsonl"
        self._look(pid, lambda: ledger.stat().st_size, self.rng.randint(1, 4), self.rng.uniform(0.0, 0.02))

    def _when_run_changes(self, pid: int, job: Job) -> None:
        run = self.state / job.run_id

        def names() -> list[tuple[str, int]]:
            return sorted((e.name, e.inode()) for e in os.scandir(run)) if run.is_dir() else []

        self._look(pid, names, self.rng.randint(1, 12), self.rng.uniform(0.0, 0.01))

    def _when_a_step_begins(self, pid: int, job: Job) -> None:
        self._look(pid, lambda: self.steps.exists() and self.steps.stat().st_size, self.rng.randint(1, 6), 0.0)

    @staticmethod
    def _look(pid: int, what: Callable[[], object], changes: int, then_s: float) -> None:
        """Waits until `what` has changed so often, and a moment more; no longer than the site lives."""
        deadline = time.monotonic() + 30.0
        seen = what()
        while changes > 0 and is_alive(pid) and time.monotonic() < deadline:
            if (now := what()) != seen:
                seen, changes = now, changes - 1
            time.sleep(0.0005)
        until = time.monotonic() + then_s
        while (left := until - time.monotonic()) > 0.0 and is_alive(pid):
            time.sleep(min(left, 0.05))

    def _stage(self, job: Job) -> str:
        """Where the last kill hit, for the report."""
        with ledger_copy(self.site_json) as ledger:
            entries = [line.number for line in ledger.lines if ledger.paid_for(line.number)]
            if not entries:
                return "before the first charge"
            paid = ledger.paid_for(entries[-1])
            assert paid is not None
            if paid.answer_sha256 is not None:
                return "after an answer was noted"
            taken = sum(step["charge"] == entries[-1] for step in steps_noted(self.steps))
        kept = kept_answer.find(self.state / job.run_id)
        if kept is not None and kept.entry == entries[-1]:
            return "between keeping and noting an answer"
        return {0: "between a charge and its first step", STEPS: "in or after the last step"}.get(taken, "in the steps")

    def check(self) -> None:
        """Everything that must hold at a site that is not running."""
        with ledger_copy(self.site_json) as ledger:
            assert ledger.events()[: len(self._events)] == self._events, "what was charged is no longer charged"
            self._events = ledger.events()
            check_steps(ledger, steps_noted(self.steps))
            check_left(ledger, self.server.left)
        asked = {round_number for _, round_number in self.server.asked[self._asked :]}
        self._asked = len(self.server.asked)
        now = {p: sha256_of(p) for p in self.state.glob("*/round-?????.safetensors")}
        for path, sha256 in self._states.items():
            if path in now and int(path.stem.removeprefix("round-")) not in asked:
                assert now[path] == sha256, f"{path.name}: the state after an earlier round changed"
        self._states = now
