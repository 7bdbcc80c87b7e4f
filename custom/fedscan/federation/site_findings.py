"""One line of `fedscan site check`: what was looked at, what was found, and the cure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Check:
    """`error`: jobs are refused, or must not run, until it is mended. `skipped`: could not be looked at from here."""

    name: str
    level: Literal["ok", "skipped", "warning", "error"]
    text: str = ""
    fix: str = ""


def error(name: str, text: str, fix: str) -> Check:
    """Something that must be mended."""
    return Check(name, "error", text, fix)


def warning(name: str, text: str, fix: str) -> Check:
    """Something that a person should know."""
    return Check(name, "warning", text, fix)
