"""What travels beside the tensors: the meta of a task and of an answer, as strict frozen records."""

from __future__ import annotations

from typing import Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

TASK_TRAIN = "train"
META_KEY = "fedscan"
"""The one key of a DXO's meta that holds our record; everything else is NVFlare's."""
MOST = 10**12
"""Of anything that a site counts: a weight must stay a number that can be added."""


class MessageError(ValueError):
    """A message that does not have the one allowed form. The text names fields, never values."""


class _Message(BaseModel):
    model_config = ConfigDict(frozen=True, strict=True, extra="forbid", allow_inf_nan=False)

    plan_digest: str = Field(pattern=r"^[0-9a-f]{64}$")
    run_id: str = Field(pattern=r"^[0-9a-f]{32}$")
    round_number: int = Field(ge=0)
    model_digest: str = Field(pattern=r"^[0-9a-f]{64}$", description="SHA-256 of the global weights of this round")


class Task(_Message):
    """Server to site: train this model."""

    deadline_s: float = Field(gt=0, description="seconds from receipt in which an answer is of use")


class Answer(_Message):
    """Site to server: what one round of local training came to."""

    examples: int = Field(ge=1, le=MOST)
    patients: int = Field(ge=1, le=MOST)
    steps: int = Field(ge=1, le=MOST)
    loss: float
    seconds: float = Field(ge=0)
    unit: Literal["patient", "image"] = Field(description="what the site's counts, split and weights go by")
    values: Literal["hu", "grey"] = Field(description="what the site's slices hold")
    field_mm: float | None = Field(gt=0, description="side of the site's slices; null for pictures")


_M = TypeVar("_M", bound=_Message)


def parse_task(meta: object) -> Task:
    """The task record in a DXO's meta. Raises MessageError."""
    return _parse(Task, meta)


def parse_answer(meta: object) -> Answer:
    """The answer record in a DXO's meta. Raises MessageError."""
    return _parse(Answer, meta)


def _parse(kind: type[_M], meta: object) -> _M:
    try:
        return kind.model_validate(meta)
    except ValidationError as error:
        fields = sorted({".".join(str(part) for part in item["loc"]) or "(all)" for item in error.errors()})
        raise MessageError(f"{kind.__name__.lower()} record is malformed in: {', '.join(fields)[:200]}") from None
