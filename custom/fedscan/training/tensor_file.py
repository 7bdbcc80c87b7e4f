"""Named tensors in one safetensors file: written whole or not at all, the same bytes for the same content."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path

import safetensors.torch
import torch
from safetensors import SafetensorError

from ctslices.files import write_whole

_CODES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.bfloat16: "BF16",
    torch.float16: "F16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
MAX_FILE_BYTES = 8 * 2**30
MAX_HEADER_BYTES = 16 * 2**20


class TensorFileError(ValueError):
    """A file that is not a whole safetensors file within the bounds. The text holds no path."""


def save_tensors(
    path: Path,
    tensors: Mapping[str, torch.Tensor],
    metadata: Mapping[str, str],
    mode: int = 0o600,
    *,
    durable: bool = True,
) -> None:
    """Writes `tensors` (CPU, any of ten dtypes) and `metadata`: temporary file, fsync, rename, folder fsync.

    Not `durable`: without the two fsyncs, for what nobody reads any more once the machine went down.

    Names are sorted in the header (safetensors' own writer shuffles the metadata), so equal content is equal bytes.
    """
    names = sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))  # so that all lie aligned
    header = _header(names, tensors, metadata)

    def chunks() -> Iterator[bytes]:
        yield header
        for name in names:
            flat = tensors[name].detach().contiguous().reshape(-1).view(torch.uint8)
            yield flat.numpy().tobytes()

    write_whole(path, chunks(), mode, durable=durable)


def _header(names: list[str], tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str]) -> bytes:
    entries: dict[str, object] = {"__metadata__": dict(sorted(metadata.items()))}
    offset = 0
    for name in names:
        tensor = tensors[name]
        end = offset + tensor.numel() * tensor.element_size()
        if tensor.dtype not in _CODES or name == "__metadata__":
            raise TensorFileError(f"tensor {name!r} of {tensor.dtype} cannot be written: use one of {list(_CODES)}")
        entries[name] = {"dtype": _CODES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def load_tensors(path: Path, max_bytes: int = MAX_FILE_BYTES) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """Tensors in memory of their own, and the metadata. Raises OSError, or TensorFileError for any other content."""
    return parse_tensors(read_bounded(path, max_bytes))


def read_bounded(path: Path, max_bytes: int = MAX_FILE_BYTES) -> bytes:
    """The file's bytes; TensorFileError where it is larger than `max_bytes` (looked at before reading)."""
    with path.open("rb") as file:
        file.seek(0, 2)
        if (size := file.tell()) > max_bytes:
            raise TensorFileError(f"file of {size} bytes is larger than the {max_bytes} that are taken")
        file.seek(0)
        return file.read(size)  # not max_bytes: that much would be allocated first


def parse_tensors(data: bytes) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """As `load_tensors`, from a file's bytes."""
    metadata = _metadata(data)
    try:
        tensors = safetensors.torch.load(data)
    except (SafetensorError, KeyError, TypeError, ValueError, AssertionError, OverflowError, RuntimeError):
        raise TensorFileError(f"{len(data)} bytes are no whole safetensors file: copy it again") from None
    return tensors, metadata


def _metadata(data: bytes) -> dict[str, str]:
    length = int.from_bytes(data[:8], "little")
    if len(data) < 8 or length > min(MAX_HEADER_BYTES, len(data) - 8):
        raise TensorFileError(f"{len(data)} bytes are no whole safetensors file: copy it again")
    try:
        header = json.loads(data[8 : 8 + length])
    except (ValueError, RecursionError):
        raise TensorFileError("the header is no JSON: this is no safetensors file") from None
    metadata = header.get("__metadata__", {}) if isinstance(header, dict) else None
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise TensorFileError("the metadata is no mapping of texts: this is no safetensors file")
    return metadata


def drop_leftovers(folder: Path, name: str) -> None:
    """Removes the temporary files that killed writers of `folder`/`name` (a glob) left; for the one writer to call."""
    for part in folder.glob(f".{name}.*.part"):
        part.unlink(missing_ok=True)
