"""Where this folder is on PYTHONPATH: the job process of FEDSCAN_TEST_REPLAYER sends answers that nobody asked it for.

In each round of its first job it does the act of that number; in the first round of its second job it gives the first
job's answer. It has neither guard nor gate. The site FEDSCAN_TEST_VICTIM says which task it has.
"""

from __future__ import annotations

import copy
import os
import sys
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

sys.path.append(str(Path(__file__).resolve().parent.parent / "changing"))
from change_on_import import on_import

SHARED = Path(os.environ.get("FEDSCAN_TEST_REPLAYS", "."))
REPLAYER, VICTIM = os.environ.get("FEDSCAN_TEST_REPLAYER", ""), os.environ.get("FEDSCAN_TEST_VICTIM", "")
WAIT_S = 30.0
TASK_ID = "__task_id__"
Send = Callable[[Any], Any]
_kept: list[Any] = []
_other_job: list[str] = []


def honest(answer: Any, send: Send) -> Any:
    return send(answer)


def twice(answer: Any, send: Send) -> Any:
    second = copy.deepcopy(answer)
    said = send(answer)
    send(second)
    return said


def an_old_one_before_it(answer: Any, send: Send) -> Any:
    """Of round 0, with its task's identity."""
    send(copy.deepcopy(_kept[0]))
    return send(answer)


def an_old_one_in_its_place(answer: Any, send: Send) -> Any:
    """Of round 0, under this round's task."""
    answer["DXO"] = copy.deepcopy(_kept[0]["DXO"])
    return send(answer)


def one_of_another_job_before_it(answer: Any, send: Send) -> Any:
    _other_job.append(str(uuid.uuid4()))
    send(copy.deepcopy(answer))
    _other_job.clear()
    return send(answer)


def one_for_another_site_before_it(answer: Any, send: Send) -> Any:
    theirs = copy.deepcopy(answer)
    theirs.add_cookie(TASK_ID, _told(SHARED / "task"))
    send(theirs)
    (SHARED / "sent").write_text("")
    return send(answer)


def of_a_task_that_never_was(answer: Any, send: Send) -> Any:
    none = copy.deepcopy(answer)
    none.add_cookie(TASK_ID, str(uuid.uuid4()))
    send(none)
    return send(answer)


ACTS: tuple[Callable[[Any, Send], Any], ...] = (
    honest,
    twice,
    an_old_one_before_it,
    an_old_one_in_its_place,
    one_of_another_job_before_it,
    one_for_another_site_before_it,
    of_a_task_that_never_was,
    honest,
)


def _told(path: Path) -> str:
    until = time.monotonic() + WAIT_S
    while not path.exists() and time.monotonic() < until:
        time.sleep(0.1)
    return path.read_text()


def _replayer(answer: Any, send: Send) -> Any:
    import torch

    number, first = answer["DXO"]["meta"]["fedscan"]["round_number"], SHARED / "first"
    if number == 0 and first.exists():
        answer["DXO"] = torch.load(first, weights_only=False)
    elif number == 0:
        torch.save(copy.deepcopy(answer["DXO"]), first)
        _kept.append(copy.deepcopy(answer))
    if not _kept:  # the second job
        return send(answer)
    print(f"round {number}: {ACTS[number].__name__}", flush=True)
    return ACTS[number](answer, send)


def _victim(answer: Any, send: Send) -> Any:
    """It has not answered yet when the other one answers for it."""
    if ACTS[answer["DXO"]["meta"]["fedscan"]["round_number"]] is one_for_another_site_before_it:
        (SHARED / "partial").write_text(answer.get_cookie(TASK_ID))
        (SHARED / "partial").rename(SHARED / "task")
        _told(SHARED / "sent")
    return send(answer)


def _communicator(module: ModuleType) -> None:
    submit, peer_context = module.Communicator.submit_update, module.gen_new_peer_ctx

    def submit_update(self: Any, *arguments: Any, **named: Any) -> Any:
        before, (name, answer), after = arguments[:4], arguments[4:6], arguments[6:]

        def send(one: Any) -> Any:
            return submit(self, *before, name, one, *after, **named)

        act = {REPLAYER: _replayer, VICTIM: _victim}.get(name)
        return act(answer, send) if act is not None and "DXO" in answer else send(answer)

    def gen_new_peer_ctx(fl_ctx: Any) -> Any:
        made = peer_context(fl_ctx)
        if _other_job:
            made.set_prop("__run_num__", _other_job[0], private=False, sticky=False)
        return made

    module.Communicator.submit_update = submit_update
    module.gen_new_peer_ctx = gen_new_peer_ctx  # type: ignore[attr-defined]


if REPLAYER and any(part.endswith("worker_process") for part in sys.orig_argv):
    on_import({"nvflare.private.fed.client.communicator": _communicator})
