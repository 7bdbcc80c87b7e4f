"""What a ledger's entries hold, and what its callers give and get. Events, never only an epsilon."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, TypeAdapter

from fedscan.plan_form import Part, as_tuple
from fedscan.privacy.event import Event

Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
RunId = Annotated[str, Field(pattern=r"^[0-9a-f]{32}$")]
Random = Annotated[str, Field(pattern=r"^[0-9a-f]{32}$")]
Events = Annotated[tuple[Event, ...], BeforeValidator(as_tuple)]
FIRST_PREV = "0" * 64


class LedgerError(ValueError):
    """The ledger cannot be trusted, or not written: what, and the cure. `entry` is the number it is about."""

    def __init__(self, text: str, entry: int | None = None) -> None:
        self.entry = entry
        super().__init__(text if entry is None else f"entry {entry}: {text}")


@dataclass(frozen=True)
class Head:
    """The newest entry: its number, which is how many entries there are, and its keyed hash."""

    count: int
    mac: str


@dataclass(frozen=True)
class Entry:
    """An entry that is on the disk."""

    number: int
    head: Head


class Announced(Part):
    """A round of a job: what a line torn by a power cut is charged as."""

    run_id: RunId
    plan_digest: Sha256
    event: Event


class Charged(Announced):
    """A round's whole step budget."""

    round_number: int = Field(ge=0)
    model_digest: Sha256 = Field(description="of the weights that the round starts from")
    population: Sha256 = Field(description="keyed fingerprint of the pseudonyms of those it concerns")


@dataclass(frozen=True)
class Charge:
    """What a caller asks to reserve: one round."""

    run_id: str
    plan_digest: str
    round_number: int
    model_digest: str
    event: Event
    population: frozenset[str]
    """Pseudonyms of the patients that the round concerns; the entry holds their fingerprint."""


@dataclass(frozen=True)
class PaidFor:
    """What a reserve paid for, and the SHA-256 of its answer, once that was noted."""

    charge: Charged
    answer_sha256: str | None


class _Record(Part):
    n: int = Field(ge=1, description="number of the entry")
    prev: Sha256 = Field(description="SHA-256 of the previous line, its line break included")
    time: str = Field(description="UTC, ISO 8601")
    salt: Random = Field(
        description="without it two copies that charge the same round would share a head, and could not be told apart"
    )


class Created(_Record):
    """The first entry."""

    kind: Literal["created"] = "created"
    form: Literal[1] = 1
    ledger: Random = Field(description="random identity of this ledger")


class JobOpened(_Record):
    """From here on this job is the one that is running."""

    kind: Literal["job"] = "job"
    job: Announced


class Reserved(_Record):
    """A round was paid for."""

    kind: Literal["reserve"] = "reserve"
    charge: Charged


class Answered(_Record):
    """The answer that entry `entry` paid for was ready."""

    kind: Literal["answer"] = "answer"
    entry: int = Field(ge=1)
    sha256: Sha256


class Unprotected(_Record):
    """A plan without privacy was trained, as the policy then allowed: no epsilon bounds what its model tells."""

    kind: Literal["unprotected"] = "unprotected"
    run_id: RunId
    plan_digest: Sha256


class TornBytes(Part):
    """Bytes of a line whose writing was cut; they stay in the file before the entry that vouches for them."""

    bytes: int = Field(ge=1)
    sha256: Sha256


class Torn(_Record):
    """A cut line was found, and charged as one full round of the job then running (None: no job ever was)."""

    kind: Literal["torn"] = "torn"
    torn: TornBytes
    charged: Announced | None


class Removed(_Record):
    """Patients were taken out of the store. What was spent on them stays spent."""

    kind: Literal["removal"] = "removal"
    old: Sha256 = Field(description="fingerprint of those who were there")
    new: Sha256 = Field(description="fingerprint of those who are left")


class MovedOut(_Record):
    """The ledger goes on elsewhere: this copy takes no entry any more."""

    kind: Literal["moved_out"] = "moved_out"
    landing: Sha256 = Field(description="SHA-256 of the secret that the new place keeps")


class MovedIn(_Record):
    """The ledger goes on here."""

    kind: Literal["moved_in"] = "moved_in"
    landing: Sha256


class Restored(_Record):
    """Entries were lost with a disk. What they spent was kept by the anchor, and stands here instead of them."""

    kind: Literal["restored"] = "restored"
    lost_from: int = Field(ge=1)
    lost_to: int = Field(ge=1)
    lost_head: Sha256 = Field(description="MAC of the last lost entry")
    charged: Events = Field(description="what the lost entries spent")
    lost_removals: int = Field(ge=0, description="removal records among them: whom they named is not known any more")
    lost_unprotected: int = Field(default=0, ge=0, description="runs without privacy among them")


class AnchorRenewed(_Record):
    """The anchor was lost and made anew; before this entry an older ledger could not have been noticed here."""

    kind: Literal["anchor_renewed"] = "anchor_renewed"
    known_count: int = Field(ge=0, description="newest entry that a server had recorded; 0: none had")


Record = Annotated[
    Created
    | JobOpened
    | Reserved
    | Answered
    | Unprotected
    | Torn
    | Removed
    | MovedOut
    | MovedIn
    | Restored
    | AnchorRenewed,
    Field(discriminator="kind"),
]
RECORD: TypeAdapter[Record] = TypeAdapter(Record)


def events_of(record: Record) -> tuple[Event, ...]:
    """What an entry spent."""
    if isinstance(record, Reserved):
        return (record.charge.event,)
    if isinstance(record, Torn):
        return () if record.charged is None else (record.charged.event,)
    return record.charged if isinstance(record, Restored) else ()


def merged(events: Iterable[Event]) -> tuple[Event, ...]:
    """The same spend with one event for each setting of a mechanism: their steps added, in a fixed order."""
    steps: Counter[Event] = Counter()
    for event in events:
        steps[event.model_copy(update={"steps": 1})] += event.steps
    merged_events = [event.model_copy(update={"steps": count}) for event, count in steps.items()]
    return tuple(sorted(merged_events, key=lambda e: (e.unit, e.mechanism, e.sample_rate, e.noise_multiplier)))


def spent_beyond(later: Iterable[Event], earlier: Iterable[Event]) -> tuple[Event, ...] | None:
    """What `later` spent more than `earlier`, merged; None where `later` lacks something."""
    more = {event.model_copy(update={"steps": 1}): event.steps for event in merged(later)}
    for event in merged(earlier):
        setting = event.model_copy(update={"steps": 1})
        left = more.pop(setting, 0) - event.steps
        if left < 0:
            return None
        if left:
            more[setting] = left
    return merged(setting.model_copy(update={"steps": steps}) for setting, steps in more.items())
