"""Which sites a round asks: seeded, the same whatever order they are named in."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable


def sample_sites(sites: Iterable[str], count: int | None, seed: int, round_number: int) -> list[str]:
    """`count` of the different `sites` (None, or more than there are: all), sorted by name.

    Those come first whose SHA-256 over `["sites",seed,round,site]` is smallest: each set of that size is as likely as
    any other, and a site that is away does not change the order of the others.
    """
    different = sorted(set(sites))
    if count is None or count >= len(different):
        return different
    if count < 1:
        raise ValueError(f"count must be at least 1 or None, got {count}")
    return sorted(sorted(different, key=lambda site: _rank(site, seed, round_number))[:count])


def _rank(site: str, seed: int, round_number: int) -> bytes:
    text = json.dumps(["sites", seed, round_number, site], separators=(",", ":")).encode()
    return hashlib.sha256(text).digest()
