"""From guesses about canaries to a lower bound on epsilon: Steinke, Nasr and Jagielski 2023, "Privacy auditing with one
(1) training run", arXiv 2305.08846."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binom

_PRECISION = 1e-4


@dataclass(frozen=True)
class Guesses:
    """What an attacker said about canaries that were in or out by fair coins."""

    canaries: int
    made: int
    """Guesses; the attacker keeps silent about the other canaries."""
    correct: int


def guess(scores: NDArray[np.float64], included: NDArray[np.bool_], made: int) -> Guesses:
    """`made` guesses, half of them "in" for the highest scores and half "out" for the lowest.

    `scores` float64 [m], `included` bool [m]. How many are made must be fixed before the scores are seen.
    """
    if not 2 <= made <= len(scores) or made % 2:
        raise ValueError(f"made must be even and lie in 2..{len(scores)}, got {made}")
    order = np.argsort(scores, kind="stable")
    half = made // 2
    correct = int(included[order[-half:]].sum() + (~included[order[:half]]).sum())
    return Guesses(len(scores), made, correct)


def p_value(guesses: Guesses, epsilon: float, delta: float) -> float:
    """At most this probable is so good an attack on a mechanism that is (epsilon, delta)-private.

    Theorem 5.2 there: with q = e^eps / (1 + e^eps) and W ~ Binomial(made, q), P[W >= correct] plus
    2 m delta max_i (P[W >= correct - i] - P[W >= correct]) / i.
    """
    q = 1.0 / (1.0 + math.exp(-epsilon))
    tail = float(binom.sf(guesses.correct - 1, guesses.made, q))
    i = np.arange(1, guesses.correct + 1)
    more = np.cumsum(binom.pmf(guesses.correct - i, guesses.made, q))
    worst = float(np.max(more / i)) if len(i) else 0.0
    return min(1.0, tail + 2.0 * guesses.canaries * delta * worst)


def epsilon_lower_bound(guesses: Guesses, delta: float, confidence: float = 0.999) -> float:
    """The largest epsilon that is refused at this confidence; 0.0 where none is."""
    allowed = 1.0 - confidence
    if p_value(guesses, 0.0, delta) > allowed:
        return 0.0
    low, high = 0.0, 1.0
    while p_value(guesses, high, delta) <= allowed and high < 64.0:
        low, high = high, 2.0 * high
    while high - low > _PRECISION:
        middle = (low + high) / 2.0
        low, high = (middle, high) if p_value(guesses, middle, delta) <= allowed else (low, middle)
    return low
