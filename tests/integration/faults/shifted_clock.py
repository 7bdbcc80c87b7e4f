"""Processes whose clock is wrong: a small library is laid before libc's, so that OpenSSL reads the wrong time, too."""

from __future__ import annotations

import os
import shutil
import struct
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_SOURCE = Path(__file__).with_suffix(".c")


def why_not() -> str | None:
    """Why this machine cannot shift a clock; None: it can."""
    return None if shutil.which("cc") else "no C compiler (cc)"


class ShiftedClock:
    """The compiled library, in `folder`."""

    def __init__(self, folder: Path) -> None:
        self._library = folder / "shifted_clock.so"
        command = ["cc", "-shared", "-fPIC", "-O1", "-o", str(self._library), str(_SOURCE), "-ldl"]
        subprocess.run(command, check=True, capture_output=True)

    def set(self, name: str, seconds: int) -> Path:
        """That many seconds ahead, from now on, for all that was started with the clock of this name."""
        path = self._library.with_name(f"{name}.clock")
        with path.open("r+b" if path.exists() else "wb") as file:  # a running process has mapped it
            file.write(struct.pack("@l", seconds))
        return path

    @contextmanager
    def here(self, seconds: int, name: str | None = None) -> Iterator[None]:
        """For whatever this process starts within the block."""
        before = os.environ.copy()
        clock = self.set(name or f"by{seconds}", seconds)
        os.environ.update(LD_PRELOAD=str(self._library), FEDSCAN_TEST_CLOCK=str(clock))
        try:
            yield
        finally:
            os.environ.clear()
            os.environ.update(before)
