"""What one party noted since it was looked at first, read from its chained log, which must hold each time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fedscan.federation import kits, wall
from fedscan.federation.audit_log import AuditLog, Event


class Watched:
    """A party's audit log, from now on."""

    def __init__(self, folder: Path) -> None:
        self._log = AuditLog(folder)
        self._seen = len(self.events())

    def events(self) -> tuple[Event, ...]:
        """All of them."""
        found = self._log.verify()
        assert found.ok, found.faults
        return found.events

    def refused(self) -> list[Event]:
        """The new ones of its refusals."""
        return [event for event in self.events()[self._seen :] if event.what == "refused"]

    def told(self, *words: str, job: str = "") -> bool:
        """Whether one of the new refusals holds all these words, of this job where one is named."""
        return any(all(word in e.text for word in words) and job in ("", e.job) for e in self.refused())


class WatchedServer(Watched):
    """The lab's server."""

    def __init__(self, lab: Any) -> None:
        super().__init__(lab.federation.kit(kits.SERVER))


class WatchedSite(Watched):
    """One of the lab's sites, under a policy of its own."""

    def __init__(self, lab: Any, name: str) -> None:
        super().__init__(lab.site(name).state)
        self._lab, self.name = lab, name
        self._noted, self._charged = len(lab.reasons(name)), lab.steps_charged(name)
        self._sent = self._tensors_sent()

    def reasons(self) -> list[str]:
        """The new ones in refusals.jsonl."""
        return list(self._lab.reasons(self.name)[self._noted :])

    def must_have_done_nothing(self, job_id: str) -> None:
        """No step was charged, no tensor left, and nothing of the job lies in the kit."""
        assert self._lab.steps_charged(self.name) == self._charged
        assert self._tensors_sent() == self._sent
        assert not (self._lab.federation.kit(self.name) / job_id).exists()

    def _tensors_sent(self) -> int:
        entries = wall.read(self._lab.site(self.name).state / "wall.jsonl")
        return len([e for e in entries if e["kind"] == "tensors" and e["direction"] == "out"])
