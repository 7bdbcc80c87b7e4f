"""Where a site and a server keep things: read from their own configuration, never from a job."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from fedscan.plan import Plan, Submission

SERVER_FILE = "server.json"
CLIENT_CONFIG = "config_fed_client.json"
SERVER_CONFIG = "config_fed_server.json"


class PlacesError(ValueError):
    """A site's or server's own configuration is missing or malformed."""


class SitePlaces(BaseModel):
    """The privacy-scope properties of a site (KIT/local/privacy.json): they reach the executor and nobody else."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    store: Path = Field(description="the slice store that this site trains on")
    state: Path = Field(description="folder for training state by run and round, and wall.jsonl")
    threads: int = Field(default=1, ge=1, le=1024, description="CPU threads of the trainer")


class ServerPlaces(BaseModel):
    """KIT/local/server.json of the server."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    run_folder: str = Field(description="where a run's records go; `{run_id}` in it stands for the run's id")
    shelf: Path = Field(description="model files that a plan may name by SHA-256: SHA256.safetensors")

    def run(self, run_id: str) -> Path:
        """The folder of one run."""
        return Path(self.run_folder.replace("{run_id}", run_id))


def site_places(scope_properties: object) -> SitePlaces:
    """From the properties of the site's privacy scope. Raises PlacesError, which names fields, not values."""
    try:
        return SitePlaces.model_validate(scope_properties)
    except ValidationError as error:
        fields = ", ".join(".".join(map(str, item["loc"])) or "all" for item in error.errors())
        raise PlacesError(f"privacy.json: the scope's properties need store and state; wrong: {fields}") from None


def server_places(site_config_folder: Path) -> ServerPlaces:
    """From the server's local/server.json. Raises PlacesError."""
    path = site_config_folder / SERVER_FILE
    try:
        return ServerPlaces.model_validate_json(path.read_text(encoding="utf-8"))
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
