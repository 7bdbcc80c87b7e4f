"""One JSON line under a keyed hash: what the ledger, its anchor and its cache are made of."""

from __future__ import annotations

import hashlib
import hmac

MAC_HEX = 64
_BEFORE, _AFTER = b',"mac":"', b'"}\n'
_SUFFIX = len(_BEFORE) + MAC_HEX + len(_AFTER)


def subkey(key: bytes, purpose: str) -> bytes:
    """A key of its own for each purpose, so that no line can stand for another kind's."""
    return hmac.new(key, f"fedscan {purpose}".encode(), hashlib.sha256).digest()


def seal(key: bytes, body: bytes) -> tuple[bytes, str]:
    """`body` (a JSON object, compact, not empty) as a line whose last field `mac` is HMAC-SHA-256 (hex) of all bytes
    before it; and that MAC."""
    if body[:1] != b"{" or body[-1:] != b"}" or b"\n" in body:
        raise ValueError("a sealed line is one JSON object without line breaks")
    mac = hmac.new(key, body[:-1], hashlib.sha256).hexdigest()
    return body[:-1] + _BEFORE + mac.encode() + _AFTER, mac


def unseal(key: bytes, line: bytes) -> tuple[bytes, str] | None:
    """Body and MAC of a line whose MAC holds; None for any other bytes."""
    if len(line) <= _SUFFIX or line[-len(_AFTER) :] != _AFTER:
        return None
    body, suffix = line[:-_SUFFIX], line[-_SUFFIX:]
    expected = hmac.new(key, body, hashlib.sha256).hexdigest()
    given = suffix[len(_BEFORE) : -len(_AFTER)]
    if suffix[: len(_BEFORE)] != _BEFORE or not hmac.compare_digest(given, expected.encode()):
        return None
    return body + b"}", expected
