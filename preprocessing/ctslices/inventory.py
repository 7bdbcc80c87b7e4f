"""What an export holds, without reading it: the files, and one seal over their names, sizes and times."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Entry:
    """One file of an export; `path` is relative to it, with forward slashes."""

    path: str
    size_bytes: int
    changed_ns: int


def entries(export: Path) -> Iterator[Entry]:
    """Every file below `export` in one fixed order, links to folders not followed; unreadable folders are passed by."""
    waiting = [str(export)]
    while waiting:  # os.walk calls itself, and ends at a thousand levels
        folder = waiting.pop()
        folders, files = _listed(folder)
        for path in files:
            try:
                found = os.stat(path)
            except OSError:
                continue
            yield Entry(Path(path).relative_to(export).as_posix(), found.st_size, found.st_mtime_ns)
        waiting += reversed(folders)


def _listed(folder: str) -> tuple[list[str], list[str]]:
    """Folders and everything else directly in `folder`, by name; nothing where it cannot be listed."""
    folders: list[str] = []
    files: list[str] = []
    try:
        with os.scandir(folder) as listing:
            for entry in listing:
                (folders if entry.is_dir(follow_symlinks=False) else files).append(entry.path)
    except OSError:
        return [], []
    return sorted(folders), sorted(files)


def listing_digest(export: Path) -> str:
    """SHA-256 (hex) over names, sizes and times of all files. It reveals names to a guesser: seal it before keeping."""
    digest = hashlib.sha256()
    for entry in entries(export):
        digest.update(f"{entry.path}\0{entry.size_bytes}\0{entry.changed_ns}\n".encode(errors="surrogateescape"))
    return digest.hexdigest()
