"""The site's key, and the pseudonyms it makes. Who holds the key can check a guess; nobody else can."""

from __future__ import annotations

import hashlib
import hmac
import os
import secrets
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

KEY_BYTES = 32


class KeyFileError(ValueError):
    """The key file is missing, malformed, open to others, or not the one that a store was made with."""


@dataclass(frozen=True, slots=True, repr=False)
class SiteKey:
    """A secret of 32 bytes that stays at the site. Its repr does not show it."""

    secret: bytes

    def _hmac(self, purpose: str, text: str) -> str:
        return hmac.new(self.secret, f"{purpose}\0{text}".encode(), hashlib.sha256).hexdigest()

    def pseudonym(self, kind: Literal["patient", "series"], identity: str) -> str:
        """32 hexadecimal digits: HMAC-SHA256 (RFC 2104) of kind and identity, its first 16 bytes."""
        return self._hmac(kind, identity)[:32]

    def seal(self, text: str) -> str:
        """64 hexadecimal digits that stand for `text`, and tell nothing of it without the key."""
        return self._hmac("seal", text)

    @property
    def fingerprint(self) -> str:
        """64 hexadecimal digits by which a store knows its key again, and which reveal no bit of it."""
        return hashlib.sha256(bytes.fromhex(self._hmac("fingerprint", ""))).hexdigest()


def default_key_path(store: Path) -> Path:
    """STORE.key beside the store."""
    return store.with_name(store.name + ".key")


def load_key(path: Path) -> SiteKey:
    """The key in `path` (64 hexadecimal digits, for the owner alone); KeyFileError otherwise."""
    try:
        mode = stat.S_IMODE(path.stat().st_mode)
        text = path.read_bytes().strip()
    except FileNotFoundError:
        raise KeyFileError("the key file is not there: name the right one with --key") from None
    if mode & 0o077:
        raise KeyFileError(f"the key file is open to others: got mode {mode:04o}, wanted 0600; chmod 600 it")
    try:
        secret = bytes.fromhex(text.decode("ascii"))
    except ValueError:
        secret = b""
    if len(secret) != KEY_BYTES:
        raise KeyFileError(
            f"the key file must hold {2 * KEY_BYTES} hexadecimal digits: got {len(text)} bytes of something else; "
            "restore it from the site's copy"
        )
    return SiteKey(secret)


def create_key(path: Path) -> SiteKey:
    """A new key in `path`, mode 0600, there whole or not at all; one that another process made first is taken."""
    secret = secrets.token_bytes(KEY_BYTES)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    temporary.unlink(missing_ok=True)
    handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    try:
        with os.fdopen(handle, "w") as file:
            file.write(secret.hex() + "\n")
            file.flush()
            os.fsync(file.fileno())
        try:
            os.link(temporary, path)
        except FileExistsError:
            return load_key(path)
    finally:
        temporary.unlink(missing_ok=True)
    return SiteKey(secret)
