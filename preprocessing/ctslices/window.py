"""Hounsfield units (or grey values) to the model's range [-1, 1] and back."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray


@dataclass(frozen=True, slots=True)
class Window:
    """A display window: what lies outside it is clipped (DICOM PS3.3 C.11.2.1.2, in its continuous form)."""

    level: float
    """Centre, in HU (grey values for `grey`)."""
    width: float
    """Full width, in HU (grey values for `grey`)."""

    @property
    def low(self) -> float:
        """The value that becomes -1."""
        return self.level - self.width / 2

    @property
    def high(self) -> float:
        """The value that becomes +1."""
        return self.level + self.width / 2


WINDOWS: dict[str, Window] = {
    "full": Window(level=0, width=2000),
    "lung": Window(level=-600, width=1500),
    "mediastinum": Window(level=40, width=400),
    "bone": Window(level=400, width=1800),
    "grey": Window(level=127.5, width=255),
}
"""The first four are in HU; `grey` is for pictures, whose values are 0..255 and not HU."""


def window_of(name: str) -> Window:
    """The window of that name; ValueError when there is none."""
    try:
        return WINDOWS[name]
    except KeyError:
        raise ValueError(f"window must be one of {', '.join(WINDOWS)}: got {name!r}") from None


def to_unit(hu: ArrayLike, name: str) -> NDArray[np.float32]:
    """`hu` (any shape, HU; grey values for `grey`) to float32 of the same shape in [-1, 1], clipped at the window."""
    window = window_of(name)
    unit = np.asarray(hu, dtype=np.float32)
    unit = (unit - np.float32(window.level)) * np.float32(2 / window.width)
    clipped: NDArray[np.float32] = np.clip(unit, np.float32(-1), np.float32(1))
    return clipped


def to_hu(unit: ArrayLike, name: str) -> NDArray[np.int16]:
    """`unit` (any shape, [-1, 1]) to int16 of the same shape: the exact inverse of `to_unit` inside the window.

    Values outside [-1, 1] are clipped first: the model cannot say what lies outside its window.
    """
    window = window_of(name)
    inside = np.clip(np.asarray(unit, dtype=np.float64), -1.0, 1.0)
    return np.rint(inside * (window.width / 2) + window.level).astype(np.int16)
