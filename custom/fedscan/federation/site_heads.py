"""RUN/site_heads.json: the last head that each site's ledger showed with an answer. It goes back with each task."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from ctslices.files import write_whole
from fedscan.federation.messages import LedgerHead

FILE = "site_heads.json"


class HeadsError(RuntimeError):
    """The file is there and cannot be understood: without it an old ledger would not be noticed."""


class _File(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    sites: dict[str, LedgerHead]


class SiteHeads:
    """Heads by site, on disk before anybody acts on them. They never go back."""

    def __init__(self, path: Path, others: Iterable[Path] = ()) -> None:
        """`others` are the files of this server's other runs: a site has one ledger for all. Raises HeadsError."""
        self._path = path
        self._heads = _read(path)
        for other in others:
            for site, head in _read(other).items():
                if site not in self._heads or head.count > self._heads[site].count:
                    self._heads[site] = head

    def of(self, site: str) -> LedgerHead | None:
        """The last head recorded of `site`; None: it never answered under differential privacy here."""
        return self._heads.get(site)

    def note(self, site: str, head: LedgerHead) -> None:
        """Records `head` where it is newer: an answer that is sent again carries the head of its own entry."""
        known = self._heads.get(site)
        if known is not None and head.count <= known.count:
            return
        heads = self._heads | {site: head}
        write_whole(self._path, (_File(sites=heads).model_dump_json(indent=2) + "\n").encode(), mode=0o600)
        self._heads = heads


def _read(path: Path) -> dict[str, LedgerHead]:
    if not path.exists():
        return {}
    try:
        return _File.model_validate_json(path.read_bytes()).sites
    except (OSError, ValidationError) as error:
        raise HeadsError(
            f"{path.name} cannot be read ({type(error).__name__}): restore it, or begin a new run"
        ) from None
