"""At the server's parent process: what NVFlare forgets of jobs. Named by the server's own resources.json.

A job notes in its meta how far its run came, so that its submitter knows where to go on. Jobs that a dead server left
as RUNNING are ended when the server starts again: NVFlare would keep them so for ever, refuse to abort, delete or hand
them out.
"""

from __future__ import annotations

import shutil
import threading
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from nvflare.apis.event_type import EventType
from nvflare.apis.fl_component import FLComponent
from nvflare.apis.fl_constant import FLContextKey, SystemComponents
from nvflare.apis.fl_context import FLContext
from nvflare.apis.job_def import Job, JobMetaKey
from nvflare.apis.job_def_manager_spec import RunStatus

from fedscan.federation import job_results, run_owner
from fedscan.federation.places import PlacesError
from fedscan.federation.run_note import META_KEY, RunNote
from fedscan.federation.server_job import ServerJob
from fedscan.training import checkpoints

_OLD_PROCESS_TIMEOUT_S = 120.0


class ServerKeeper(FLComponent):  # type: ignore[misc]
    """Takes no arguments: its places are in the server's local/server.json."""

    def __init__(self) -> None:
        super().__init__()
        self._jobs: dict[str, ServerJob] = {}

    def handle_event(self, event_type: str, fl_ctx: FLContext) -> None:
        """SYSTEM_START: ends what an earlier server left. JOB_STARTED, JOB_COMPLETED: notes how far a run came."""
        if event_type == EventType.SYSTEM_START:
            # No thread of NVFlare's waits for this: a job's process may outlive its server by 20 s.
            threading.Thread(target=self._end_lost_jobs, args=(fl_ctx.get_engine(),), daemon=True).start()
        elif event_type == EventType.JOB_STARTED:
            job_id = _job_id(fl_ctx)
            if (job := self._load(job_id, fl_ctx.get_engine())) is not None:
                self._jobs[job_id] = job
        elif event_type == EventType.JOB_COMPLETED:
            job_id = _job_id(fl_ctx)
            if (job := self._jobs.pop(job_id, None)) is not None:
                _manager(fl_ctx.get_engine()).update_meta(job_id, note_of(job), fl_ctx)

    def _end_lost_jobs(self, engine: Any) -> None:
        with engine.new_context() as fl_ctx:
            lost: list[Job] = _manager(engine).get_jobs_by_status([RunStatus.RUNNING, RunStatus.DISPATCHED], fl_ctx)
            for job in lost:
                # Jobs of this server's own have begun since then, when an old process was waited for.
                if job.job_id not in engine.run_processes:
                    self._end(job, engine, fl_ctx)

    def _end(self, lost: Job, engine: Any, fl_ctx: FLContext) -> None:
        """Stores what the job left, and only then says that it ended: it can be downloaded from that moment on."""
        manager = _manager(engine)
        job = self._load(lost.job_id, engine, lost.meta)
        if job is not None and run_owner.is_of(job.run_folder, _submitter(lost)):
            _wait_and_judge(job)
            manager.update_meta(lost.job_id, note_of(job), fl_ctx)
        folder = Path(engine.get_workspace().get_run_dir(lost.job_id))
        if folder.is_dir():
            manager.save_workspace(lost.job_id, [str(folder)], fl_ctx)
        manager.set_status(lost.job_id, RunStatus.FINISHED_ABNORMAL, fl_ctx)
        shutil.rmtree(folder, ignore_errors=True)
        self.log_warning(fl_ctx, f"job {lost.job_id} was lost with an earlier server process: it is ended now")

    def _load(self, job_id: str, engine: Any, meta: dict[str, Any] | None = None) -> ServerJob | None:
        try:
            return ServerJob.of_job(engine.get_workspace(), job_id, meta or {})
        except PlacesError as error:
            self.logger.warning("job %s is not of ours, or its folder is gone: %s", job_id, error)
            return None


def note_of(job: ServerJob) -> dict[str, Any]:
    """How far the run came, as meta of the job: by the newest checkpoint that can be read."""
    newest = checkpoints.newest(job.checkpoint_folder, job.plan, job.submission.run_id)
    note = RunNote(run_id=job.submission.run_id, rounds_done=newest.rounds_done if newest else 0)
    return {META_KEY: note.model_dump(mode="json")}


def _wait_and_judge(job: ServerJob) -> None:
    """Its process may live yet, and then ends the run's records itself."""
    try:
        with FileLock(job.lock_file, timeout=_OLD_PROCESS_TIMEOUT_S, mode=0o600):
            if not job.verdict_file.exists():
                job_results.write_verdict(job, has_model=False)
            job_results.publish(job)
    except Timeout:
        return


def _submitter(lost: Job) -> str | None:
    return (lost.meta or {}).get(JobMetaKey.SUBMITTER_NAME.value)


def _manager(engine: Any) -> Any:
    return engine.get_component(SystemComponents.JOB_MANAGER)


def _job_id(fl_ctx: FLContext) -> str:
    data = fl_ctx.get_prop(FLContextKey.EVENT_DATA)
    return str(data.get(JobMetaKey.JOB_ID.value)) if isinstance(data, dict) else ""
