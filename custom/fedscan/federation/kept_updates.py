"""A round's good updates, in files until the round ends: the server's memory does not grow with the sites."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError, safe_open
from torch import Tensor

from fedscan.training import tensor_file
from fedscan.training.aggregation import TensorOf
from fedscan.training.weights import Weights


class KeptUpdates:
    """RUN/updates/, 0700 with files of 0600: of one try of one round, each site's at most once."""

    def __init__(self, folder: Path | None = None) -> None:
        """Empties `folder`: what a killed server left there was never summed. None: a temporary folder."""
        self._temporary = tempfile.TemporaryDirectory(prefix="fedscan-updates-") if folder is None else None
        self._folder = folder or Path(self._temporary.name if self._temporary else "") / "updates"
        self._files: dict[str, Path] = {}
        self._kept = 0
        self.clear()

    def keep(self, site: str, update: Weights) -> None:
        """Raises OSError."""
        path = self._folder / f"{self._kept:05d}.safetensors"  # site names are the network's, not ours
        self._kept += 1  # never a name twice: a number that fell with `drop` would take another site's file
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        tensor_file.save_tensors(path, update, {}, durable=False)
        self._files[site] = path

    def drop(self, site: str) -> None:
        """Of an update that turned out not to be good."""
        if path := self._files.pop(site, None):
            path.unlink(missing_ok=True)

    @contextmanager
    def reading(self) -> Iterator[TensorOf]:
        """Tensors by site and name, each read when it is asked for. Raises OSError."""
        opened = {}
        try:
            for site, path in self._files.items():
                opened[site] = safe_open(path, "pt", device="cpu")
        except SafetensorError as error:
            raise OSError(f"an update that was kept cannot be read again: {type(error).__name__}") from None

        def tensor_of(site: str, name: str) -> Tensor:
            tensor: Tensor = opened[site].get_tensor(name)  # type: ignore[no-untyped-call]
            return tensor

        yield tensor_of

    def clear(self) -> None:
        """Forgets all."""
        self._files.clear()
        shutil.rmtree(self._folder, ignore_errors=True)
