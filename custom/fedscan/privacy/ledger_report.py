"""What a ledger says to its people: spend by job and over time, and what happened to the ledger itself."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fedscan.privacy.accounting import epsilon
from fedscan.privacy.event import Event
from fedscan.privacy.ledger_file import Line
from fedscan.privacy.ledger_records import (
    Announced,
    Answered,
    Charged,
    Head,
    MovedIn,
    MovedOut,
    Removed,
    Reserved,
    Restored,
    Torn,
    Unprotected,
    events_of,
    merged,
)


@dataclass(frozen=True)
class JobSpend:
    """What one run has spent. `run_id` is None for entries that were lost with a disk and restored by their spend."""

    run_id: str | None
    plan_digest: str | None
    rounds: int
    """Charged, each as often as it was trained."""
    torn: int
    """Charged for lines that a power cut tore."""
    answers: int
    """That were ready: the rest was paid for nothing."""
    steps: int
    events: tuple[Event, ...]
    first: str
    last: str
    """Times of its first and last entry, UTC."""

    def epsilon(self, delta: float) -> float:
        """Of this run alone; those of several runs do not simply add. Raises AccountingError."""
        return epsilon(self.events, delta)


@dataclass(frozen=True)
class SpendPoint:
    """The budget after some entry."""

    rounds: int
    """Charged so far, over all jobs."""
    entry: int
    time: str
    epsilon: float
    run_id: str | None
    """Whose entry it was."""


def by_job(lines: Sequence[Line]) -> list[JobSpend]:
    """The runs in order of their first charge."""
    of_entry: dict[int, tuple[str | None, str | None]] = {}
    charged: dict[tuple[str | None, str | None], list[Line]] = {}
    answers: dict[tuple[str | None, str | None], int] = {}
    for line in lines:
        if isinstance(line.record, Answered):
            job = of_entry[line.record.entry]
            answers[job] = answers.get(job, 0) + 1
        elif events_of(line.record):
            job = of_entry[line.number] = _job(line)
            charged.setdefault(job, []).append(line)
    return [_spend(job, own, answers.get(job, 0)) for job, own in charged.items()]


def _job(line: Line) -> tuple[str | None, str | None]:
    charged = _charged(line)
    return (None, None) if charged is None else (charged.run_id, charged.plan_digest)


def _charged(line: Line) -> Announced | Charged | None:
    if isinstance(line.record, Reserved):
        return line.record.charge
    return line.record.charged if isinstance(line.record, Torn) else None


def _spend(job: tuple[str | None, str | None], own: Sequence[Line], answers: int) -> JobSpend:
    events = merged(event for line in own for event in events_of(line.record))
    return JobSpend(
        run_id=job[0],
        plan_digest=job[1],
        rounds=sum(isinstance(line.record, Reserved) for line in own),
        torn=sum(isinstance(line.record, Torn) for line in own),
        answers=answers,
        steps=sum(event.steps for event in events),
        events=events,
        first=own[0].record.time,
        last=own[-1].record.time,
    )


def history(lines: Sequence[Line], delta: float, points: int = 40) -> list[SpendPoint]:
    """epsilon after at most about `points` entries, evenly apart; each job's first and last are among them.

    Raises AccountingError.
    """
    spending = [line for line in lines if events_of(line.record)]
    jobs = [_job(line) for line in spending]
    last = len(spending) - 1
    step = max(1, len(spending) // points)
    taken = {*range(0, len(spending), step), *range(last, len(spending))}
    taken |= {n for n in range(last) if jobs[n] != jobs[n + 1]} if len(set(jobs)) <= points else set()
    found, spent = [], tuple[Event, ...]()
    for number, line in enumerate(spending):
        spent = merged((*spent, *events_of(line.record)))
        if number in taken:
            found.append(
                SpendPoint(
                    rounds=number + 1,
                    entry=line.number,
                    time=line.record.time,
                    epsilon=epsilon(spent, delta),
                    run_id=jobs[number][0],
                )
            )
    return found


def incidents(lines: Sequence[Line]) -> list[str]:
    """What happened to the ledger itself, for its people to know."""
    return [f"{line.record.time} entry {line.number}: {text}" for line in lines if (text := _incident(line))]


def _incident(line: Line) -> str | None:
    record = line.record
    if isinstance(record, Torn):
        return "a line was torn by a power cut" + (", and charged as a round" if record.charged else "")
    if isinstance(record, Unprotected):
        return f"run {record.run_id[:12]} was trained without differential privacy: no epsilon bounds it"
    if isinstance(record, Removed):
        return "patients were taken out of the store"
    if isinstance(record, Restored):
        text = f"entries {record.lost_from} to {record.lost_to} were lost; their spend was restored from the anchor"
        again = f"; {record.lost_removals} removal records are among them: run those `store forget` again"
        plain = f"; {record.lost_unprotected} runs without differential privacy are among them"
        return text + (again if record.lost_removals else "") + (plain if record.lost_unprotected else "")
    if isinstance(record, MovedOut):
        return "moved to another machine: this copy is retired"
    if isinstance(record, MovedIn):
        return "moved in from another machine"
    if record.kind == "anchor_renewed":
        return "the anchor was lost and made anew: before this entry an older ledger would not have been noticed here"
    return None


def head_text(head: Head) -> str:
    """As people copy it: COUNT:MAC."""
    return f"{head.count}:{head.mac}"
