"""Frechet and kernel distances between sets of features, as sums that add up over sites; never without n and floor."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import safetensors.torch
import torch
from torch import Tensor

from fedscan.evaluation.features import FEATURES

MAX_COUNT = 2**53


@dataclass(frozen=True, eq=False)
class FeatureSums:
    """All that the Frechet distance needs of a set: `n`, `total` float64 [d], `outer` float64 [d, d] (sum of f f^T).

    The sums of two sites' slices are the sums of both: `a + b`. They are data about patients: a site's policy decides
    whether they may leave.
    """

    n: int
    total: Tensor
    outer: Tensor

    @classmethod
    def of(cls, features: Tensor) -> Self:
        """Sums of `features` [n, d] (any float dtype, added in float64)."""
        if features.ndim != 2 or not features.is_floating_point():
            raise ValueError(f"features must be floats [n, d], got {features.dtype} {list(features.shape)}")
        f = features.detach().to("cpu", torch.float64)
        return cls(len(f), f.sum(0), f.T @ f)

    def __post_init__(self) -> None:
        d = self.total.shape[0] if self.total.ndim == 1 else -1
        if self.outer.shape != (d, d) or {self.total.dtype, self.outer.dtype} != {torch.float64}:
            raise ValueError(
                f"sums must be float64 [d] and [d, d], got {self.total.dtype} {list(self.total.shape)} "
                f"and {self.outer.dtype} {list(self.outer.shape)}"
            )
        if not 0 <= self.n <= MAX_COUNT:
            raise ValueError(f"n must lie in 0..2^53, got {self.n}")
        if not (bool(self.total.isfinite().all()) and bool(self.outer.isfinite().all())):
            raise ValueError("sums must be finite: some slice or feature was not")

    def __add__(self, other: FeatureSums) -> FeatureSums:
        if self.total.shape != other.total.shape:
            raise ValueError(f"sums of {len(self.total)} and {len(other.total)} features do not add")
        return FeatureSums(self.n + other.n, self.total + other.total, self.outer + other.outer)

    def to_bytes(self) -> bytes:
        """As safetensors: `n` int64 [1], `total`, `outer`."""
        tensors = {"n": torch.tensor([self.n]), "total": self.total.contiguous(), "outer": self.outer.contiguous()}
        return safetensors.torch.save(tensors)

    @classmethod
    def from_bytes(cls, content: bytes) -> Self:
        """The sums in `content`, as written by `to_bytes`; ValueError for anything else."""
        try:
            tensors = safetensors.torch.load(content)
        except safetensors.SafetensorError as error:
            raise ValueError("feature sums are not safetensors: ask the site to send them again") from error
        if set(tensors) != {"n", "total", "outer"} or tensors["n"].dtype != torch.int64 or tensors["n"].shape != (1,):
            raise ValueError(f"feature sums must hold n int64 [1], total and outer, got {sorted(tensors)}")
        sums = cls(int(tensors["n"]), tensors["total"], tensors["outer"])
        if not torch.allclose(sums.outer, sums.outer.T):
            raise ValueError("feature sums are not symmetric: they are no sum of outer products")
        return sums

    def mean(self) -> Tensor:
        """float64 [d]."""
        return self.total / self.n

    def covariance(self) -> Tensor:
        """float64 [d, d], unbiased (divisor n - 1)."""
        if self.n < 2:
            raise ValueError(f"a covariance needs at least 2 slices, got {self.n}")
        mean = self.mean()
        return (self.outer - self.n * torch.outer(mean, mean)) / (self.n - 1)


def frechet_distance(a: FeatureSums, b: FeatureSums) -> float:
    """|mu_a - mu_b|^2 + tr(C_a + C_b - 2 (C_a C_b)^(1/2)) (Dowson and Landau 1982; Heusel et al. 2017, eq. 6).

    The trace of the root is that of (R C_b R)^(1/2) with R = C_a^(1/2), which is symmetric: real also where a set is
    smaller than its features are many.
    """
    if a.total.shape != b.total.shape:
        raise ValueError(f"no distance between {len(a.total)} and {len(b.total)} features")
    covariance_a, covariance_b = a.covariance(), b.covariance()
    values, vectors = torch.linalg.eigh(covariance_a)
    root = (vectors * values.clamp(min=0.0).sqrt()) @ vectors.T
    trace_of_root = torch.linalg.eigvalsh(root @ covariance_b @ root).clamp(min=0.0).sqrt().sum()
    between = (a.mean() - b.mean()).square().sum()
    return max(0.0, float(between + covariance_a.trace() + covariance_b.trace() - 2.0 * trace_of_root))


def kernel_distance(a: Tensor, b: Tensor) -> float:
    """Squared maximum mean discrepancy, kernel (x.y / d + 1)^3, unbiased: the KID of Binkowski et al. 2018.

    `a` [n, d], `b` [m, d] features, n and m at least 2. Unlike the Frechet distance it has no bias by n; it may be
    slightly negative for like sets.
    """
    if min(len(a), len(b)) < 2 or a.shape[1:] != b.shape[1:]:
        raise ValueError(f"features must be [n, d] and [m, d] with n, m >= 2, got {list(a.shape)} and {list(b.shape)}")
    a, b = a.double(), b.double()

    def kernel(x: Tensor, y: Tensor) -> Tensor:
        return (x @ y.T / x.shape[1] + 1.0) ** 3

    def within(x: Tensor) -> Tensor:
        k = kernel(x, x)
        return (k.sum() - k.trace()) / (len(x) * (len(x) - 1))

    return float(within(a) + within(b) - 2.0 * kernel(a, b).mean())


@dataclass(frozen=True)
class Floor:
    """Distance between two disjoint real sets of `n` slices each: median and range over several divisions."""

    value: float
    low: float
    high: float
    n: int
    by_group: bool

    def __str__(self) -> str:
        halves = "other groups" if self.by_group else "random halves"
        return f"{self.value:.1f} ({self.low:.1f}-{self.high:.1f}; real-real at n={self.n}, {halves})"


@dataclass(frozen=True)
class FdLite112:
    """A distance with what it takes to read it: both counts and the floor. Comparable at the same counts only."""

    value: float
    n_a: int
    n_b: int
    floor: Floor

    def __str__(self) -> str:
        return f"FD-lite112 {self.value:.1f} (n={self.n_a} and {self.n_b}; floor {self.floor})"


def floor(real: Tensor, n: int, seed: int, groups: Sequence[int] | None = None, divisions: int = 5) -> Floor:
    """The real-real distance at `n`: what a perfect model would get.

    `real` features [N, d] with N >= 2n; `groups` one number a slice (its patient, or its block of neighbours): no
    group is then on both sides. Without groups neighbours are on both sides, and the floor comes out too low.
    """
    generator = torch.Generator().manual_seed(seed)
    values = []
    for _ in range(divisions):
        first, second = _two_sides(len(real), n, generator, groups)
        values.append(frechet_distance(FeatureSums.of(real[first]), FeatureSums.of(real[second])))
    return Floor(statistics.median(values), min(values), max(values), n, groups is not None)


def fd_lite112(synthetic: Tensor, real: Tensor, seed: int, groups: Sequence[int] | None = None) -> FdLite112:
    """Distance of `synthetic` [m, 112] to `real` [N, 112] features at the largest n that both and the floor can give.

    n = min(m, N // 2, what the groups allow); the same number of real slices is drawn for the comparison.
    """
    if synthetic.shape[1:] != (FEATURES,) or real.shape[1:] != (FEATURES,):
        raise ValueError(f"features must be [n, {FEATURES}], got {list(synthetic.shape)} and {list(real.shape)}")
    generator = torch.Generator().manual_seed(seed)
    n = min(len(synthetic), len(real) // 2)
    base = floor(real, n, seed, groups)
    drawn = torch.randperm(len(synthetic), generator=generator)[:n]
    compared = torch.randperm(len(real), generator=generator)[:n]
    value = frechet_distance(FeatureSums.of(synthetic[drawn]), FeatureSums.of(real[compared]))
    return FdLite112(value, n, n, base)


def _two_sides(
    count: int, n: int, generator: torch.Generator, groups: Sequence[int] | None
) -> tuple[list[int], list[int]]:
    """Two disjoint sets of n indices each, no group in both."""
    keys = list(range(count)) if groups is None else list(groups)
    if len(keys) != count:
        raise ValueError(f"groups must have one entry a slice: got {len(keys)}, wanted {count}")
    members: dict[int, list[int]] = {}
    for index, key in enumerate(keys):
        members.setdefault(key, []).append(index)
    names = sorted(members)
    sides: tuple[list[int], list[int]] = ([], [])
    for place in torch.randperm(len(names), generator=generator).tolist():
        shorter = sides[0] if len(sides[0]) <= len(sides[1]) else sides[1]
        shorter.extend(members[names[place]])
    if n < 2 or min(map(len, sides)) < n:
        raise ValueError(
            f"a floor at n={n} needs two disjoint real sets of that many (at least 2), got {len(sides[0])} and "
            f"{len(sides[1])}: use a smaller n"
        )
    return _some(sides[0], n, generator), _some(sides[1], n, generator)


def _some(side: list[int], n: int, generator: torch.Generator) -> list[int]:
    return [side[i] for i in torch.randperm(len(side), generator=generator)[:n].tolist()]
