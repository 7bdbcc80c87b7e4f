"""RUN/federation.json: which federation a run belongs to, and its jobs there."""

from __future__ import annotations

from pathlib import Path
from typing import Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from fedscan.federation import job_folder

FILE = "federation.json"


class FederationFileError(ValueError):
    """The file is there and cannot be understood."""


class FederationFile(BaseModel):
    """A run's federation: that of an admin kit, or (without a kit) one on loopback that the run makes for itself."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kit: Path | None = Field(default=None, description="the admin kit; none: loopback")
    user: str | None = Field(default=None, description="whose kit it is; the jobs belong to that person")
    project: str | None = Field(default=None, description="the federation's name, as the kit says")
    run_id: str = Field(pattern=r"^[0-9a-f]{32}$")
    plan_digest: str = Field(pattern=r"^[0-9a-f]{64}$")
    jobs: tuple[str, ...] = Field(default=(), description="NVFlare's ids, oldest first: each resume is a new job")

    def with_job(self, job_id: str) -> Self:
        """With one more job."""
        return self.model_copy(update={"jobs": (*self.jobs, job_id)})

    def write(self, out: Path) -> None:
        """Whole or not at all."""
        job_folder.write_json(out / FILE, self.model_dump(mode="json", exclude_none=True))


def read(out: Path) -> FederationFile | None:
    """None where RUN has none: a run on loopback that began before there were others. Raises FederationFileError."""
    path = out / FILE
    if not path.exists():
        return None
    try:
        return FederationFile.model_validate_json(path.read_text(encoding="utf-8"))
    except (OSError, ValidationError) as error:
        raise FederationFileError(f"{path} cannot be understood: {type(error).__name__}") from None
