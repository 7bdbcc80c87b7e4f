"""One picture of a store for a person to look at."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ctslices.files import write_whole
from ctslices.store import SliceStore

COLUMNS, ROWS = 10, 6
GAP_PIXELS = 2
LEAST_TILE_PIXELS = 96


def montage_path(store: Path) -> Path:
    """STORE.montage.png beside the store: a store holds nothing but shards and its manifest."""
    store = store.absolute()
    return store.with_name(store.name + ".montage.png")


def montage(store: SliceStore, window: str, generator: np.random.Generator) -> NDArray[np.uint8]:
    """uint8 [rows, columns] grey: up to 60 slices drawn without repetition, in the store's order, in one window."""
    chosen = np.sort(generator.choice(len(store), size=min(COLUMNS * ROWS, len(store)), replace=False))
    unit = store.window(window, indices=chosen)[:, 0]
    grey = np.rint((unit + 1) * 127.5).astype(np.uint8)
    scale = max(1, -(-LEAST_TILE_PIXELS // store.size))
    tiles = grey.repeat(scale, axis=1).repeat(scale, axis=2)
    columns, step = min(COLUMNS, len(tiles)), tiles.shape[1] + GAP_PIXELS
    rows = -(-len(tiles) // columns)
    sheet = np.full((rows * step - GAP_PIXELS, columns * step - GAP_PIXELS), 64, np.uint8)
    for number, tile in enumerate(tiles):
        top, left = (number // columns) * step, (number % columns) * step
        sheet[top : top + tile.shape[0], left : left + tile.shape[1]] = tile
    return sheet


def write_montage(store: SliceStore, path: Path, window: str = "full", seed: int = 0) -> Path | None:
    """Write the montage as PNG (mode 0600: it shows patients' slices); None and no file for an empty store."""
    if not len(store):
        return None
    from PIL import Image

    stream = io.BytesIO()
    Image.fromarray(montage(store, window, np.random.default_rng(seed))).save(stream, "PNG")
    write_whole(path, stream.getvalue(), mode=0o600)
    return path
