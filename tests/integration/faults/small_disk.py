"""A small disk that can be filled to its last byte."""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_FILLER = "filler"


def why_not() -> str | None:
    """Why this machine cannot mount one; None: it can."""
    if os.geteuid() != 0:
        return "mounting a small disk needs root"
    with tempfile.TemporaryDirectory() as folder:
        try:
            with mounted(Path(folder), 1):
                return None
        except subprocess.CalledProcessError as error:
            return f"a small disk cannot be mounted here: {error.stderr.strip()}"


@contextmanager
def mounted(folder: Path, mebibytes: int) -> Iterator[Path]:
    """A disk of that size at `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    options = f"size={mebibytes}m,mode=0700"
    command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
    subprocess.run(command, check=True, capture_output=True, text=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True, capture_output=True)


def fill(folder: Path) -> None:
    """Until nothing more can be written."""
    with (folder / _FILLER).open("ab", buffering=0) as file:
        block = bytes(2**16)
        while block:
            try:
                file.write(block)
            except OSError:
                block = block[: len(block) // 2]


def make_room(folder: Path) -> None:
    (folder / _FILLER).unlink()
