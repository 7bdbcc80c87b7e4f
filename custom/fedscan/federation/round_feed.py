"""What a running job tells its submitter: lines of rounds.jsonl, asked for through NVFlare's admin API.

An app command has a right of its own (`app_command`), which the server's authorization.json gives to a job's submitter
alone; what may be asked and what is answered is this file. Job logs, statistics and shell commands would each show
more, to more people.
"""

from __future__ import annotations

import itertools
import json
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from fedscan.federation import records
from fedscan.federation.records import RoundRecord
from fedscan.federation.server_job import ServerJob
from fedscan.plan import Plan

TOPIC = "fedscan.rounds"
MAX_RECORDS = 500
"""In one answer; the asker goes on at `next`."""


class FeedError(ValueError):
    """An answer of another form."""


class Feed(BaseModel):
    """One answer: the run, and the lines from `after` on."""

    model_config = ConfigDict(frozen=True)

    run_id: str
    plan: Plan | None
    records: tuple[RoundRecord, ...]
    next: int


def answer(job: ServerJob, data: object) -> dict[str, Any]:
    """To `{"after": n}`: the records after the first n. JSON data; the plan goes with the first ones alone.

    Whatever else is asked counts as 0: the asker gets lines twice at worst.
    """
    after = data.get("after") if isinstance(data, dict) else None
    after = after if type(after) is int and after >= 0 else 0
    new = list(itertools.islice(records.read(job.rounds_file), after, after + MAX_RECORDS))
    return {
        "run_id": job.submission.run_id,
        "plan": job.plan.model_dump(mode="json") if after == 0 else None,
        "records": [record.model_dump(mode="json", exclude_none=True) for record in new],
        "next": after + len(new),
    }


def read(raw: dict[str, Any]) -> Feed:
    """The lead's side. Raises FeedError."""
    try:
        return Feed.model_validate_json(json.dumps(raw))
    except (ValidationError, ValueError, TypeError) as error:
        raise FeedError(f"the server's answer has another form: {type(error).__name__}") from None
