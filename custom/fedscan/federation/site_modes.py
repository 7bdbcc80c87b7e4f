"""File modes of a kit: its owner's alone."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

PARTS = ("startup", "local")
"""Of the kit, what decides; the rest (run folders, logs) is checked as a whole by the folder's own mode."""


def close_kit(kit: Path) -> list[str]:
    """Takes group's and others' rights from the kit's folder, startup/ and local/. Links are not followed.

    Returns what was changed, one line each folder. Raises OSError.
    """
    said = []
    for folder in (kit, *(kit / part for part in PARTS)):
        entries = [folder, *(folder.iterdir() if folder != kit else ())]
        changed = [path for path in entries if _close(path)]
        if changed:
            said.append(f"{folder}: closed to group and others: {len(changed)} entries")
    return said


def _close(path: Path) -> bool:
    about = path.lstat()
    if stat.S_ISLNK(about.st_mode) or not about.st_mode & 0o077:
        return False
    os.chmod(path, stat.S_IMODE(about.st_mode) & 0o700)
    return True


def strays(kit: Path) -> Iterator[tuple[Path, os.stat_result]]:
    """Every file and folder of the kit that decides something, with its own status (a link's, not its target's)."""
    yield kit, kit.lstat()
    for part in PARTS:
        for path in sorted([kit / part, *(kit / part).rglob("*")]):
            yield path, path.lstat()
