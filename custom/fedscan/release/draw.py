"""A set of synthetic slices with everything that its files say about it; no format knows where it came from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Values = Literal["hu", "grey"]


@dataclass(frozen=True, slots=True)
class Draw:
    """n slices and their origin.

    hu int16 [n, s, s]: HU, or grey values 0..255 where `values` is "grey". label int16 [n]: index into `label_names`,
    -1 without. pixel_mm: None where the model knows no scale (pictures). `identity` is hexadecimal: SHA-256 over model,
    settings and seed, the same for the same draw, and the root of all UIDs.
    """

    hu: NDArray[np.int16]
    label: NDArray[np.int16]
    label_names: tuple[str, ...]
    values: Values
    pixel_mm: float | None
    window: str
    identity: str
    model_sha256: str
    plan_digest: str
    method: str
    """In one sentence: sampler, steps, seed."""

    def __post_init__(self) -> None:
        if self.hu.dtype != np.int16 or self.hu.ndim != 3 or self.hu.shape[1] != self.hu.shape[2]:
            raise ValueError(f"slices must be int16 [n, s, s], got {self.hu.dtype} {list(self.hu.shape)}")
        if self.label.shape != (len(self.hu),):
            raise ValueError(f"labels must be [{len(self.hu)}] as the slices, got {list(self.label.shape)}")

    def label_of(self, index: int) -> str | None:
        """The name of a slice's label, or None."""
        label = int(self.label[index])
        return self.label_names[label] if label >= 0 else None
