"""Texts that others wrote, fit for a terminal: one line of characters that only show themselves.

A site, a server or a job's author could else move the cursor, set a title, or turn lines around in what a person reads.
"""

from __future__ import annotations

import json

MOST = 2000
"""Characters of a text that another party wrote."""


def readable(text: str) -> str:
    """With `?` for each character that does more than show itself; cut to MOST."""
    return "".join(c if c.isprintable() else "?" for c in text[:MOST])


def readable_lines(text: str) -> str:
    """The same, of a text of our own that may have lines, whatever its length."""
    return "".join(c if c.isprintable() or c == "\n" else "?" for c in text)


def readable_json(text: str) -> str:
    """A JSON document with such characters written as JSON's escapes."""
    return "".join(c if c.isprintable() or c == "\n" else json.dumps(c)[1:-1] for c in text)
