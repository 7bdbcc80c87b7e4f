from __future__ import annotations

import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from ctslices.files import write_whole


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_whole(path, b"old", mode=0o600)

    def broken() -> Iterator[bytes]:
        yield b"half"
        raise OSError(28, "no space left")

    with pytest.raises(OSError, match="no space"):
        write_whole(path, broken())
    assert path.read_bytes() == b"old"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [p.name for p in tmp_path.iterdir()] == ["file"]
