"""What is wrong with a job, all at once: findings as values."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Literal


@dataclass(frozen=True)
class Finding:
    """One thing to know before anything runs. `error` keeps the job from running; `note` is for information."""

    level: Literal["error", "warning", "note"]
    where: str
    text: str

    def as_dict(self) -> dict[str, str]:
        """For --json."""
        return asdict(self)


class JobError(ValueError):
    """A job that cannot run; carries every finding."""

    def __init__(self, findings: list[Finding]) -> None:
        self.findings = findings
        super().__init__("\n".join(f"{f.where}: {f.text}" for f in findings))
