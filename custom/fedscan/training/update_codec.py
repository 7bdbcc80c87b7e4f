"""How an update travels: float32 as it is, bfloat16, or 8-bit integers with a scale for each row; what is rounded away
is added to the next one (error feedback: Seide et al. 2014; Karimireddy et al. 2019)."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from fedscan.training.tensor_file import TensorFileError, drop_leftovers, load_tensors, save_tensors
from fedscan.training.weights import Weights, check_update

Precision = Literal["fp32", "bf16", "int8"]
SCALE = ".scale"
"""Suffix of a tensor's scales under int8: float32, one for each index of its first dimension; one for a vector."""
KEEP = 2
_LARGEST = 127.0
_NAME = re.compile(r"^rest-(\d{5,})\.safetensors$")


def encode(update: Weights, precision: Precision) -> Weights:
    """What travels in place of float32 `update`. int8: value = round(x / scale), scale = largest of the row / 127."""
    if precision == "fp32":
        return dict(update)
    if precision == "bf16":
        return {name: tensor.to(torch.bfloat16) for name, tensor in update.items()}
    wire: Weights = {}
    for name, tensor in update.items():
        scale = _rows(tensor).abs().amax(1) / _LARGEST
        # A row of zeros has scale 0: its values are 0 whatever they are divided by.
        divisor = torch.where(scale > 0.0, scale, torch.ones_like(scale))
        values = (_rows(tensor) / divisor[:, None]).round().clamp(-_LARGEST, _LARGEST)
        wire[name] = values.to(torch.int8).view(tensor.shape)
        wire[name + SCALE] = scale
    return wire


def decode(wire: Weights, precision: Precision) -> Weights:
    """float32, of what `wire_form` has. The inverse of `encode` but for rounding."""
    if precision != "int8":
        return {name: tensor.float() for name, tensor in wire.items()}
    names = [name for name in wire if not (name.endswith(SCALE) and name.removesuffix(SCALE) in wire)]
    return {name: (_rows(wire[name].float()) * wire[name + SCALE][:, None]).view(wire[name].shape) for name in names}


def wire_form(form: Weights, precision: Precision) -> Weights:
    """Names, shapes and dtypes of what travels, from those of the float32 update; tensors without memory."""
    if precision == "fp32":
        return dict(form)
    kind = torch.bfloat16 if precision == "bf16" else torch.int8
    wire = {name: torch.empty(tensor.shape, dtype=kind, device="meta") for name, tensor in form.items()}
    if precision == "int8":
        wire |= {name + SCALE: torch.empty(_row_count(tensor), device="meta") for name, tensor in form.items()}
    return wire


def _rows(tensor: Tensor) -> Tensor:
    return tensor.reshape(_row_count(tensor), -1)


def _row_count(tensor: Tensor) -> int:
    return len(tensor) if tensor.ndim > 1 else 1


@dataclass(frozen=True)
class ErrorFeedback:
    """Encodes the updates of one run at one site, and keeps what rounding took away, by round: the last two, so that a
    site can go back one round with the server. In files of mode 0600; without a folder in memory.

    Under privacy the rest is made of noised updates, as the update is.
    """

    precision: Precision
    folder: Path | None
    plan_digest: str
    run_id: str
    _memory: dict[int, Weights] = field(default_factory=dict, repr=False)

    def encode(self, round_number: int, update: Weights) -> Weights:
        """What travels for this round. A rest that cannot be read, or is of another run, counts as none."""
        if self.precision == "fp32":
            return dict(update)
        rest = self._before(round_number, update)
        whole = {name: tensor + rest[name] if rest else tensor for name, tensor in update.items()}
        wire = encode(whole, self.precision)
        arrived = decode(wire, self.precision)
        self._save(round_number, {name: whole[name] - arrived[name] for name in whole})
        return wire

    def _before(self, round_number: int, update: Weights) -> Weights | None:
        for found in reversed([number for number in self._rounds() if number < round_number]):
            rest = self._memory.get(found) if self.folder is None else self._read(self.folder, found)
            if rest is not None and not check_update(rest, update):
                return rest
        return None

    def _read(self, folder: Path, round_number: int) -> Weights | None:
        try:
            rest, metadata = load_tensors(folder / _name(round_number))
        except (OSError, TensorFileError):
            return None
        return rest if metadata == self._metadata(round_number) else None

    def _save(self, round_number: int, rest: Weights) -> None:
        if self.folder is None:
            self._memory[round_number] = rest
        else:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            drop_leftovers(self.folder, "rest-*.safetensors")
            save_tensors(self.folder / _name(round_number), rest, self._metadata(round_number))
        kept = [number for number in self._rounds() if number <= round_number][-KEEP:]
        for number in self._rounds():
            if number not in kept:
                self._drop(number)

    def _drop(self, round_number: int) -> None:
        if self.folder is None:
            del self._memory[round_number]
        else:
            (self.folder / _name(round_number)).unlink(missing_ok=True)

    def _rounds(self) -> list[int]:
        if self.folder is None:
            return sorted(self._memory)
        found = (_NAME.match(entry.name) for entry in self.folder.iterdir()) if self.folder.is_dir() else ()
        return sorted(int(match.group(1)) for match in found if match)

    def _metadata(self, round_number: int) -> dict[str, str]:
        return {"plan_digest": self.plan_digest, "run_id": self.run_id, "round": str(round_number)}


def _name(round_number: int) -> str:
    return f"rest-{round_number:05d}.safetensors"
