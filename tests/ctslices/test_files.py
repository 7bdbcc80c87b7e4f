from __future__ import annotations

import os
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


def test_what_must_outlive_a_power_failure_is_flushed_before_it_has_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []
    fsync, replace = os.fsync, os.replace

    def noted_fsync(handle: int) -> None:
        fsync(handle)
        done.append("folder" if stat.S_ISDIR(os.fstat(handle).st_mode) else "file")

    def noted_replace(source: Path, target: Path) -> None:
        replace(source, target)
        done.append("name")

    monkeypatch.setattr(os, "fsync", noted_fsync)
    monkeypatch.setattr(os, "replace", noted_replace)
    write_whole(tmp_path / "kept", b"x")
    assert done == ["file", "name", "folder"]
    done.clear()
    write_whole(tmp_path / "passing", b"x", durable=False)
    assert done == ["name"]
