"""The server's checkpoints of one run: the global weights and their EMA after so many rounds, newest kept."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from fedscan.plan import Plan
from fedscan.training import tensor_file
from fedscan.training.weights import Weights, check_update

KEEP = 3
_NAME = re.compile(r"round-([0-9]{5,9})\.safetensors")
_EMA = "ema."
_WEIGHTS = "weights."


class CheckpointError(RuntimeError):
    """A checkpoint that is missing, damaged, or of another run."""


@dataclass(frozen=True)
class Checkpoint:
    """State after `rounds_done` rounds. Tensors float32, names as in the network."""

    rounds_done: int
    weights: Weights
    ema: Weights
    ema_count: int


def path_of(folder: Path, rounds_done: int) -> Path:
    """Where the checkpoint after so many rounds lies."""
    return folder / f"round-{rounds_done:05d}.safetensors"


def save(folder: Path, checkpoint: Checkpoint, plan: Plan, run_id: str) -> Path:
    """Writes a checkpoint whole or not at all (fsync, rename) and drops all but the newest three."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    tensors = {_WEIGHTS + name: tensor for name, tensor in checkpoint.weights.items()}
    tensors |= {_EMA + name: tensor for name, tensor in checkpoint.ema.items()}
    path = path_of(folder, checkpoint.rounds_done)
    metadata = {
        "plan_digest": plan.digest,
        "run_id": run_id,
        "rounds_done": str(checkpoint.rounds_done),
        "ema_count": str(checkpoint.ema_count),
    }
    tensor_file.save_tensors(path, tensors, metadata)
    for old in list_rounds(folder)[:-KEEP]:
        path_of(folder, old).unlink(missing_ok=True)
    return path


def list_rounds(folder: Path) -> list[int]:
    """Rounds done of the checkpoints that lie there, ascending."""
    found = (_NAME.fullmatch(entry.name) for entry in folder.iterdir()) if folder.is_dir() else ()
    return sorted(int(match.group(1)) for match in found if match)


def load(folder: Path, rounds_done: int, plan: Plan, run_id: str) -> Checkpoint:
    """The checkpoint after `rounds_done` rounds. Raises CheckpointError if it is not there or of another run."""
    path = path_of(folder, rounds_done)
    try:
        tensors, metadata = tensor_file.load_tensors(path)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"checkpoint {path.name} cannot be read: {type(error).__name__}") from error
    wanted = {"plan_digest": plan.digest, "run_id": run_id, "rounds_done": str(rounds_done)}
    if wrong := [key for key, value in wanted.items() if metadata.get(key) != value]:
        raise CheckpointError(f"checkpoint {path.name} belongs to another run: its {', '.join(wrong)} differ")
    weights = {n.removeprefix(_WEIGHTS): t for n, t in tensors.items() if n.startswith(_WEIGHTS)}
    ema = {n.removeprefix(_EMA): t for n, t in tensors.items() if n.startswith(_EMA)}
    count = metadata.get("ema_count", "")
    whole = len(weights) + len(ema) == len(tensors) > 0 and re.fullmatch(r"[0-9]{1,9}", count)
    if not whole or check_update(weights, weights) or check_update(ema, weights):
        raise CheckpointError(f"checkpoint {path.name} holds no weights with their average, all of them finite")
    return Checkpoint(rounds_done, weights, ema, int(count))


def newest(folder: Path, plan: Plan, run_id: str) -> Checkpoint | None:
    """The newest checkpoint that can be read; a damaged newer one is passed over."""
    for rounds_done in reversed(list_rounds(folder)):
        try:
            return load(folder, rounds_done, plan, run_id)
        except CheckpointError:
            continue
    return None
