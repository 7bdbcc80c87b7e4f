"""kill -9 at random moments of private training: the ledger never holds less than what was trained or left.

Most kills hit a site's job process and its trainer child, without NVFlare, over two jobs in one ledger; the server is
this test. What really happened is known from outside: every step is noted by `site_side/sitecustomize.py`, every answer
by the server that got it.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import secrets
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import psutil
import pytest
from safetensors.torch import load, save

from fedscan.federation import job_folder, kept_answer, processes, records
from fedscan.federation.messages import LedgerHead, PrivateAnswer, Task
from fedscan.plan import Plan, Submission
from fedscan.privacy.accounting import epsilon
from fedscan.privacy.event import Event, round_event
from fedscan.privacy.ledger import Head, Ledger
from fedscan.privacy.site_file import Site
from fedscan.training.weights import Weights, digest, initial_weights, public_weight

KILLS, QUICK_KILLS = 200, 8
KILLS_A_SITE = 25
"""Then the site must come to the end of its jobs undisturbed, and a new site, with a ledger of its own, is next."""
SITE = "hosp-a"
ROUNDS, STEPS, DELTA = 3, 2, 1e-3
SIDE = Path(__file__).parent / "site_side"
MOST_REFUSALS = 20
"""Of one site over all its lives: a trainer that dies twice in a round makes the site refuse."""
COLD_EVERY = 20
"""So many starts have a forked trainer child, which is fast; then one has the executed one."""


def plan_of(job: int) -> Plan:
    """The smallest network; the jobs differ in noise and sampling, so that their events do."""
    unet = {"channels": (8, 8), "attention_levels": (False, False), "norm_num_groups": 4, "num_head_channels": 8}
    privacy = {
        "noise_multiplier": (1.0, 1.25)[job],
        "delta": DELTA,
        "from_scratch": True,
        "sites": {SITE: {"sample_rate": 0.25 / (job + 1), "expected_patients_per_step": 3.0 / (job + 1)}},
    }
    return Plan.model_validate(
        {
            "model": {"preset": None, "unet": unet, "fold": 4},
            "rounds": ROUNDS,
            "weighting": "uniform",
            "training": {"local_steps": STEPS, "precision": "fp32"},
            "privacy": privacy,
        }
    )


@dataclass
class Job:
    """What the server knows of a job."""

    plan: Plan
    weights: Weights
    run_id: str = field(default_factory=lambda: secrets.token_hex(16))
    round_number: int = 0
    before: Weights | None = None


@dataclass(frozen=True)
class Left:
    """An answer of which something left the site; without a SHA-256 the rest of it was lost with the process."""

    record: PrivateAnswer
    sha256: str | None


class Server:
    """Asks a site for the rounds of its jobs. At times it loses an answer, or goes back to an older checkpoint."""

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self.jobs = [Job(plan_of(job), initial_weights(plan_of(job))) for job in range(2)]
        self.left: list[Left] = []
        self.refused: list[str] = []
        self.asked: list[tuple[str, int]] = []
        self.head: Any = None
        self.start_round = 0
        """Of the submission that is running: a site takes no round before it."""

    @property
    def job(self) -> Job | None:
        """The one that is running; None: all rounds of all jobs are done."""
        return next((job for job in self.jobs if job.round_number < ROUNDS), None)

    def serve(self, connection: Connection, job: Job) -> None:
        """Until the job is complete or the site is gone."""
        try:
            while job.round_number < ROUNDS:
                self._round(connection, job)
            connection.send_bytes(json.dumps("complete").encode())
            connection.recv_bytes()
        except (EOFError, ConnectionError):
            pass
        finally:
            connection.close()

    def _round(self, connection: Connection, job: Job) -> None:
        task = Task(
            plan_digest=job.plan.digest,
            run_id=job.run_id,
            round_number=job.round_number,
            model_digest=digest(job.weights),
            deadline_s=60.0,
            ledger=self.head,
        )
        self.asked.append((job.run_id, job.round_number))
        connection.send_bytes(task.model_dump_json().encode())
        connection.send_bytes(save(job.weights))
        said = json.loads(connection.recv_bytes())
        if "refused" in said:
            self.refused.append(said["refused"])
            assert len(self.refused) < MOST_REFUSALS, self.refused[-1]
            return
        record = PrivateAnswer.model_validate(said)
        self.left.append(Left(record, None))
        update = load(connection.recv_bytes())
        self.left[-1] = Left(record, kept_answer.answer_sha256(record, update))
        self._take(job, record, update)

    def _take(self, job: Job, record: PrivateAnswer, update: Weights) -> None:
        chance = self._rng.random()
        if chance < 0.15:
            return  # the server died before it wrote anything
        self.head = record.ledger
        if chance < 0.22 and job.before is not None and job.round_number > self.start_round:
            job.weights, job.before, job.round_number = job.before, None, job.round_number - 1
            return
        job.before = job.weights
        job.weights = {name: tensor + update[name] for name, tensor in job.weights.items()}
        job.round_number += 1


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


@contextmanager
def listening(path: Path, server: Server, job: Job) -> Iterator[None]:
    """The server at a socket, for one start of the site."""
    stop = threading.Event()
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen(1)
        listener.settimeout(0.05)

        def accept() -> None:
            while not stop.is_set():
                try:
                    connected, _ = listener.accept()
                except TimeoutError:
                    continue
                connected.setblocking(True)
                server.serve(Connection(connected.detach()), job)
                return

        thread = threading.Thread(target=accept)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def steps_noted(log: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []


def check_steps(ledger: Ledger, steps: Iterable[dict[str, Any]]) -> None:
    """No step was begun that an entry had not paid for, with this noise and sampling, and no entry paid twice."""
    taken = Counter(json.dumps(step, sort_keys=True) for step in ({**s, "pid": 0} for s in steps))
    events = []
    for text, count in taken.items():
        step = json.loads(text)
        paid = ledger.paid_for(step["charge"])
        assert paid is not None, f"a step was taken on entry {step['charge']}, which paid for nothing"
        assert (paid.charge.run_id, paid.charge.round_number) == (step["run"], step["round"])
        event = Event(**{k: step[k] for k in ("noise_multiplier", "sample_rate", "unit")}, steps=count)
        assert paid.charge.event.model_copy(update={"steps": count}) == event
        assert count <= paid.charge.event.steps, "more steps than were charged"
        events.append(event)
    assert epsilon(ledger.events(), DELTA) >= epsilon(events, DELTA)


def check_left(ledger: Ledger, left: Iterable[Left]) -> None:
    """Each answer that left was paid for by the entry that it names, which paid for no other."""
    for answer in left:
        head = answer.record.ledger
        assert ledger.contains(Head(head.count, head.mac))
        paid = ledger.paid_for(head.count)
        assert paid is not None
        charge, record = paid.charge, answer.record
        assert (charge.run_id, charge.plan_digest, charge.round_number, charge.model_digest) == (
            record.run_id,
            record.plan_digest,
            record.round_number,
            record.model_digest,
        )
        assert paid.answer_sha256 is not None, "an answer left that the ledger did not note"
        assert answer.sha256 in (None, paid.answer_sha256), "another answer left than the one that was paid for"


@contextmanager
def ledger_copy(site_json: Path) -> Iterator[Ledger]:
    """Opened from a copy: recovery is the site's own business."""
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "site"
        shutil.copytree(site_json.parent, copy, ignore=shutil.ignore_patterns("state"))
        (copy / "state").mkdir(mode=0o700)
        yield Site.open(copy / site_json.name).open_ledger()


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
            moment = self.rng.choice((self._after_a_while, self._when_ledger_grows, self._when_run_changes))
            moment(pid, job)
            if not is_alive(pid):
                return number
            victim = self.rng.choice(("group", "site", "trainer", "site"))
            children = psutil.Process(pid).children()
            self.kills[f"{victim}, {moment.__name__.strip('_').replace('_', ' ')}"] += 1
            if victim == "trainer" and children:
                children[0].kill()
                continue
            (os.kill if victim == "site" else os.killpg)(pid, signal.SIGKILL)
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
        now = {p: _sha256(p) for p in self.state.glob("*/round-?????.safetensors")}
        for path, sha256 in self._states.items():
            if path in now and int(path.stem.removeprefix("round-")) not in asked:
                assert now[path] == sha256, f"{path.name}: the state after an earlier round changed"
        self._states = now


@pytest.fixture(scope="module")
def starter(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Starter]:
    plan = tmp_path_factory.mktemp("starter") / "plan.json"
    plan.write_text(plan_of(0).model_dump_json())
    one = Starter(plan)
    yield one
    one.end()


@pytest.mark.timeout(3500)
@pytest.mark.parametrize("kills", [QUICK_KILLS, pytest.param(KILLS, marks=pytest.mark.slow)])
def test_no_step_is_uncharged_and_no_answer_unpaid_whenever_a_site_is_killed(
    kills: int, starter: Starter, make_site: Callable[..., Path]
) -> None:
    kills = int(os.environ.get("FEDSCAN_TEST_KILLS", kills))
    seed = int(os.environ.get("FEDSCAN_TEST_SEED", random.SystemRandom().randrange(10**6)))
    print(f"seed {seed}: FEDSCAN_TEST_SEED={seed} draws the same moments")
    rng, left = random.Random(seed), kills
    lasted: list[float] = []
    total: Counter[str] = Counter()
    hit: Counter[str] = Counter()
    while left:
        with ExitStack() as stack:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="kills-")))  # sockets need short paths
            hospital = Hospital(folder, make_site(folder, SITE, "max_epsilon=10000"), starter, rng, lasted)
            if not lasted:
                hospital.live(0)
            budget = min(left, KILLS_A_SITE)
            while hospital.server.job is not None:
                done = hospital.live(budget)
                budget, left = budget - done, left - done
            _check_end(hospital)
            total, hit = total + hospital.kills, hit + hospital.hit
            print(f"{kills - left} of {kills} kills, {len(hospital.server.left)} answers", flush=True)
    print(f"seed {seed}: {sum(total.values())} kills: {dict(total)}; hit: {dict(hit)}")
    assert sum(total.values()) == kills


def _check_end(hospital: Hospital) -> None:
    """Both jobs came to their end, and the real ledger, not a copy, says the same."""
    ledger = Site.open(hospital.site_json).open_ledger()
    check_left(ledger, hospital.server.left)
    check_steps(ledger, steps_noted(hospital.steps))
    noted = Counter(step["charge"] for step in steps_noted(hospital.steps))
    for answer in hospital.server.left:
        assert noted[answer.record.ledger.count] == STEPS, "the steps of an answer were not seen: this test is blind"
    for job in hospital.server.jobs:
        rounds = {a.record.round_number for a in hospital.server.left if a.record.run_id == job.run_id and a.sha256}
        assert rounds == set(range(ROUNDS))
        assert round_event(job.plan, SITE) in ledger.events()
    assert list(hospital.state.glob("*/.*.part")) == [], "what a killed writer left lies about for ever"
    answers = {a.sha256 for a in hospital.server.left if a.sha256}
    assert len(answers) <= len({a.record.ledger.count for a in hospital.server.left})
    assert all("trainer child" in reason for reason in hospital.server.refused)


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
        now = {p: _sha256(p) for p in self.run.glob("checkpoints/round-*.safetensors")}
        for path, sha256 in self._checkpoints.items():
            assert now.get(path, sha256) == sha256, f"{path.name} changed"
        self._checkpoints |= now


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


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


@pytest.mark.slow
@pytest.mark.timeout(3000)
def test_processes_of_a_private_federation_are_killed_one_after_another(
    repository: Path, tmp_path: Path, make_site: Callable[..., Path], private_settings: Callable[..., list[str]]
) -> None:
    seed = int(os.environ.get("FEDSCAN_TEST_SEED", random.SystemRandom().randrange(10**6)))
    print(f"seed {seed}")
    rng = random.Random(seed)
    sites = {name: make_site(tmp_path, name, "max_epsilon=10000") for name in ("hosp-a", "hosp-b")}
    more = ("rounds=12", "tries_per_round=10")
    plan = job_folder.new(repository / "jobs" / "ct_fedavg", tmp_path / "job", private_settings(*sites, settings=more))
    federation = Federation(tmp_path, sites, tmp_path / "job")
    killed = []
    for victim in rng.sample(sorted(VICTIMS), len(VICTIMS)):
        if federation.kill(VICTIMS[victim], rng.uniform(0.0, 25.0)):
            killed.append(victim)
        federation.go_on()
        federation.check(plan)
    federation.finish()
    federation.check(plan)
    print(f"seed {seed}: killed {killed}")
    assert len(killed) >= 5
    done = records.effective_rounds(federation.run / "rounds.jsonl")
    assert [r.round for r in done] == list(range(12))
    assert processes.belonging_to(federation.run) == []
