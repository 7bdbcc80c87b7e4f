"""A screen for text that was burned into the pixels: one plane, well under a millisecond, no learning.

Burned-in text has one exact value in all its strokes; noise never lets tissue have that. So: count equal neighbours by
value, look for values with far more of them than the values around, and ask whether the pixels of such a value lie as
text does: a band of rows, each crossed by several short runs. Metal at the scanner's ceiling, clipped air and table
edges have the value but not the rows.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

MIN_EQUAL_NEIGHBOURS = 10
"""A value with fewer equal neighbour pairs than this above its surroundings draws no line of text."""
MIN_RUNS = 4
"""Runs that a row of text has at least: three or four letters."""
MIN_ROWS = 4
MAX_ROWS = 72
"""Rows of one band: from 10-pixel capitals to two joined lines of large type."""
MAX_MEAN_RUN = 14.0
"""Strokes and the gaps between letters are short."""
MAX_SHARE = 0.08
"""Of the plane: a value that covers more is a background."""
DARKEST_HU = -900
"""Text as dark as air is not looked for: clipped air has the same one value."""
BRIGHT_HU = 300
"""Of a brighter pen, pixels that it covers by more than half count too: small type has few others."""
TISSUE_HU = 50
_CEILING = (1 << 15) - 1
_SUSPECTS = 6
_REACH = 6


def suspected(hu: NDArray[np.float32]) -> bool:
    """Whether a plane, HU float32 [rows, columns] with air at -1024, seems to carry burned-in text.

    Finds horizontal text of one value and three or more letters (set in 16 pixels or more nearly always, in 10 pixels
    half of the time); not rotated text, handwriting, or text that was blurred after it was drawn.
    """
    values = (hu if hu.max() <= _CEILING else np.minimum(hu, _CEILING)).astype(np.int16)
    return any(_lies_like_text(_drawn_with(values, value)) for value in _flat_values(values))


def _drawn_with(values: NDArray[np.int16], value: int) -> NDArray[np.bool_]:
    """The pixels, bool [rows, columns], that a pen of this value drew: smoothed edges of bright type included."""
    if value < BRIGHT_HU:
        return np.equal(values, value)
    covered: NDArray[np.bool_] = values >= value - 0.45 * (value - TISSUE_HU)
    return covered


def _flat_values(values: NDArray[np.int16]) -> list[int]:
    """Values that have far more equal neighbours than the values near them, strongest first."""
    tissue = values > DARKEST_HU
    across = (values[:, 1:] == values[:, :-1]) & tissue[:, 1:]
    down = (values[1:] == values[:-1]) & tissue[1:]
    flat = np.concatenate([values[:, 1:][across], values[1:][down]]).astype(np.intp)
    if not flat.size:
        return []
    counts = np.bincount(flat - DARKEST_HU)
    around = np.zeros_like(counts)
    for shift in range(1, _REACH + 1):
        np.maximum(around[shift:], counts[:-shift], out=around[shift:])
        np.maximum(around[:-shift], counts[shift:], out=around[:-shift])
    spikes = np.flatnonzero(counts > MIN_EQUAL_NEIGHBOURS + 2 * around)
    strongest = spikes[np.argsort(-counts[spikes], kind="stable")][:_SUSPECTS]
    return [int(at) + DARKEST_HU for at in strongest]


def _lies_like_text(mask: NDArray[np.bool_]) -> bool:
    """Whether a value's pixels, bool [rows, columns], form a band of rows that are crossed by many short runs."""
    if np.count_nonzero(mask) > MAX_SHARE * mask.size:
        return False
    inside = np.count_nonzero(mask, axis=1)
    runs = np.count_nonzero(mask[:, 1:] & ~mask[:, :-1], axis=1) + mask[:, 0]
    texty = (runs >= MIN_RUNS) & (inside <= MAX_MEAN_RUN * runs)
    edges = np.flatnonzero(np.diff(np.concatenate([[False], texty, [False]])))
    lengths = edges[1::2] - edges[::2]
    return bool(((lengths >= MIN_ROWS) & (lengths <= MAX_ROWS)).any())
