"""What must hold of a ledger whenever a site or a federation was killed."""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedscan.federation.messages import PrivateAnswer
from fedscan.privacy.accounting import epsilon
from fedscan.privacy.event import Event
from fedscan.privacy.ledger import Head, Ledger
from fedscan.privacy.site_file import Site

DELTA = 1e-3


@dataclass(frozen=True)
class Left:
    """An answer of which something left the site; without a SHA-256 the rest of it was lost with the process."""

    record: PrivateAnswer
    sha256: str | None


def steps_noted(log: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []


def check_steps(ledger: Ledger, steps: Iterable[dict[str, Any]]) -> None:
    """No step was begun that an entry had not paid for, with this noise and sampling, and no entry paid twice."""
    taken = Counter(json.dumps(step, sort_keys=True) for step in ({**s, "pid": 0} for s in steps))
    events = []
    for text, count in taken.items():
        step = json.loads(text)
        paid = ledger.paid_for(step["charge"])
        assert paid is not None, f"a step was taken on entry {step['charge']}, which paid for nothing"
        assert (paid.charge.run_id, paid.charge.round_number) == (step["run"], step["round"])
        event = Event(**{k: step[k] for k in ("noise_multiplier", "sample_rate", "unit")}, steps=count)
        assert paid.charge.event.model_copy(update={"steps": count}) == event
        assert count <= paid.charge.event.steps, "more steps than were charged"
        events.append(event)
    assert epsilon(ledger.events(), DELTA) >= epsilon(events, DELTA)


def check_left(ledger: Ledger, left: Iterable[Left]) -> None:
    """Each answer that left was paid for by the entry that it names, which paid for no other."""
    for answer in left:
        head = answer.record.ledger
        assert ledger.contains(Head(head.count, head.mac))
        paid = ledger.paid_for(head.count)
        assert paid is not None
        charge, record = paid.charge, answer.record
        assert (charge.run_id, charge.plan_digest, charge.round_number, charge.model_digest) == (
            record.run_id,
            record.plan_digest,
            record.round_number,
            record.model_digest,
        )
        assert paid.answer_sha256 is not None, "an answer left that the ledger did not note"
        assert answer.sha256 in (None, paid.answer_sha256), "another answer left than the one that was paid for"


@contextmanager
def ledger_copy(site_json: Path) -> Iterator[Ledger]:
    """Opened from a copy: recovery is the site's own business."""
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "site"
        shutil.copytree(site_json.parent, copy, ignore=shutil.ignore_patterns("state"))
        (copy / "state").mkdir(mode=0o700)
        yield Site.open(copy / site_json.name).open_ledger()


def sha256_of(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
