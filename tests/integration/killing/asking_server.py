"""The server of a site that is killed, without NVFlare: what left the site is known here."""

from __future__ import annotations

import json
import random
import secrets
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from ledger_checks import DELTA, Left
from safetensors.torch import load, save

from fedscan.federation import kept_answer
from fedscan.federation.messages import PrivateAnswer, Task
from fedscan.plan import Plan
from fedscan.training.weights import Weights, digest, initial_weights

SITE = "hosp-a"
ROUNDS, STEPS = 3, 2
MOST_REFUSALS = 20
"""Of one site over all its lives: a trainer that dies twice in a round makes the site refuse."""


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
