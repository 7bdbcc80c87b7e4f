"""Random words to uniform and Gaussian float64 values, guarded against floating-point attacks."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

FillWords = Callable[[NDArray[np.uint64]], None]
"""Overwrites an array of any shape with independent, uniform 64-bit words."""

SUMMANDS = 4
_BLOCK = 4096
"""Pairs at once: the block stays in the cache, and torch does not split so little over threads."""
_ONE = np.uint64(0x3FF0_0000_0000_0000)
"""The bits of float64 1.0: with 52 random bits below them, a value of [1, 2) in steps of 2^-52."""


def to_uniform(words: NDArray[np.uint64]) -> NDArray[np.float64]:
    """float64 in (0, 1): odd multiples of 2^-53, all equally likely; overwrites `words` and shares their memory."""
    np.right_shift(words, np.uint64(12), out=words)
    np.bitwise_or(words, _ONE, out=words)
    values = words.view(np.float64)
    values -= 1.0 - 2.0**-53
    return values


def gaussian(fill: FillWords, n: int) -> Tensor:
    """float64 [n] on the CPU, standard normal: each the sum of four independent Box-Muller values, over two.

    A single float64 Gaussian has gaps in its low bits by which a noised value can betray what it was before (Mironov
    2012; Jin et al. 2022, arXiv 2112.05307). A sum of four needs about 2^159 guesses (Holohan and Braghin 2021, arXiv
    2107.10138, section 5.1). Here the four come from four pairs of uniforms, the cosines to one value and the sines to
    another, which are independent. The time hangs on n alone: nothing is rejected.
    """
    values = torch.empty(n, dtype=torch.float64)
    pairs = max(1, min(_BLOCK, (n + 1) // 2))
    words = np.empty((2, SUMMANDS, pairs), dtype=np.uint64)
    for at in range(0, n, 2 * pairs):
        fill(words)
        radius, angle = torch.from_numpy(to_uniform(words))
        radius.log_().mul_(-2.0 / SUMMANDS).sqrt_()
        angle.mul_(2.0 * math.pi)
        both = torch.cat([(angle.cos() * radius).sum(0), (angle.sin() * radius).sum(0)])
        values[at : at + 2 * pairs] = both[: n - at]
    return values
