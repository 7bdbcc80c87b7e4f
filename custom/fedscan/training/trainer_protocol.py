"""What trainer child and parent say to each other: JSON lines over pipes, tensors by file. No torch here."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Literal, TypeAlias, TypeVar

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from fedscan.plan import Plan

MAX_LINE_BYTES = 4 * 2**20


class ProtocolError(RuntimeError):
    """A line that is none of ours."""


class _Line(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Start(_Line):
    """Parent to child, once: what to train on and as."""

    kind: Literal["start"] = "start"
    parent: int
    """Process id of the parent, whose death ends the child."""
    store: Path
    state_folder: Path
    plan: Plan
    site: str
    run_id: str
    threads: int = Field(ge=1)
    reproducible_noise_seed: int | None = None
    """Under DP: noise that follows from this number, for a demonstration, which protects nobody; None: secure noise.
    The site's own policy decides; never the plan."""


class Train(_Line):
    """Parent to child: train a round from the weights in one file, leave the update in another."""

    kind: Literal["train"] = "train"
    round_number: int = Field(ge=0)
    weights: Path
    out: Path
    charge: int | None = Field(default=None, ge=0)
    """Number of the ledger's entry that pays for this training. Under DP none is done without, and one entry pays
    once; without DP there is none."""


class Prepare(_Line):
    """Parent to child: say when all is loaded. Under DP a round is charged after that: a start costs no budget."""

    kind: Literal["prepare"] = "prepare"


class Ready(_Line):
    """Child to parent, to `Prepare`."""

    kind: Literal["ready"] = "ready"


class Progress(_Line):
    """Child to parent, without DP: a sign of life, about once a second."""

    kind: Literal["progress"] = "progress"
    step: int
    steps: int
    loss: float


class PrivateProgress(_Line):
    """Child to parent, under DP: a sign of life, about once a second. No field follows from data."""

    kind: Literal["private_progress"] = "private_progress"
    step: int
    steps: int


class PrivateDone(_Line):
    """Child to parent, under DP: as `Done`. No field follows from data but a loss that was noised and charged: the
    others repeat the order and the plan."""

    kind: Literal["private_done"] = "private_done"
    round_number: int
    charge: int
    unit: Literal["patient", "image"]
    steps: int
    from_round: int | None
    loss: float | None = None
    """None where the plan asks for none."""


class Done(_Line):
    """Child to parent, without DP: the round is trained, its state saved, its update whole in the file asked for."""

    kind: Literal["done"] = "done"
    round_number: int
    loss: float
    epoch_losses: tuple[float, ...]
    examples: int
    patients: int
    unit: Literal["patient", "image"]
    values: Literal["hu", "grey"]
    """What the store's slices hold."""
    field_mm: float | None
    """Side of a slice in the store; None for pictures."""
    steps: int
    seconds: float
    """Of the round in the child, reading and writing of files included."""
    from_round: int | None
    """Round whose optimiser state this one went on from; None: a fresh optimiser."""


class Refused(_Line):
    """Child to parent: not trained, and why. The reason holds nothing about data (under DP it is always the same)."""

    kind: Literal["refused"] = "refused"
    reason: str


Request = Annotated[Start | Train | Prepare, Field(discriminator="kind")]
Said: TypeAlias = Progress | PrivateProgress
Finished: TypeAlias = Done | PrivateDone
Reply = Annotated[Said | Finished | Refused | Ready, Field(discriminator="kind")]
_T = TypeVar("_T")
_REQUEST: TypeAdapter[Start | Train | Prepare] = TypeAdapter(Request)
_REPLY: TypeAdapter[Said | Finished | Refused | Ready] = TypeAdapter(Reply)


def encode(line: BaseModel) -> bytes:
    """One line of JSON with its newline."""
    return json.dumps(line.model_dump(mode="json"), separators=(",", ":"), allow_nan=False).encode() + b"\n"


def request(line: bytes) -> Start | Train | Prepare:
    """What a parent said. Raises ProtocolError."""
    return _parse(_REQUEST, line)


def reply(line: bytes) -> Said | Finished | Refused | Ready:
    """What a child said. Raises ProtocolError."""
    return _parse(_REPLY, line)


def _parse(adapter: TypeAdapter[_T], line: bytes) -> _T:
    try:
        return adapter.validate_json(line)
    except ValidationError:
        raise ProtocolError(f"a line of {len(line)} bytes that is none of the protocol's") from None
