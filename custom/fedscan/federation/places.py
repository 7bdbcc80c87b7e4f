"""Where a site and a server keep things: read from their own configuration, never from a job."""

from __future__ import annotations

import glob
import json
from pathlib import Path
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from fedscan.plan import Plan, Submission

SERVER_FILE = "server.json"
CLIENT_CONFIG = "config_fed_client.json"
SERVER_CONFIG = "config_fed_server.json"


class PlacesError(ValueError):
    """A site's or server's own configuration is missing or malformed."""


class SitePlaces(BaseModel):
    """The privacy-scope properties of a site (KIT/local/privacy.json): they reach the executor and nobody else.

    Either `site_file`, which names everything else, or `no_policy` with places of its own.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    site_file: Path | None = Field(default=None, description="the site's site.json: store, ledger, policy, state")
    no_policy: bool = Field(default=False, description="true: trains without policy and ledger, for trials alone")
    store: Path | None = Field(default=None, description="without policy: the slice store that this site trains on")
    state: Path | None = Field(default=None, description="without policy: folder for training state and wall.jsonl")
    threads: int = Field(default=1, ge=1, le=1024, description="without policy: CPU threads of the trainer")
    reproducible_noise_seed: int | None = Field(
        default=None, description="noise from this number, which protects nobody: where a demo's policy allows it"
    )

    @model_validator(mode="after")
    def _one_of_two(self) -> Self:
        own = self.no_policy and self.site_file is None and self.store is not None and self.state is not None
        ruled = self.site_file is not None and not self.no_policy and self.store is None and self.state is None
        if not own and not ruled:
            raise ValueError("name site_file, or set no_policy with store and state")
        return self


class Retention(BaseModel):
    """How long a server keeps what runs and jobs leave (`fedscan server clean`)."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    runs_days: float = Field(
        default=365.0, ge=0.0, le=36_500.0, description="a run's model, records and checkpoints, from its last change"
    )
    jobs_days: float = Field(
        default=30.0, ge=0.0, le=36_500.0, description="NVFlare's copies of jobs and of results to be downloaded"
    )


class ServerPlaces(BaseModel):
    """KIT/local/server.json of the server."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    run_folder: str = Field(
        min_length=1, description="where a run's records go; `{run_id}` stands for the run's id, else it is for one run"
    )
    shelf: Path = Field(description="folder of model files that a plan may name by SHA-256: SHA256.safetensors")
    retention: Retention = Field(default_factory=Retention, description="how long runs and jobs are kept")
    stamps: tuple[str, ...] = Field(default=(), description="what every output of a run here must say of it")

    def run(self, run_id: str) -> Path:
        """The folder of one run."""
        return Path(self.run_folder.replace("{run_id}", run_id))

    def of_all_runs(self, name: str) -> tuple[Path, ...]:
        """That file of every run that has it; none where the server is for one run."""
        if "{run_id}" not in self.run_folder:
            return ()
        pattern = glob.escape(self.run_folder).replace("{run_id}", "*")
        return tuple(Path(found) for found in sorted(glob.glob(f"{pattern}/{name}")))


def site_places(scope_properties: object) -> SitePlaces:
    """From the properties of the site's privacy scope. Raises PlacesError, which names fields, not values."""
    try:
        return SitePlaces.model_validate(scope_properties)
    except ValidationError as error:
        fields = ", ".join(".".join(map(str, item["loc"])) or "all" for item in error.errors())
        raise PlacesError(f"privacy.json: the scope's properties must name site_file; wrong: {fields}") from None


def server_places(site_config_folder: Path) -> ServerPlaces:
    """From the server's local/server.json; relative places count from the kit. Raises PlacesError."""
    path = site_config_folder / SERVER_FILE
    try:
        places = ServerPlaces.model_validate_json(path.read_text(encoding="utf-8"))
        kit = site_config_folder.absolute().parent
        return places.model_copy(update={"run_folder": str(kit / places.run_folder), "shelf": kit / places.shelf})
    except (OSError, ValidationError) as error:
        raise PlacesError(f"local/{SERVER_FILE} must name run_folder and shelf: {type(error).__name__}") from None


def plan_and_submission(config_file: Path) -> tuple[Plan, Submission]:
    """The top-level keys `plan` and `submission` of an app's configuration, read as written (no variables).

    Raises PlacesError with all that is wrong.
    """
    try:
        config: dict[str, Any] = json.loads(config_file.read_text(encoding="utf-8"))
        return Plan.model_validate(config.get("plan")), Submission.model_validate(config.get("submission"))
    except (OSError, json.JSONDecodeError) as error:
        raise PlacesError(f"{config_file.name} cannot be read: {type(error).__name__}") from None
    except ValidationError as error:
        lines = (f"{'.'.join(map(str, item['loc'])) or 'plan'}: {item['msg']}" for item in error.errors())
        raise PlacesError(f"{config_file.name}: " + "; ".join(lines)) from None
