"""RUN/rounds.jsonl: one line a round, written live by the server, read by people and tools while it grows."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from fedscan.privacy_plan import SiteName
from fedscan.readable import readable

Readable = Annotated[str, AfterValidator(readable)]
"""A text that may come from another party."""
Event = Literal["started", "asked", "round", "repeat", "finished", "stopped"]


class SiteEntry(BaseModel):
    """One site in one try of a round."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    answered: bool
    refused: Readable | None = Field(default=None, description="why its answer was not taken, or what it said instead")
    also_refused: tuple[Readable, ...] | None = Field(
        default=None, description="why further answers of it were not taken: sent again, late, of another task or job"
    )
    examples: int | None = None
    patients: int | None = None
    unit: Readable | None = Field(default=None, description="patient, or image where patients are unknown")
    values: Readable | None = Field(default=None, description="hu or grey")
    field_mm: float | None = None
    steps: int | None = None
    loss: float | None = None
    weight: float | None = Field(default=None, description="share of this answer in the new global model")
    seconds: float | None = Field(default=None, description="of local training, as the site says")
    bytes_received: int | None = Field(default=None, description="of the answer's tensors, as received")
    update_norm: float | None = Field(default=None, description="L2 norm of the update")
    update_digest: Readable | None = None


class RoundRecord(BaseModel):
    """One line of rounds.jsonl."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    event: Event
    time: Readable = Field(description="UTC, ISO 8601")
    run_id: Readable
    plan_digest: Readable
    round: int | None = Field(default=None, ge=0, le=10**9)
    attempt: int | None = Field(default=None, ge=0, le=10**9, description="1 for the first try of this round")
    asked: tuple[SiteName, ...] = ()
    sites: dict[SiteName, SiteEntry] = Field(default_factory=dict)
    loss: float | None = Field(default=None, description="of the accepted answers, weighted as the plan weighs them")
    seconds: float | None = Field(default=None, description="of the whole round, from asking to the checkpoint")
    bytes_sent: int | None = Field(default=None, description="of the global model's tensors, to all asked sites")
    model_digest: Readable | None = Field(default=None, description="of the global weights after this round")
    reason: Readable | None = None
    stamps: tuple[Readable, ...] = Field(default=(), description="what every output of this run must say of it")


def append(path: Path, record: RoundRecord) -> None:
    """Adds one line and makes it durable; a torn last line of an earlier crash is closed off first."""
    line = json.dumps(record.model_dump(mode="json", exclude_none=True), separators=(",", ":")) + "\n"
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)
    try:
        end = os.lseek(descriptor, 0, os.SEEK_END)
        if end and os.pread(descriptor, 1, end - 1) != b"\n":
            line = "\n" + line
        data = line.encode()
        while data:  # a disk that is nearly full takes a part, and refuses the rest aloud
            data = data[os.write(descriptor, data) :]
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read(path: Path) -> Iterator[RoundRecord]:
    """All whole lines; a torn line (a crash while writing), or one that is no record, is passed over."""
    if not path.exists():
        return
    for line in path.read_text(encoding="utf-8", errors="replace").split("\n"):
        try:
            record = RoundRecord.model_validate_json(line)
        except ValidationError:
            continue
        yield record


def effective_rounds(path: Path) -> list[RoundRecord]:
    """The last record of each completed round, in order: a round redone after a crash replaces its first record."""
    last = {record.round: record for record in read(path) if record.event == "round"}
    return [last[number] for number in sorted(n for n in last if n is not None)]
