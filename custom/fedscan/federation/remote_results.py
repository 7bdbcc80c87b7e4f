"""What a job left at the server, fetched: model.safetensors, rounds.jsonl and verdict.json, whatever its status."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nvflare.fuel.flare_api.flare_api import Session

from fedscan.federation import admin, job_folder, job_form, job_results, records, remote_job, run_start, verdict
from fedscan.federation.admin import AdminError
from fedscan.federation.places import PlacesError, plan_and_submission
from fedscan.federation.server_job import RESULTS, ServerJob
from fedscan.federation.verdict import Verdict
from fedscan.plan import Plan, Submission
from fedscan.training import checkpoints, model_file

_FETCHED = ".fetched"


@dataclass(frozen=True)
class Fetched:
    """A downloaded job: its three JSON files, and what its server left."""

    job: Path
    results: Path
    plan: Plan
    submission: Submission

    @property
    def named(self) -> list[str]:
        """The sites that the job is for."""
        meta = job_form.parse(self.job / job_folder.META)
        return job_form.sites_of(meta if isinstance(meta, dict) else {}, job_folder.APP_SITES) or []


@contextmanager
def fetched(session: Session, job_id: str, out: Path) -> Iterator[Fetched]:
    """The job's result below `out` for as long as the context lasts. Raises AdminError."""
    place = out / _FETCHED
    shutil.rmtree(place, ignore_errors=True)
    try:
        yield _open(admin.download(session, job_id, place), job_id)
    finally:
        shutil.rmtree(place, ignore_errors=True)


def _open(folder: Path, job_id: str) -> Fetched:
    jobs = [path.parents[2] for path in folder.glob(f"job/**/{job_folder.SERVER_PATH}")]
    if len(jobs) != 1:
        raise AdminError(f"job {job_id} is none of fedscan: it has no {job_folder.SERVER_PATH}")
    try:
        plan, submission = plan_and_submission(jobs[0] / job_folder.SERVER_PATH)
    except PlacesError as error:
        raise AdminError(f"job {job_id}: {error}") from None
    return Fetched(jobs[0], folder / "workspace" / RESULTS, plan, submission)


def collect(fetch: Fetched, out: Path, meta: Mapping[str, Any]) -> Verdict:
    """Lays model, records and verdict into `out`; `meta` is NVFlare's of the job.

    A job whose server process died left a checkpoint and no model: the model file is then made here. Raises AdminError
    where a model came that is not the one that was asked for.
    """
    _move(fetch.results / job_results.ROUNDS, out / job_results.ROUNDS)
    written = _move_model(fetch, out) or _model_of_checkpoint(fetch, out)
    judged = verdict.verdict(
        fetch.plan,
        records.read(out / job_results.ROUNDS),
        named=fetch.named,
        model_sha256=job_folder.file_sha256(out / job_results.MODEL) if written else None,
        refused_at_deployment=remote_job.refused_at_deployment(meta),
        nvflare_status=str(meta.get("status")),
    )
    job_folder.write_json(out / verdict.FILE, judged.model_dump(mode="json"))
    return judged


def _move_model(fetch: Fetched, out: Path) -> bool:
    model = fetch.results / job_results.MODEL
    if not model.exists():
        return False
    try:
        plan = model_file.load_model(model).plan
    except (OSError, ValueError) as error:
        raise AdminError(f"the server's {job_results.MODEL} is none of ours: {error}") from None
    if plan.digest != fetch.plan.digest:
        raise AdminError(f"the server's {job_results.MODEL} is of another plan ({plan.digest[:12]})")
    _move(model, out / job_results.MODEL)
    return True


def _model_of_checkpoint(fetch: Fetched, out: Path) -> bool:
    state = checkpoints.newest(fetch.results / job_results.CHECKPOINTS, fetch.plan, fetch.submission.run_id)
    if state is None or not state.rounds_done:
        return False
    run_start.write_model(ServerJob(fetch.plan, fetch.submission, out, out / "shelf", _stamps(out)), state)
    return True


def _stamps(out: Path) -> tuple[str, ...]:
    told = (stamp for record in records.read(out / job_results.ROUNDS) for stamp in record.stamps)
    return tuple(dict.fromkeys(told))


def _move(source: Path, to: Path) -> None:
    if source.exists():
        source.chmod(0o600)
        os.replace(source, to)
