"""What the server knows of one submitted job: plan, submission, and the run's folders."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nvflare.apis.fl_constant import FLContextKey
from nvflare.apis.fl_context import FLContext

from fedscan.federation import job_folder, job_form, places, site_heads, verdict
from fedscan.plan import Plan, Submission

RESULTS = "fedscan"
"""Folder below NVFlare's own folder of a job."""


@dataclass(frozen=True)
class ServerJob:
    """One submitted job as its server sees it."""

    plan: Plan
    submission: Submission
    run_folder: Path
    shelf: Path
    stamps: tuple[str, ...] = ()
    heads_of_runs: tuple[Path, ...] = ()
    """Files of ledger heads of all runs of this server, as they were when the job began."""
    result_folder: Path | None = None
    """Below NVFlare's own folder of this job: what its submitter can download."""
    named: tuple[str, ...] = ()
    """The sites that the job is for."""

    @classmethod
    def load(
        cls,
        config_folder: Path,
        site_config_folder: Path,
        result_folder: Path | None = None,
        named: tuple[str, ...] = (),
    ) -> ServerJob:
        """From the deployed app's configuration and the server's local/server.json. Raises PlacesError."""
        plan, submission = places.plan_and_submission(config_folder / places.SERVER_CONFIG)
        own = places.server_places(site_config_folder)
        run_folder = own.run(submission.run_id)
        run_folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        heads = own.of_all_runs(site_heads.FILE)
        return cls(plan, submission, run_folder, own.shelf, own.stamps, heads, result_folder, named)

    @classmethod
    def from_context(cls, fl_ctx: FLContext) -> ServerJob:
        """From NVFlare's context of the server's job process. Raises PlacesError."""
        meta = fl_ctx.get_prop(FLContextKey.JOB_META) or {}
        return cls.of_job(fl_ctx.get_engine().get_workspace(), fl_ctx.get_job_id(), meta)

    @classmethod
    def of_job(cls, workspace: Any, job_id: str, meta: Mapping[str, Any]) -> ServerJob:
        """From the server's NVFlare workspace and NVFlare's meta of the job. Raises PlacesError."""
        return cls.load(
            config_folder=Path(workspace.get_app_config_dir(job_id)),
            site_config_folder=Path(workspace.get_site_config_dir()),
            result_folder=Path(workspace.get_run_dir(job_id)) / RESULTS,
            named=tuple(job_form.sites_of(meta, job_folder.APP_SITES) or ()),
        )

    @property
    def checkpoint_folder(self) -> Path:
        """Where this run's checkpoints lie."""
        return self.run_folder / "checkpoints"

    @property
    def rounds_file(self) -> Path:
        """RUN/rounds.jsonl."""
        return self.run_folder / "rounds.jsonl"

    @property
    def verdict_file(self) -> Path:
        """RUN/verdict.json, written at the end."""
        return self.run_folder / verdict.FILE

    @property
    def lock_file(self) -> Path:
        """Held by the one job process that works on this run."""
        return self.run_folder / ".server.lock"

    @property
    def heads_file(self) -> Path:
        """The last ledger head of each site."""
        return self.run_folder / site_heads.FILE

    @property
    def model_path(self) -> Path:
        """RUN/model.safetensors, written at the end."""
        return self.run_folder / "model.safetensors"
