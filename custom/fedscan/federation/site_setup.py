"""What a site trains on and under, from its own files."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from fedscan.federation.places import SitePlaces
from fedscan.privacy.site_file import Site


@dataclass(frozen=True)
class SiteSetup:
    """A site's places, and what it trains under."""

    store: Path
    state: Path
    threads: int
    site: Site | None
    """Policy and ledger; None: no policy, no ledger."""
    reproducible_noise_seed: int | None = None

    @classmethod
    def of(cls, places: SitePlaces) -> SiteSetup:
        """Raises SiteError."""
        if places.site_file is None:
            assert places.store is not None
            assert places.state is not None
            return cls(places.store, places.state, places.threads, None)
        site = Site.open(places.site_file)
        return cls(site.store, site.state, site.limits.cores, site, places.reproducible_noise_seed)
