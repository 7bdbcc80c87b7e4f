"""A private run through NVFlare whose processes are killed one after another."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import psutil
from ledger_checks import check_steps, ledger_copy, sha256_of, steps_noted
from site_lives import SIDE

from fedscan.federation import processes, records
from fedscan.federation.messages import LedgerHead, PrivateAnswer
from fedscan.plan import Plan
from fedscan.privacy.ledger import Ledger
from fedscan.training.weights import public_weight

VICTIMS = {
    "trainer child": "fedscan.training.trainer",
    "site job process": "client.worker_process",
    "site parent": "client.client_train",
    "server job process": "server.runner_process",
    "server parent": "server.server_train",
    "whole command": "",
    "trainer child again": "fedscan.training.trainer",
}


class Federation:
    """A private run through NVFlare whose processes are killed one after another."""

    def __init__(self, folder: Path, sites: dict[str, Path], job: Path) -> None:
        self.run, self.sites, self.steps = folder / "RUN", sites, folder / "steps.jsonl"
        self._environment = os.environ | {"PYTHONPATH": str(SIDE), "FEDSCAN_TEST_STEPS": str(self.steps)}
        named = [f"--site={name}={path}" for name, path in sites.items()]
        self._first = ["job", "run", str(job), *named, "--out", str(self.run)]
        self._checkpoints: dict[Path, str] = {}
        self.command = self._start()

    def _start(self) -> subprocess.Popen[str]:
        arguments = ["job", "resume", str(self.run)] if (self.run / "run.json").exists() else self._first
        command = [sys.executable, "-m", "fedscan", *arguments]
        return subprocess.Popen(
            command, env=self._environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        )

    def kill(self, words: str, after_s: float) -> bool:
        """SIGKILL to the process with these words, after_s later than it was first seen; False where none came."""
        if not words:
            time.sleep(after_s)
            self.command.kill()
            return True
        deadline = time.monotonic() + 180.0
        while time.monotonic() < deadline and self.command.poll() is None:
            if self._find(words):
                time.sleep(after_s)
                for process in self._find(words)[:1]:
                    process.kill()
                    return True
            time.sleep(0.1)
        return False

    def _find(self, words: str) -> list[psutil.Process]:
        """Those of this run; a trainer child is known by its parent."""
        mine = processes.belonging_to(self.run)
        mine += [child for process in mine for child in process.children(recursive=True)]
        found = []
        for process in mine:
            with suppress(psutil.NoSuchProcess):
                if words in " ".join(process.cmdline()):
                    found.append(process)
        return found

    def go_on(self) -> None:
        """Where the command ended by what was killed, resumes the run."""
        end = time.monotonic() + 60.0
        while self.command.poll() is None and time.monotonic() < end:
            time.sleep(0.2)  # one that goes on without the killed process is left alone
        if self.command.poll() is not None and self.command.returncode != 0:
            self.command.communicate()
            self.command = self._start()

    def finish(self) -> None:
        for _ in range(4):
            _, words = self.command.communicate(timeout=900)
            if self.command.returncode == 0:
                return
            assert "fedscan job resume" in words or self.command.returncode == -signal.SIGKILL, words
            self.command = self._start()
        raise AssertionError("four resumes did not finish the run")

    def check(self, plan: Plan) -> None:
        """As `Hospital.check`, while the others run: what is read first was written first."""
        noted, rounds = steps_noted(self.steps), records.read(self.run / "rounds.jsonl")
        for name, path in self.sites.items():
            with ledger_copy(path) as ledger:
                check_steps(ledger, [step for step in noted if step["site"] == name])
                answers = [(r, r.sites[name].update_digest) for r in rounds if name in r.sites and r.event == "round"]
                for record, update_digest in answers:
                    if update_digest is not None:
                        assert _entries_of(ledger, plan, name, record.round, update_digest) == 1
        now = {p: sha256_of(p) for p in self.run.glob("checkpoints/round-*.safetensors")}
        for path, sha256 in self._checkpoints.items():
            assert now.get(path, sha256) == sha256, f"{path.name} changed"
        self._checkpoints |= now


def _entries_of(ledger: Ledger, plan: Plan, site: str, round_number: int | None, update_digest: str) -> int:
    """How many entries paid for exactly this update of this round: the answer is put together anew from the entry."""
    found = 0
    for line in ledger.lines:
        paid = ledger.paid_for(line.number)
        if paid is None or paid.charge.round_number != round_number:
            continue
        answer = PrivateAnswer(
            plan_digest=paid.charge.plan_digest,
            run_id=paid.charge.run_id,
            round_number=paid.charge.round_number,
            model_digest=paid.charge.model_digest,
            weight=public_weight(plan, site),
            ledger=LedgerHead(count=line.number, mac=line.mac),
        )
        text = f"{answer.model_dump_json()}\n{update_digest}"
        found += paid.answer_sha256 == hashlib.sha256(text.encode()).hexdigest()
    return found
