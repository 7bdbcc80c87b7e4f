"""One form of a name that can be written in several: what looks the same to people is the same."""

from __future__ import annotations

import unicodedata


def one_form(text: str) -> str:
    """Composed characters (Unicode NFC): scanners and tables write an umlaut as one character or as two."""
    return text if text.isascii() else unicodedata.normalize("NFC", text)


def identity_of(text: str) -> str:
    """A PatientID in its one form; "" where nothing but spaces, control characters and separators is there."""
    blank = "".join(c for c in text if not c.isprintable() or c.isspace()) + "\\"
    return one_form(text).strip() if text.strip(blank) else ""
