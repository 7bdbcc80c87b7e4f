"""What travels beside the tensors: the meta of a task and of an answer, as strict frozen records."""

from __future__ import annotations

from typing import Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from fedscan import __version__
from fedscan.federation.versions import PROTOCOL, other_protocol
from fedscan.readable import readable

TASK_TRAIN = "train"
REFUSED_BY_POLICY = "refused by policy"
"""All that a server learns of a refusal under a site's policy: the reasons stay at the site."""
TOPIC_COMPLETE = "fedscan.run_complete"
"""Server to sites, after the last round: no answer will be asked for again."""
META_KEY = "fedscan"
"""The one key of a DXO's meta that holds our record; everything else is NVFlare's."""
MOST = 10**12
"""Of anything that a site counts: a weight must stay a number that can be added."""


class MessageError(ValueError):
    """A message that does not have the one allowed form. The text names fields, never values."""


class OtherVersionError(MessageError):
    """The other end speaks another protocol: its message is not read."""


class _Message(BaseModel):
    model_config = ConfigDict(frozen=True, strict=True, extra="forbid", allow_inf_nan=False)

    protocol: int = Field(default=PROTOCOL, description="of the sender; whoever speaks another one does not read on")
    plan_digest: str = Field(pattern=r"^[0-9a-f]{64}$")
    run_id: str = Field(pattern=r"^[0-9a-f]{32}$")
    round_number: int = Field(ge=0)
    model_digest: str = Field(pattern=r"^[0-9a-f]{64}$", description="SHA-256 of the global weights of this round")


class LedgerHead(BaseModel):
    """How many entries a site's ledger has, and the keyed hash of the last: it travels with each private answer, and
    comes back with each task, so that an older copy of the ledger is noticed."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")

    count: int = Field(ge=0, le=MOST)
    mac: str = Field(pattern=r"^[0-9a-f]{64}$")


class Task(_Message):
    """Server to site: train this model."""

    fedscan: str = Field(default=__version__, pattern=r"^[0-9A-Za-z.+]{1,40}$", description="the server's version")
    deadline_s: float = Field(gt=0, description="seconds from receipt in which an answer is of use")
    ledger: LedgerHead | None = Field(default=None, description="the last that this server recorded from this site")
    revocations: str | None = Field(
        default=None, max_length=1 << 18, description="the server's list of who is revoked, signed with the root key"
    )


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


class PrivateAnswer(_Message):
    """Site to server under differential privacy: no field depends on data but a loss that was noised and charged, and
    the ledger's head, which no patient changes."""

    weight: float = Field(gt=0, le=MOST, description="the plan's public weight of this site")
    ledger: LedgerHead = Field(description="of the entry that paid for this answer")
    loss: float | None = Field(default=None, description="of the round, noised; null where the plan asks for none")


_M = TypeVar("_M", bound=_Message)


def parse_task(meta: object) -> Task:
    """The task record in a DXO's meta. Raises MessageError; OtherVersionError where its protocol is not ours."""
    return _parse(Task, meta, "task")


def parse_answer(meta: object) -> Answer:
    """The answer record in a DXO's meta. Raises MessageError; OtherVersionError as of a task."""
    return _parse(Answer, meta, "answer")


def parse_private_answer(meta: object) -> PrivateAnswer:
    """The answer record of a private plan. Raises MessageError."""
    return _parse(PrivateAnswer, meta, "answer")


def _parse(kind: type[_M], meta: object, what: str) -> _M:
    ends = ("this site", "the server") if kind is Task else ("this end", "the answer")
    if reason := other_protocol(meta, *ends):
        raise OtherVersionError(reason)
    if isinstance(meta, dict) and "protocol" not in meta:
        raise MessageError(f"{what} record is malformed in: protocol")
    try:
        return kind.model_validate(meta)
    except ValidationError as error:
        fields = sorted({".".join(str(part) for part in item["loc"]) or "(all)" for item in error.errors()})
        # A field that no record has was named by the sender.
        raise MessageError(f"{what} record is malformed in: {readable(', '.join(fields))[:200]}") from None
