"""The one controller that a job names at the server."""

from __future__ import annotations

import gc
import os
import time
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from nvflare.apis.fl_constant import ReturnCode
from nvflare.apis.fl_context import FLContext
from nvflare.apis.shareable import Shareable
from nvflare.app_common.abstract.fl_model import FLModel, ParamsType
from nvflare.app_common.utils.fl_model_utils import FLModelUtils
from nvflare.app_common.workflows.fedavg import FedAvg
from nvflare.app_opt.pt.decomposers import TensorDecomposer
from nvflare.fuel.utils import fobs

from fedscan.federation import (
    job_results,
    messages,
    no_payload_files,
    records,
    round_feed,
    run_owner,
    turned_away,
    unreadable_answers,
    versions,
)
from fedscan.federation.audit_log import AuditError, AuditLog
from fedscan.federation.job.persistor import CheckpointPersistor
from fedscan.federation.kept_updates import KeptUpdates
from fedscan.federation.run_start import write_model
from fedscan.federation.server_job import ServerJob
from fedscan.federation.server_revocations import Known, ServerRevocations
from fedscan.federation.server_round import RunStoppedError, ServerRound, now
from fedscan.federation.site_certificates import ROOT
from fedscan.federation.site_heads import SiteHeads
from fedscan.training.checkpoints import Checkpoint, CheckpointError
from fedscan.training.sampling import sample_sites

CHECK_S = 0.02
"""Between two looks at the tasks in flight."""
LOCK_TIMEOUT_S = 60.0
"""For the process of an earlier job of the same run to end: it outlives a killed server by some 20 s."""


class DiffusionFedAvg(FedAvg):
    """FedAvg for diffusion models: seeded client sampling, a deadline and a smallest number of good answers a round,
    checks of every update, sums in the order of site names, EMA of the global model, a checkpoint each round.

    Takes no arguments: the plan is in the server's app folder, places are in the server's local/server.json.
    """

    def __init__(self) -> None:
        super().__init__(
            persistor_id="persistor", ignore_result_error=True, memory_gc_rounds=1, task_check_period=CHECK_S
        )
        fobs.register(TensorDecomposer)
        no_payload_files.refuse()
        self._job: ServerJob | None = None
        self._state: Checkpoint | None = None
        self._round: ServerRound | None = None
        self._record: records.RoundRecord | None = None
        self._heads: SiteHeads | None = None
        self._parent = os.getppid()
        self._revocations: ServerRevocations | None = None
        self._known = Known(None, {})
        self._turned_away = turned_away.TurnedAway()
        self._audit: AuditLog | None = None

    @property
    def job(self) -> ServerJob:
        """The submitted job; known from the start of the controller on."""
        if self._job is None:
            raise RunStoppedError("the controller was not started")
        return self._job

    @property
    def round(self) -> ServerRound:
        """The round in flight."""
        if self._round is None:
            raise RunStoppedError("no round was begun")
        return self._round

    @property
    def state(self) -> Checkpoint:
        """The newest global state."""
        if self._state is None:
            raise RunStoppedError("no model has been loaded")
        return self._state

    def set_communicator(self, communicator: Any) -> None:
        """NVFlare sets `task_check_period` of its communicator, which reads another name: its 0.2 s would go on."""
        super().set_communicator(communicator)
        communicator._task_check_period = CHECK_S

    def start_controller(self, fl_ctx: FLContext) -> None:
        """Reads plan and submission; the rounds that are left become NVFlare's own settings."""
        super().start_controller(fl_ctx)
        engine = fl_ctx.get_engine()
        workspace = engine.get_workspace()
        self._revocations = ServerRevocations(
            local=Path(workspace.get_site_config_dir()),
            root_ca=Path(workspace.get_file_path_in_startup(ROOT)),
            app=Path(workspace.get_app_dir(fl_ctx.get_job_id())),
        )
        job = ServerJob.from_context(fl_ctx)
        run_owner.claim(job.run_folder, self._revocations.submitter)
        self._job = job
        self.start_round = self.job.submission.start_round
        self.num_rounds = max(0, self.job.plan.rounds - self.start_round)
        self.num_clients = self.job.plan.clients_per_round
        if self.job.plan.privacy is not None:
            self._heads = SiteHeads(self.job.heads_file, self.job.heads_of_runs)
        engine.register_app_command(round_feed.TOPIC, self._tell)
        unreadable_answers.outlive(self._cannot_read, self._model_bytes)
        turned_away.listen(self._turned_away.add)
        self._audit = AuditLog(Path(workspace.get_root_dir()))

    def _cannot_read(self, token: str) -> None:
        """The site may send it again; what it sends then is judged as any answer."""
        for client in self.engine.get_clients():
            if client.token == token and self._round is not None and client.name in self._round.asked:
                self._round.refuse(client.name, unreadable_answers.REASON)

    def _model_bytes(self) -> int:
        """0 until there is a model: nobody has been asked."""
        return 0 if self._state is None else sum(tensor.nbytes for tensor in self._state.weights.values())

    def _tell(self, topic: str, data: object, fl_ctx: FLContext) -> dict[str, Any]:
        """To the submitter who watches."""
        return round_feed.answer(self.job, data)

    def run(self) -> None:
        """All rounds, then RUN/model.safetensors. A run that must stop early keeps its last good model there too."""
        try:
            with FileLock(self.job.lock_file, timeout=LOCK_TIMEOUT_S, mode=0o600):
                self._run_alone()
        except Timeout:
            raise RunStoppedError("another job of this run is at work") from None

    def _run_alone(self) -> None:
        try:
            job_results.begin(self.job)
            self._stop_if_unfit()
            super().run()
            if self.state.rounds_done >= self.job.plan.rounds:
                self._end("finished", has_model=True)
        except (RunStoppedError, CheckpointError) as error:
            self._stop(str(error))
            raise
        except OSError as error:
            reason = f"the server cannot write ({error.strerror or type(error).__name__})"
            self._stop(reason)
            raise RunStoppedError(reason) from None
        finally:
            job_results.give_room(self.job)
        if self.state.rounds_done >= self.job.plan.rounds:
            self._tell_complete()

    def _stop_if_unfit(self) -> None:
        if reasons := versions.unfit():
            raise RunStoppedError(f"the server's software: {'; '.join(reasons)}")

    def _stop(self, reason: str) -> None:
        """With the last good model where there is one and room for it; the reason is noted on a full disk, too."""
        try:
            self._end("stopped", reason, has_model=self._state is not None and self._state.rounds_done > 0)
        except OSError:
            job_results.give_room(self.job)
            self._end("stopped", reason, has_model=False)

    def _end(self, event: records.Event, reason: str | None = None, *, has_model: bool) -> None:
        if has_model:
            write_model(self.job, self.state)
        self._note(event, reason)
        job_results.write_verdict(self.job, has_model=has_model)
        job_results.publish(self.job, at_end=has_model)

    def _tell_complete(self) -> None:
        """Sites keep a private answer until now, since a server that crashed might ask for it again."""
        if self.job.plan.privacy is not None:
            self.engine.send_aux_request(
                targets=None, topic=messages.TOPIC_COMPLETE, request=Shareable(), timeout=5.0, fl_ctx=self.fl_ctx
            )

    def load_model(self) -> FLModel:
        """The state that the submission starts from."""
        model = super().load_model()
        self._state = model.meta.pop(CheckpointPersistor.META_STATE)
        if self.state.rounds_done == 0:
            self.persist(self.state)
        # What libraries have loaded by now stays: to look through it after each round takes longer than the rest.
        gc.collect()
        gc.freeze()
        self._note("started")
        return model

    def sample_clients(self, num_clients: int | None = None) -> list[str]:
        """The sites of this round, drawn from the job's by the plan's seed and the round."""
        sites = [client.name for client in self.engine.get_clients()]
        return sample_sites(sites, num_clients, self.job.plan.seed, self.state.rounds_done)

    def send_model(self, task_name: str, targets: list[str], data: FLModel, callback: Any) -> None:
        """Asks all, waits for all or for the deadline, and asks again while too few good answers came."""
        plan = self.job.plan
        for attempt in range(1, plan.tries_per_round + 1):
            updates = KeptUpdates(self.job.run_folder / "updates")
            run_id = self.job.submission.run_id
            self._known = self._revocations.now(targets) if self._revocations else self._known
            asked = [target for target in targets if target not in self._known.sites]
            self._round = ServerRound(plan, run_id, self.state, asked, attempt, self._heads, updates)
            for site, why in self._known.sites.items():
                self._round.refuse(site, why)
            if plan.privacy is not None:  # what a site may charge must be on disk before it is asked
                self._append(self._round.asked_record())
            for target in asked:
                self._send(target, data, callback)
            self._wait()
            self._round.settle()
            if self._round.is_enough:
                return
            reason = f"{self._round.accepted} good answers, the plan needs {plan.min_responses}"
            self._append(self._round.record("repeat", reason=reason))
        raise RunStoppedError(f"round {self.state.rounds_done + 1} failed {plan.tries_per_round} times: {reason}")

    def _send(self, target: str, data: FLModel, callback: Any) -> None:
        """A task of its own for each site: under differential privacy each gets back its own ledger's head."""
        task = self.round.task(target).model_copy(update={"revocations": self._known.text}).model_dump(mode="json")
        super().send_model(
            task_name=messages.TASK_TRAIN,
            data=FLModel(
                params_type=data.params_type,
                params=data.params,
                current_round=data.current_round,
                total_rounds=data.total_rounds,
                meta={messages.META_KEY: task},
            ),
            targets=[target],
            timeout=max(1, round(self.job.plan.round_timeout_s)),
            callback=callback,
        )

    def _wait(self) -> None:
        while self.get_num_standing_tasks():
            self._stop_if_told()
            time.sleep(self._task_check_period)
        self._stop_if_told()

    def _stop_if_told(self) -> None:
        """NVFlare looks for the parent's process id, which a dead parent keeps until somebody collects its status."""
        if os.getppid() != self._parent:
            raise RunStoppedError("the server's parent process died")
        if self.abort_signal.triggered:
            raise RunStoppedError("aborted")

    def _accept_train_result(
        self, client_name: str, result: Shareable, fl_ctx: FLContext, is_unknown_task: bool = False
    ) -> bool:
        code = result.get_return_code()
        if self._round is not None and not is_unknown_task:
            if code and code != ReturnCode.OK:
                self._round.refuse(client_name, self._why(str(code)))
            elif not _is_model(result):  # NVFlare drops it, and would say nothing of it
                self._round.refuse(client_name, unreadable_answers.NO_UPDATE)
        if is_unknown_task:
            self._turned_away.add(client_name, turned_away.NO_TASK)
        accepted: bool = super()._accept_train_result(client_name, result, fl_ctx, is_unknown_task)
        return accepted and not is_unknown_task

    def _why(self, code: str) -> str:
        """What a return code without answer says of a site."""
        if code == versions.REFUSED_BY_VERSION:
            return versions.refused_by_site()
        return f"site answered {code}" if self.job.plan.privacy is None else messages.REFUSED_BY_POLICY

    def _aggregate_one_result(self, result: FLModel) -> bool:
        if self._round is None:
            return False
        meta = result.meta or {}
        site = str(meta.get("client_name"))
        if result.params_type != ParamsType.DIFF:
            self._round.refuse(site, "answer is not an update (WEIGHT_DIFF)")
            return False
        reason = self._round.receive(site, meta.get(messages.META_KEY), result.params)
        if reason is not None:
            self.warning(f"answer of {site} refused: {reason}")
        return reason is None

    def _get_aggregated_result(self) -> FLModel:
        if self._round is None:
            raise RunStoppedError("no round was run")
        self._state, self._record = self._round.finish()
        return FLModel(params_type=ParamsType.FULL, params=self._state.weights, meta={})

    def update_model(self, model: FLModel, aggr_result: FLModel) -> FLModel:
        """The aggregate is the new global model already; NVFlare's own update would accept an empty one."""
        return super().update_model(model, aggr_result)

    def save_model(self, model: FLModel) -> None:
        """The checkpoint first, then the round's line: a line in rounds.jsonl means that its model is safe."""
        self.persist(self.state)
        if self._record is not None:
            self._append(self._record)

    def _append(self, record: records.RoundRecord) -> None:
        """A round with what was turned away meanwhile; the server's chained log holds all that was refused, too."""
        if record.event in ("round", "repeat"):
            record = self._turned_away.into(record)
        try:
            records.append(self.job.rounds_file, record)
        except OSError:
            job_results.give_room(self.job)
            records.append(self.job.rounds_file, record)
        job_results.publish(self.job)
        try:
            if self._audit is not None:
                turned_away.note(self._audit, record, str(self.fl_ctx.get_job_id()))
        except (OSError, AuditError) as error:
            self.error(f"the audit log is not written: {error}")

    def persist(self, state: Checkpoint) -> None:
        """Hands a state to the persistor as NVFlare's learnable."""
        super().save_model(FLModel(params=state.weights, meta={CheckpointPersistor.META_STATE: state}))

    def _note(self, event: records.Event, reason: str | None = None) -> None:
        self._append(
            records.RoundRecord(
                event=event,
                time=now(),
                run_id=self.job.submission.run_id,
                plan_digest=self.job.plan.digest,
                round=self._state.rounds_done if self._state else self.job.submission.start_round,
                reason=reason,
                stamps=self.job.stamps if event == "started" else (),
            )
        )


def _is_model(result: Shareable) -> bool:
    """Whether NVFlare can take an answer for a model; what it holds is judged later."""
    try:
        FLModelUtils.from_shareable(result)
    except (ValueError, TypeError, KeyError, AttributeError):
        return False
    return True
