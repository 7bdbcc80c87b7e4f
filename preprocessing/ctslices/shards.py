"""One shard of a store: a safetensors file written as a stream, and its arrays memory-mapped."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ctslices.files import write_whole

_DTYPES: dict[str, tuple[str, np.dtype[Any]]] = {
    "patient": ("I32", np.dtype("<i4")),
    "series": ("I32", np.dtype("<i4")),
    "position_mm": ("F32", np.dtype("<f4")),
    "hu": ("I16", np.dtype("<i2")),
    "label": ("I16", np.dtype("<i2")),
}
"""In file order: four-byte values first, so that every array is aligned whatever n and the size are."""


def shard_name(number: int) -> str:
    """File name of shard `number` (0-based)."""
    return f"slices-{number:05d}.safetensors"


def in_a_store(place: Path) -> bool:
    """Whether `place` is a store with slices, or lies in one: what lies there goes when the store is made anew."""
    return any((folder / shard_name(0)).is_file() for folder in (place, *place.parents))


@dataclass(frozen=True, slots=True)
class Columns:
    """What a shard holds beside its pixels, one entry a slice."""

    patient: NDArray[np.int32]
    series: NDArray[np.int32]
    position_mm: NDArray[np.float32]
    label: NDArray[np.int16]


def _shapes(slices: int, size: int) -> dict[str, tuple[int, ...]]:
    return {name: (slices, size, size) if name == "hu" else (slices,) for name in _DTYPES}


def _header(slices: int, size: int) -> bytes:
    """safetensors: u64 length, then JSON padded with spaces to a multiple of 8, then the arrays without holes."""
    entries: dict[str, Any] = {}
    offset = 0
    for name, shape in _shapes(slices, size).items():
        code, dtype = _DTYPES[name]
        end = offset + int(np.prod(shape)) * dtype.itemsize
        entries[name] = {"dtype": code, "shape": list(shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def write_shard(path: Path, size: int, columns: Columns, pixels: Iterable[NDArray[np.int16]]) -> str:
    """Write a shard and return its SHA-256 (hex). `pixels` yields int16 [k, size, size] that add up to the slices.

    Memory holds one item of `pixels` at a time. The file appears whole or not at all.
    """
    slices = len(columns.patient)
    digest = hashlib.sha256()

    def chunks() -> Iterable[bytes]:
        yield _header(slices, size)
        for name in ("patient", "series", "position_mm"):
            yield np.ascontiguousarray(getattr(columns, name), _DTYPES[name][1]).tobytes()
        written = 0
        for block in pixels:
            if block.dtype != np.int16 or block.shape[1:] != (size, size):
                raise ValueError(f"pixels must be int16 [k, {size}, {size}]: got {block.dtype} {list(block.shape)}")
            written += len(block)
            yield np.ascontiguousarray(block, "<i2").tobytes()
        if written != slices:
            raise ValueError(f"pixels must add up to {slices} slices: got {written}")
        yield np.ascontiguousarray(columns.label, "<i2").tobytes()

    def hashed() -> Iterable[bytes]:
        for chunk in chunks():
            digest.update(chunk)
            yield chunk

    write_whole(path, hashed(), mode=0o600)
    return digest.hexdigest()


class ShardError(ValueError):
    """A file is not a shard as the format says."""


def map_shard(path: Path, size: int) -> dict[str, NDArray[Any]]:
    """The arrays of a shard, memory-mapped and read-only; ShardError when the file is not what `write_shard` makes."""
    length = os.path.getsize(path)
    with path.open("rb") as file:
        header_bytes = int.from_bytes(file.read(8), "little")
        if header_bytes > min(length, 1 << 16):
            raise ShardError("header: not a safetensors file of this format")
        try:
            entries = json.loads(file.read(header_bytes))
            slices = int(entries["label"]["shape"][0])
        except (ValueError, KeyError, TypeError, IndexError):
            raise ShardError("header: not a safetensors file of this format") from None
    arrays: dict[str, NDArray[Any]] = {}
    expected_end = 0
    for name, shape in _shapes(slices, size).items():
        code, dtype = _DTYPES[name]
        entry = entries.get(name)
        got = (entry.get("dtype"), entry.get("shape")) if isinstance(entry, dict) else None
        if got != (code, list(shape)):
            raise ShardError(f"{name}: got {got}, wanted {(code, list(shape))}")
        begin, end = entry["data_offsets"]
        if end - begin != int(np.prod(shape)) * dtype.itemsize or 8 + header_bytes + end > length or begin < 0:
            raise ShardError(f"{name}: its bytes do not lie within the file of {length} bytes")
        arrays[name] = np.memmap(path, dtype, "r", offset=8 + header_bytes + begin, shape=shape)
        expected_end = max(expected_end, end)
    if 8 + header_bytes + expected_end != length:
        raise ShardError(f"{length} bytes, wanted {8 + header_bytes + expected_end}")
    return arrays


def file_sha256(path: Path) -> str:
    """SHA-256 (hex) of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
