"""In the parent process of server and site: jobs that NVFlare turns away without a record, and names that are none.

A job's id becomes a folder beside `startup` and `local` of a kit, which is emptied before the job is laid there, and
deleted when the server says so. NVFlare takes any word for one; here it must be a random identity.
"""

from __future__ import annotations

import functools
import re
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any
from zipfile import ZipFile, ZipInfo

from nvflare.apis.fl_constant import FLContextKey
from nvflare.apis.workspace import Workspace
from nvflare.private.admin_defs import MsgHeader, ReturnCode, error_reply
from nvflare.private.defs import RequestHeader
from nvflare.private.fed.client.training_cmds import DeployProcessor
from nvflare.private.fed.server.job_meta_validator import JobMetaValidator
from nvflare.private.fed.server.job_runner import JobRunner

from fedscan.federation.gate_tables import UUID
from fedscan.federation.messages import REFUSED_BY_POLICY
from fedscan.federation.versions import REFUSED_BY_VERSION

Note = Callable[[str, str], None]
"""Why, and the job's id."""
NO_NAME = "the name of a job must be a random identity (UUID)"
NAMED = "meta.json must not name the job: the server does"
NO_ARCHIVE = "an entry of its archive leads out of it"
_deploy, _check_job_id = DeployProcessor.process, Workspace._check_job_id
_validate, _send_out = JobMetaValidator.validate, JobRunner._deploy_job


def watch(note: Note) -> None:
    """From now on this process refuses such names, and `note` gets each job that was turned away."""
    DeployProcessor.process = functools.partialmethod(_deployed, note)
    Workspace._check_job_id = staticmethod(functools.partial(_checked, note))
    JobMetaValidator.validate = functools.partialmethod(_validated, note)
    JobRunner._deploy_job = functools.partialmethod(_sent_out, note)


def stop_watching() -> None:
    """NVFlare's own ways again (for tests)."""
    DeployProcessor.process = _deploy
    Workspace._check_job_id = staticmethod(_check_job_id)
    JobMetaValidator.validate = _validate
    JobRunner._deploy_job = _send_out


def is_ours(text: str) -> bool:
    """Whether a refusal is this site's own judgement, which has noted its reasons."""
    return text.endswith((REFUSED_BY_POLICY, REFUSED_BY_VERSION))


def _deployed(self: DeployProcessor, note: Note, req: Any, app_ctx: Any) -> Any:
    """At a site. Whoever sent the app is told what NVFlare says, or nothing."""
    job = str(req.get_header(RequestHeader.JOB_ID))
    if not re.fullmatch(UUID, job):
        note(NO_NAME, job)
        return error_reply(NO_NAME)
    try:
        reply = _deploy(self, req, app_ctx)
    except Exception as error:
        note(f"it could not be deployed: {type(error).__name__}", job)
        raise
    if reply.get_header(MsgHeader.RETURN_CODE) == ReturnCode.ERROR:
        text = str(reply.body)
        note(f"{text}: {NO_ARCHIVE}, or it is damaged" if text.startswith("failed to stage") else text, job)
    return reply


def _checked(note: Note, job_id: Any) -> Any:
    """Before any path with a job's name in it."""
    if job_id is not None and not re.fullmatch(UUID, str(job_id)):
        note(NO_NAME, str(job_id))
        raise ValueError(NO_NAME)
    return _check_job_id(job_id)


def _validated(self: JobMetaValidator, note: Note, job_name: str, job_data: Any) -> Any:
    """At the server, of a job that was submitted."""
    try:
        valid, error, meta = _validate(self, job_name, job_data)
        if valid and meta.get("job_id"):
            valid, error = False, NAMED
        elif valid and _leads_out(job_data):
            valid, error = False, NO_ARCHIVE
    except Exception as strange:
        note(f"a submitted job cannot be read: {type(strange).__name__}", "")
        raise
    if not valid:
        note(f"a submitted job: {error}", "")
    return valid, error, meta


def _sent_out(self: JobRunner, note: Note, job: Any, sites: Any, fl_ctx: Any) -> Any:
    """At the server, of a job that goes to its own part and to sites: who did not take it, and the word of each."""
    try:
        return _send_out(self, job, sites, fl_ctx)
    finally:
        told = [str(line) for line in fl_ctx.get_prop(FLContextKey.JOB_DEPLOY_DETAIL) or ()]
        if refused := [line for line in told if not line.endswith(": OK")]:
            note("; ".join(refused), str(job.job_id))


def _leads_out(archive: str | Path) -> bool:
    with ZipFile(archive) as opened:
        return any(_is_strange(entry) for entry in opened.infolist())


def _is_strange(entry: ZipInfo) -> bool:
    parts = entry.filename.replace("\\", "/").split("/")
    return parts[0] == "" or ".." in parts or stat.S_ISLNK(entry.external_attr >> 16)
