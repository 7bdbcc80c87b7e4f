"""What the server knows of one submitted job: plan, submission, and the run's folders."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from nvflare.apis.fl_context import FLContext

from fedscan.federation import places, site_heads
from fedscan.plan import Plan, Submission


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

    @classmethod
    def load(cls, config_folder: Path, site_config_folder: Path) -> ServerJob:
        """From the deployed app's configuration and the server's local/server.json. Raises PlacesError."""
        plan, submission = places.plan_and_submission(config_folder / places.SERVER_CONFIG)
        own = places.server_places(site_config_folder)
        run_folder = own.run(submission.run_id)
        run_folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        return cls(plan, submission, run_folder, own.shelf, own.stamps, own.of_all_runs(site_heads.FILE))

    @classmethod
    def from_context(cls, fl_ctx: FLContext) -> ServerJob:
        """From NVFlare's context of the server's job process. Raises PlacesError."""
        workspace = fl_ctx.get_engine().get_workspace()
        return cls.load(
            config_folder=Path(workspace.get_app_config_dir(fl_ctx.get_job_id())),
            site_config_folder=Path(workspace.get_site_config_dir()),
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
    def heads_file(self) -> Path:
        """The last ledger head of each site."""
        return self.run_folder / site_heads.FILE

    @property
    def model_path(self) -> Path:
        """RUN/model.safetensors, written at the end."""
        return self.run_folder / "model.safetensors"
