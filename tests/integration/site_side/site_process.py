"""Starts a site's job process over and over, without NVFlare and without the seconds that libraries take to load.

Reads JSON lines from standard input. {"start": FILE}: forks the process that FILE describes, in a process group of its
own, and prints its id. {"wait": ID}: its exit status. The forked process is what a site's job process is: it admits its
job, charges, has a trainer child train, keeps, and hands the reply through the guard to a "server" at a socket.
"""

from __future__ import annotations

import ctypes
import json
import os
import subprocess
import sys
import time
from multiprocessing.connection import Client, Connection
from pathlib import Path
from typing import Any, NoReturn

import opacus  # noqa: F401 - loaded once, for all that are forked
import torch
from monai.networks.nets import DiffusionModelUNet  # noqa: F401 - as opacus
from nvflare.apis.dxo import DXO, DataKind
from safetensors.torch import load, save

import fedscan.training.private_round
import fedscan.training.site_state
import fedscan.training.tensor_file  # noqa: F401 - as opacus
from fedscan.federation.answer_form import form_of
from fedscan.federation.guard import fresh_reply
from fedscan.federation.messages import META_KEY, parse_task
from fedscan.federation.paid_round import PaidTraining
from fedscan.federation.places import SitePlaces
from fedscan.federation.site_job import SiteJob
from fedscan.federation.site_setup import SiteSetup
from fedscan.plan import Plan, Submission
from fedscan.privacy import charging
from fedscan.privacy.facts import Submitter
from fedscan.training import trainer, trainer_client, trainer_replies
from fedscan.training.site_store import store_facts

PR_SET_CHILD_SUBREAPER = 36
LEAD = Submitter(name="lead@fedscan.local", fingerprint="ab" * 32)


class Forked(subprocess.Popen[bytes]):
    """A trainer child that is forked instead of executed: the same `main`, in a process of its own, with pipes."""

    def _execute_child(self, *arguments: Any) -> None:
        pipes: tuple[int, ...] = arguments[10:16]
        read_in, _, _, write_out, _, errors = pipes
        pid = os.fork()
        if pid == 0:
            _be_trainer(read_in, write_out, errors)
        self.pid = pid
        self._child_created = True
        for file in (read_in, write_out):
            os.close(file)


def _be_trainer(read_in: int, write_out: int, errors: int) -> NoReturn:
    os.dup2(read_in, 0)
    os.dup2(write_out, 1)
    os.dup2(errors, 2)
    os.closerange(3, 256)  # as an executed child: no lock and no socket of its parent stays open in it
    try:
        sys.stdin = open(0, closefd=False)  # noqa: SIM115 - the process's own
        sys.stderr = open(2, "w", buffering=1, closefd=False)  # noqa: SIM115 - as above
        trainer.main()
    except BaseException:  # noqa: BLE001 - the process ends here, and its log says why
        sys.excepthook(*sys.exc_info())  # type: ignore[arg-type]
    finally:
        os._exit(1)


def site(described: dict[str, Any]) -> None:
    """The job process, from its start to the server's word that the run is complete."""
    if not described["cold"]:
        trainer_client.subprocess.Popen = Forked  # type: ignore[misc]
    plan = Plan.model_validate(described["plan"])
    submission = Submission.model_validate(described["submission"])
    setup = SiteSetup.of(SitePlaces(site_file=Path(described["site"])))
    assert setup.site is not None
    verdict = charging.admit(
        setup.site, described["plan"], described["submission"], submitter=LEAD, store=store_facts(setup.store)
    )
    assert verdict.ok, verdict.reasons
    training = PaidTraining(setup, plan, submission, setup.site.name, LEAD)
    job = SiteJob(plan, submission, setup, training)
    job.warm_up()
    with Client(described["socket"], family="AF_UNIX") as server:
        while (record := json.loads(server.recv_bytes())) != "complete":
            _one_round(server, job, training, record, described["answer_within_s"])
        job.complete()
        training.stop()
        server.send_bytes(b'"bye"')


def _one_round(server: Connection, job: SiteJob, training: PaidTraining, record: Any, within_s: float) -> None:
    weights = load(server.recv_bytes())
    due = time.monotonic() + within_s
    try:
        answer, update = training.train_until(parse_task(record), weights, lambda: False, due)
    except trainer_replies.TrainerDied as died:
        server.send_bytes(json.dumps({"refused": str(died)}).encode())
        return
    reply = DXO(DataKind.WEIGHT_DIFF, data=update, meta={META_KEY: answer.model_dump(mode="json")}).to_shareable()
    allowed = fresh_reply(reply, job.plan, job.submission, job.setup)["DXO"]
    server.send_bytes(json.dumps(allowed["meta"][META_KEY]).encode())
    server.send_bytes(save(allowed["data"]))


def _forked(described: dict[str, Any]) -> NoReturn:
    os.setsid()
    os.environ["FEDSCAN_TEST_STEPS"] = described["steps"]
    log = os.open(described["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(log, 1)
    os.dup2(log, 2)
    status = 1
    try:
        site(described)
        status = 0
    except BaseException:  # noqa: BLE001 - the process ends here, and its log says why
        sys.excepthook(*sys.exc_info())  # type: ignore[arg-type]
    finally:
        os._exit(status)


def _wait(pid: int) -> int:
    """The exit status of the process, once it and whatever was left behind by it have ended."""
    _, status = os.waitpid(pid, 0)
    while True:
        try:
            os.waitpid(-1, 0)
        except ChildProcessError:
            return os.waitstatus_to_exitcode(status)


def main() -> None:
    """Serves until the end of the input."""
    torch.set_num_threads(1)
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    form_of(Plan.model_validate(json.loads(Path(sys.argv[1]).read_text())))
    print("ready", flush=True)
    for line in sys.stdin:
        order = json.loads(line)
        if "wait" in order:
            print(_wait(order["wait"]), flush=True)
            continue
        described = json.loads(Path(order["start"]).read_text())
        pid = os.fork()
        if pid == 0:
            _forked(described)
        print(pid, flush=True)


if __name__ == "__main__":
    main()
