"""Exact area average of a plane over the pixels of another grid: two small matrix products a plane."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ctslices.series import AIR_HU


@dataclass(frozen=True, slots=True)
class Overlap:
    """How n source pixels share `size` target pixels along one axis: a box filter as wide as a target pixel.

    Target pixel i is the sum over k of `weights[i, k] * source[first + k]`, plus the share `1 - covered[i]` of what
    lies outside the source.
    """

    weights: NDArray[np.float32]
    """float32 [size, count]: length of the overlap over the length of a target pixel."""
    first: int
    covered: NDArray[np.float32]
    """float32 [size], 0..1."""

    @property
    def last(self) -> int:
        """One past the last source pixel that counts."""
        return self.first + self.weights.shape[1]


def overlap(first_mm: float, pitch_mm: float, count: int, low_mm: float, length_mm: float, size: int) -> Overlap:
    """The shares along one axis.

    Source: `count` pixels, the first one's centre at `first_mm`, the next `pitch_mm` on (negative: the axis runs
    backwards). Target: `size` equal pixels from `low_mm` over `length_mm`. All in millimetres on one line.
    """
    centres = first_mm + pitch_mm * np.arange(count)
    half = abs(pitch_mm) / 2
    edges = low_mm + length_mm / size * np.arange(size + 1)
    lower = np.maximum(edges[:-1, None], centres - half)
    upper = np.minimum(edges[1:, None], centres + half)
    shares = np.maximum(upper - lower, 0) / (length_mm / size)
    used = np.flatnonzero(shares.any(axis=0))
    start, stop = (int(used[0]), int(used[-1]) + 1) if used.size else (0, 0)
    covered = np.minimum(shares.sum(axis=1), 1.0)
    return Overlap(np.ascontiguousarray(shares[:, start:stop], np.float32), start, covered.astype(np.float32))


def area_average(
    plane: NDArray[np.float32], down: Overlap, right: Overlap, transposed: bool = False, outside: float = AIR_HU
) -> NDArray[np.float32]:
    """float32 [down's size, right's size]: the mean of `plane` (float32 [rows, columns]) over each target pixel.

    `down` shares the plane's rows and `right` its columns; `transposed` planes have their columns along `down`. What
    lies outside the plane counts as `outside`.
    """
    rows, columns = (right, down) if transposed else (down, right)
    part = plane[rows.first : rows.last, columns.first : columns.last]
    mean = rows.weights @ part @ columns.weights.T
    if outside:
        mean += np.float32(outside) * (1 - np.outer(rows.covered, columns.covered))
    averaged: NDArray[np.float32] = mean.T if transposed else mean
    return averaged


def to_int16(values: NDArray[np.float32], lowest: int = AIR_HU) -> NDArray[np.int16]:
    """Rounded to int16 (half to even), not below `lowest` and not above what int16 holds."""
    return np.rint(np.clip(values, lowest, 32767)).astype(np.int16)
