"""Revocations at the server: its operator lays the list into KIT/local, and it goes out with every task."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from fedscan.federation import revocation
from fedscan.federation.revocation import RevocationError, Revocations
from fedscan.federation.server_round import RunStoppedError
from fedscan.federation.submitter import verified_submitter


@dataclass(frozen=True)
class Known:
    """The list as it lies at the server now."""

    text: str | None
    """As it goes out; None: there is none."""
    sites: dict[str, str]
    """Revoked among those asked about, and why."""


class ServerRevocations:
    """Of one job: who signed it, and who of its sites may no longer be asked."""

    def __init__(self, local: Path, root_ca: Path, app: Path) -> None:
        """KIT/local, KIT/startup/rootCA.pem and the job's app folder at the server."""
        self._revocations = Revocations(local / revocation.FILE, root_ca)
        self._submitter = verified_submitter(app, root_ca)

    @property
    def submitter(self) -> str | None:
        """Who signed the job; None: nobody is known."""
        return self._submitter.name if self._submitter else None

    def now(self, sites: Iterable[str]) -> Known:
        """Raises RunStoppedError where the job's submitter is revoked, or a list lies there that cannot be used."""
        try:
            newest = self._revocations.newest()
            if newest is None:
                return Known(None, {})
            reasons = {site: reason for site in sites if (reason := newest.reason(site, None))}
            text = self._revocations.text()
        except RevocationError as error:
            raise RunStoppedError(f"revocations: {error}") from None
        if self._submitter is None:
            raise RunStoppedError("nobody is known to have signed this job, and people are revoked here")
        if reason := newest.reason(self._submitter.name, self._submitter.issued):
            raise RunStoppedError(f"the job's submitter is {reason}")
        return Known(text, reasons)
