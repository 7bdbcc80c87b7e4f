"""What goes and what stays of folders that a process left: by age, never while something lives in them, and told."""

from __future__ import annotations

import contextlib
import itertools
import math
import os
import re
import shutil
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

KEEP_DAYS = 30.0
YOUNG_S = 3600.0
"""A job that was touched within an hour may be on its way to a process of its own."""
DAY_S = 86400.0
JOB = re.compile(r"^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$")
RUN = re.compile(r"^[0-9a-f]{32}$")
_GOING = ".removing-"


@dataclass(frozen=True)
class Item:
    """A folder or file, how much it holds, and why it goes or stays."""

    path: Path
    what: str
    megabytes: float
    why: str


@dataclass(frozen=True)
class Cleaned:
    """What went (or would), and what is kept."""

    removed: tuple[Item, ...]
    kept: tuple[Item, ...]


def item(path: Path, what: str, why: str) -> Item:
    """With what it holds. Raises OSError."""
    return Item(path, what, megabytes(path), why)


def verdict(is_live: bool, path: Path, keep_days: float, now: float) -> tuple[bool, str]:
    """Whether it goes, and why; `now` in seconds of the epoch. Raises OSError."""
    if is_live:
        return False, "it runs"
    age_s = now - newest_s(path)
    if age_s < YOUNG_S:
        return False, "it was touched within the last hour"
    days = age_s / DAY_S
    if days < keep_days:
        return False, f"finished {days:.1f} days ago, kept for {keep_days:g}"
    return True, f"finished {days:.1f} days ago"


def remove(path: Path) -> None:
    """A folder goes whole: it is renamed first, so that what a stopped command left is no job to anybody, and goes
    with the next. Raises OSError."""
    going = path.with_name(f"{_GOING}{path.name}")
    os.rename(path, going)
    shutil.rmtree(going)


def leftovers(folder: Path) -> list[Path]:
    """What a stopped `remove` left in a folder."""
    return [path for path in folder.glob(f"{_GOING}*") if is_folder(path)]


def folders(parent: Path, name: re.Pattern[str]) -> list[Path]:
    """Folders of a name, in order; none where there is no parent. Links are none."""
    if not parent.is_dir():
        return []
    return sorted(path for path in parent.iterdir() if name.fullmatch(path.name) and is_folder(path))


def is_folder(path: Path) -> bool:
    """A folder, and no link to one."""
    return path.is_dir() and not path.is_symlink()


def megabytes(path: Path) -> float:
    """Of all files in it."""
    return sum(about.st_size for about in _files(path) if stat.S_ISREG(about.st_mode)) / 1e6


def newest_s(path: Path) -> float:
    """When anything in it was last changed, in seconds of the epoch."""
    return max((about.st_mtime for about in _files(path)), default=math.inf)


def _files(path: Path) -> Iterator[os.stat_result]:
    """Of a folder, itself and all below it; of a file, itself. Links are not followed. What goes meanwhile, as a job's
    files do while it works, is none."""
    below = (Path(root) / name for root, inner, files in os.walk(path) for name in (*inner, *files))
    for one in itertools.chain([path], below if is_folder(path) else ()):
        with contextlib.suppress(FileNotFoundError):
            yield one.lstat()
