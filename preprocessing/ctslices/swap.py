"""Put a finished folder in another's place in one step."""

from __future__ import annotations

import ctypes
import os
import shutil
from pathlib import Path

from ctslices.files import sync_folder

_RENAME_EXCHANGE = 2
_AT_FDCWD = -100


def _exchange(one: Path, other: Path) -> bool:
    """Exchange two names in one step (Linux renameat2); False where the system or its file system cannot."""
    function = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if function is None:
        return False
    done: int = function(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), ctypes.c_uint(_RENAME_EXCHANGE))
    return done == 0


def put_in_place(new: Path, place: Path) -> None:
    """Make folder `new` the one at `place`; what was there before is removed afterwards.

    At every moment `place` is the old folder or the new one; where the system cannot exchange two names, it is for a
    moment neither, and `recover` mends a stop in that moment.
    """
    if not place.exists():
        os.rename(new, place)
        sync_folder(place.parent)
        return
    if not _exchange(new, place):
        old = _old(place)
        os.rename(place, old)
        os.rename(new, place)
        new = old
    sync_folder(place.parent)
    shutil.rmtree(new)


def new_beside(place: Path) -> Path:
    """Where the next content of `place` is made. Hidden, because `place`.new may be somebody's own folder."""
    return place.with_name(f".{place.name}.new")


def _old(place: Path) -> Path:
    return place.with_name(f".{place.name}.replaced")


def left_over(place: Path) -> bool:
    """Whether an unfinished content, or an old one, lies beside `place`: while it is written, or after a stop."""
    return os.path.lexists(new_beside(place)) or os.path.lexists(_old(place))


def recover(place: Path) -> None:
    """After a stop between two renames: give `place` its old folder back, or remove an old one that is left over."""
    old = _old(place)
    if old.is_dir():
        if place.exists():
            shutil.rmtree(old)
        else:
            os.rename(old, place)
