"""The site's own files: read within bounds, open to their owner alone, JSON of one meaning."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path
from typing import Any

MAX_BYTES = 1 << 20
KEY_BYTES = 32


class OwnFileError(ValueError):
    """A file of the site is missing, open to others, or not what it should be. Says the cure; holds no content."""


def read_bounded(path: Path, what: str, max_bytes: int = MAX_BYTES) -> bytes:
    """The bytes of a plain file that nobody but its owner (or root) may write. Raises OwnFileError."""
    try:
        # A pipe in its place must not make the site hang.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            return _read(descriptor, path, what, max_bytes)
        finally:
            os.close(descriptor)
    except OSError as error:
        raise OwnFileError(f"{what} cannot be read: {error.strerror} ({path})") from None


def _read(descriptor: int, path: Path, what: str, max_bytes: int) -> bytes:
    about = os.fstat(descriptor)
    if not stat.S_ISREG(about.st_mode):
        raise OwnFileError(f"{what} is no plain file ({path})")
    if about.st_mode & 0o022 or about.st_uid not in (0, os.geteuid()):
        raise OwnFileError(
            f"{what} could be written by others: got mode {stat.S_IMODE(about.st_mode):04o}, wanted 0600 and this "
            f"user as owner: chmod 600 {path}"
        )
    data = b""
    while len(data) <= max_bytes and (part := os.read(descriptor, max_bytes + 1 - len(data))):
        data += part
    if len(data) > max_bytes:
        raise OwnFileError(f"{what} is longer than {max_bytes} bytes ({path})")
    return data


def read_object(path: Path, what: str) -> dict[str, Any]:
    """A JSON object in which no name comes twice. Raises OwnFileError."""
    try:
        data = json.loads(read_bounded(path, what).decode("utf-8"), object_pairs_hook=_once)
    except OwnFileError:
        raise
    except (ValueError, RecursionError) as error:
        raise OwnFileError(f"{what} is no proper JSON{_where(error)}: {path}") from None
    if not isinstance(data, dict):
        raise OwnFileError(f"{what} must hold a JSON object ({path})")
    return data


class _TwiceError(ValueError):
    pass


def _where(error: Exception) -> str:
    """What to look for, without a word of the file's content."""
    if isinstance(error, _TwiceError):
        return f" ({error})"
    return f" (line {error.lineno}, column {error.colno})" if isinstance(error, json.JSONDecodeError) else ""


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    names = [name for name, _ in pairs]
    if len(set(names)) != len(names):
        raise _TwiceError("a field is there twice")
    return dict(pairs)


def read_key(path: Path, what: str) -> bytes:
    """A secret of 32 bytes: 64 hexadecimal digits in a file of mode 0600. Raises OwnFileError."""
    text = read_bounded(path, what).strip()
    mode = stat.S_IMODE(path.stat().st_mode)
    if mode & 0o077:
        raise OwnFileError(f"{what} is open to others: got mode {mode:04o}, wanted 0600: chmod 600 {path}")
    try:
        secret = bytes.fromhex(text.decode("ascii"))
    except ValueError:
        secret = b""
    if len(secret) != KEY_BYTES:
        raise OwnFileError(f"{what} must hold {2 * KEY_BYTES} hexadecimal digits: restore it from the site's copy")
    return secret
