"""From the plan's one seed to a random stream for each purpose: documented, so that a run can be repeated."""

from __future__ import annotations

import hashlib
import json

import torch


def derived_seed(*parts: str | int) -> int:
    """63 bits that follow from `parts`: the first 8 bytes (big-endian) of SHA-256 over their JSON list, top bit off.

    JSON without spaces, so ("a", 1) hashes `["a",1]`: different lists never run together.
    """
    text = json.dumps(list(parts), separators=(",", ":"), ensure_ascii=True).encode()
    return int.from_bytes(hashlib.sha256(text).digest()[:8], "big") >> 1


def derived_generator(*parts: str | int) -> torch.Generator:
    """A CPU generator seeded with `derived_seed(*parts)`; a stream of its own for each list of parts."""
    return torch.Generator().manual_seed(derived_seed(*parts))
