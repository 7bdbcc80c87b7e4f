"""A site's optimiser state by round, in files: the last two, so that a site can go back one round with the server."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from fedscan.training.optimiser import OptimiserState
from fedscan.training.tensor_file import TensorFileError, drop_leftovers, load_tensors, save_tensors
from fedscan.training.weights import Weights, check_update

KEEP = 2
_NAME = re.compile(r"^round-(\d{5,})\.safetensors$")
_FIRST, _SECOND = "first.", "second."


@dataclass(frozen=True)
class SiteStates:
    """The states of one run at one site, in a folder of the run's own. Files have mode 0600."""

    folder: Path
    plan_digest: str
    run_id: str
    site: str

    def save(self, round_number: int, state: OptimiserState) -> None:
        """Writes the state after `round_number` whole or not at all; drops later ones and all but the last two."""
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        drop_leftovers(self.folder, "round-*.safetensors")
        tensors = {_FIRST + name: tensor for name, tensor in state.first.items()}
        tensors |= {_SECOND + name: tensor for name, tensor in state.second.items()}
        metadata = self._identity | {"round": str(round_number), "steps": str(state.steps)}
        save_tensors(self._path(round_number), tensors, metadata)
        kept = [found for found in self.rounds() if found <= round_number][-KEEP:]
        for found in self.rounds():
            if found not in kept:
                self._path(found).unlink(missing_ok=True)

    def before(self, round_number: int, weights: Weights) -> tuple[int, OptimiserState] | None:
        """The newest state of a round below `round_number`, with its round; None: there is none, start afresh.

        Files that cannot be read, belong to another run, plan or site, or do not fit `weights` are passed over.
        """
        for found in reversed([r for r in self.rounds() if r < round_number]):
            if (state := self._load(found, weights)) is not None:
                return found, state
        return None

    def rounds(self) -> list[int]:
        """Rounds after which a state lies there, ascending."""
        found = (_NAME.match(entry.name) for entry in self.folder.iterdir()) if self.folder.is_dir() else ()
        return sorted(int(match.group(1)) for match in found if match)

    @property
    def _identity(self) -> dict[str, str]:
        return {"plan_digest": self.plan_digest, "run_id": self.run_id, "site": self.site}

    def _path(self, round_number: int) -> Path:
        return self.folder / f"round-{round_number:05d}.safetensors"

    def _load(self, round_number: int, weights: Weights) -> OptimiserState | None:
        try:
            tensors, metadata = load_tensors(self._path(round_number))
            steps = int(metadata["steps"])
        except (OSError, TensorFileError, KeyError, ValueError):
            return None
        wanted = self._identity | {"round": str(round_number)}
        first, second = _part(tensors, _FIRST), _part(tensors, _SECOND)
        if any(metadata.get(key) != value for key, value in wanted.items()):
            return None
        if check_update(first, weights) or check_update(second, weights):
            return None
        return OptimiserState(steps, first, second)


def _part(tensors: Weights, prefix: str) -> Weights:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
