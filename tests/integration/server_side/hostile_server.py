"""A server that does not keep to the rules: it runs in place of the coordinator's controller, on its own machine."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from nvflare.apis.dxo import from_shareable
from nvflare.apis.fl_constant import ReservedTopic
from nvflare.apis.shareable import ReservedHeaderKey, Shareable
from nvflare.app_common.abstract.fl_model import FLModel

from fedscan.federation import messages
from fedscan.federation.job.controller import DiffusionFedAvg
from fedscan.federation.server_round import RunStoppedError
from fedscan.federation.versions import PROTOCOL
from fedscan.training.weights import digest

Change = Callable[[dict[str, Any]], dict[str, Any]]


class HostileFedAvg(DiffusionFedAvg):
    """Sends one crafted task after another, and writes down each reply in RUN/replies.jsonl."""

    def __init__(self) -> None:
        super().__init__()
        self._heard: list[dict[str, Any]] = []
        self._asking = ""

    def send_model(self, task_name: str, targets: list[str], data: FLModel, callback: Any) -> None:
        """All crafted tasks; then the run is over."""
        for name, change in self._records().items():
            self._ask(name, messages.TASK_TRAIN, targets, data, change)
        for name in ("export", "validate", "submit_model", "train2", "*", messages.TASK_TRAIN):
            self._ask_aside(name, targets)
        # NVFlare's own server ends the job at the reply to this one.
        self._ask("task export", "export", targets, data, lambda record: record)
        raise RunStoppedError("a hostile server has no more questions")

    def _records(self) -> dict[str, Change]:
        other = self.job.plan.model_copy(update={"privacy": None}).digest
        return {
            "the plan, changed since deployment": lambda record: record | {"plan_digest": other},
            "another run": lambda record: record | {"run_id": "f" * 32},
            "another model than named": lambda record: record | {"model_digest": "f" * 64},
            "a round beyond the plan": lambda record: record | {"round_number": 10**6},
            "a field more": lambda record: record | {"store": "/etc"},
            "no record": lambda record: {},
            "a head that the ledger never had": lambda record: record | {"ledger": {"count": 9**6, "mac": "0" * 64}},
        }

    def _ask(self, name: str, task_name: str, targets: list[str], data: FLModel, change: Change) -> None:
        record = {
            "protocol": PROTOCOL,
            "plan_digest": self.job.plan.digest,
            "run_id": self.job.submission.run_id,
            "round_number": self.state.rounds_done,
            "model_digest": digest(self.state.weights),
            "deadline_s": 60.0,
            "ledger": None,
        }
        self._asking = name
        super(DiffusionFedAvg, self).send_model(
            task_name=task_name,
            data=FLModel(
                params_type=data.params_type,
                params=data.params,
                current_round=0,
                total_rounds=1,
                meta={messages.META_KEY: change(record)},
            ),
            targets=targets,
            timeout=30,
            callback=lambda result: True,
        )
        self._wait()

    def _ask_aside(self, task_name: str, targets: list[str]) -> None:
        """NVFlare runs a task that comes as an auxiliary message, too."""
        self._asking = f"aside {task_name}"
        request = Shareable()
        request.set_header(ReservedHeaderKey.TASK_NAME, task_name)
        request.set_header(ReservedHeaderKey.TASK_ID, "1")
        replies = self.engine.send_aux_request(
            targets=targets, topic=ReservedTopic.DO_TASK, request=request, timeout=20.0, fl_ctx=self.fl_ctx
        )
        for reply in replies.values():
            self._write(reply)

    def _accept_train_result(
        self, client_name: str, result: Shareable, fl_ctx: Any, is_unknown_task: bool = False
    ) -> bool:
        self._write(result)
        return False

    def _write(self, result: Shareable) -> None:
        keys = sorted(key for key in result if not key.startswith("__"))
        entry = {"asked": self._asking, "code": result.get_return_code(), "keys": keys}
        if "DXO" in result:
            entry["tensors"] = len(from_shareable(result).data)
        with Path(self.job.run_folder / "replies.jsonl").open("a") as file:
            file.write(json.dumps(entry) + "\n")
