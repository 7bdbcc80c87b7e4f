"""Which side of the split a patient is on."""

from __future__ import annotations

import hashlib

from ctslices.manifest import Split


def side(pseudonym: str, holdout: float, seed: int) -> Split:
    """`train` or `holdout` for one patient, from its pseudonym alone: adding patients never moves another.

    SHA-256 of seed and pseudonym, read as a number in [0, 1), is compared with the fraction `holdout`. The price of
    that stability: the fraction holds on average only, and a store of a few patients may have an empty side.
    """
    if not 0 <= holdout < 1:
        raise ValueError(f"holdout must lie in 0 (included) to 1 (excluded): got {holdout}")
    digest = hashlib.sha256(f"split:{seed}:{pseudonym}".encode()).digest()
    return "holdout" if int.from_bytes(digest[:7], "big") / 2**56 < holdout else "train"
