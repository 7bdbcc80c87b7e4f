"""What a job leaves for its submitter: a folder in NVFlare's run directory, which it stores however the job ends."""

from __future__ import annotations

import logging
import os
import shutil
from pathlib import Path

from ctslices.files import write_whole
from fedscan.federation import job_folder, records, verdict
from fedscan.federation.server_job import ServerJob
from fedscan.training import checkpoints

ROUNDS = "rounds.jsonl"
MODEL = "model.safetensors"
CHECKPOINTS = "checkpoints"
_ROOM = ".room"
ROOM_BYTES = 256 * 1024
"""Kept free in a run's folder while it runs: on a full disk its last record and verdict go there."""
_log = logging.getLogger(__name__)


def publish(job: ServerJob, *, at_end: bool = False) -> None:
    """Links the run's records, verdict and newest checkpoint into the job's folder; at its end the model instead.

    A link costs nothing and grows with the run's own file; another disk gets copies. What cannot be published is
    logged, and the run goes on: its own folder holds it.
    """
    if job.result_folder is None:
        return
    try:
        job.result_folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        _link(job.rounds_file, job.result_folder / ROUNDS)
        _link(job.verdict_file, job.result_folder / verdict.FILE)
        if at_end:
            _link(job.model_path, job.result_folder / MODEL)
        _publish_checkpoint(job, job.result_folder)
    except OSError as error:
        _log.warning("results could not be published to the job's folder: %s", error.strerror)


def begin(job: ServerJob) -> None:
    """A run that goes on has no verdict yet. Raises OSError where there is no room even for its records."""
    job.verdict_file.unlink(missing_ok=True)
    write_whole(job.run_folder / _ROOM, bytes(ROOM_BYTES), mode=0o600)


def give_room(job: ServerJob) -> None:
    """For what must still be written when the disk is full: takes away what only fills it."""
    (job.run_folder / _ROOM).unlink(missing_ok=True)


def write_verdict(job: ServerJob, *, has_model: bool) -> None:
    """RUN/verdict.json, from the run's records as they stand. `has_model`: this job has written its model file."""
    judged = verdict.verdict(
        job.plan,
        records.read(job.rounds_file),
        named=job.named,
        model_sha256=job_folder.file_sha256(job.model_path) if has_model else None,
    )
    job_folder.write_json(job.verdict_file, judged.model_dump(mode="json"))


def _publish_checkpoint(job: ServerJob, results: Path) -> None:
    folder = results / CHECKPOINTS
    done = [] if (results / MODEL).exists() else checkpoints.list_rounds(job.checkpoint_folder)[-1:]
    for old in set(checkpoints.list_rounds(folder)) - set(done):
        checkpoints.path_of(folder, old).unlink()
    for newest in done:
        folder.mkdir(mode=0o700, exist_ok=True)
        _link(checkpoints.path_of(job.checkpoint_folder, newest), checkpoints.path_of(folder, newest))


def _link(source: Path, to: Path) -> None:
    if not source.exists() or (to.exists() and to.samefile(source)):
        return
    to.unlink(missing_ok=True)
    try:
        os.link(source, to)
    except OSError:
        shutil.copyfile(source, to)
