"""What our server notes in the meta of a job that ended, for its submitter: how far the run came."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

META_KEY = "fedscan"


class RunNote(BaseModel):
    """Of a run, when one of its jobs ended."""

    model_config = ConfigDict(frozen=True, strict=True)

    run_id: str = Field(pattern=r"^[0-9a-f]{32}$")
    rounds_done: int = Field(ge=0, description="of the newest checkpoint that the server can read: where to go on")


def read(meta: Mapping[str, Any]) -> RunNote | None:
    """From a job's meta; None where the server noted nothing (yet)."""
    try:
        return RunNote.model_validate(meta.get(META_KEY))
    except ValidationError:
        return None
