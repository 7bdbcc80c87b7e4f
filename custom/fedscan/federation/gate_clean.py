"""The part of a message that the tables know: cleaned field by field, with the paths of what was left out."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Mapping
from typing import Any, Final

from fedscan.federation import gate_tables as tables
from fedscan.federation.gate_frames import BlockedError, Frame

DROP: Final = object()
"""Instead of a part of which nothing is known."""
MOST_ITEMS = 64
"""Of a list: one without end could say anything in two words."""
Rules = Callable[[str, str], bool]
"""Of a field's path and its value as text: whether both are of a known form."""


def known_part(node: Any, path: str, fits: Rules, taken: list[str], chunks: Callable[[Any], bool] | None = None) -> Any:
    """The part of `node` that the rules know; DROP where nothing of it is. Notes what it left out."""
    if path in tables.ANSWER_ITSELF:
        return DROP  # `gate_answer` judges it
    if path == "body/data" and chunks is not None:
        if not chunks(node):
            raise BlockedError("tensors that are no part of the answer that the guard passed")
        return node
    if isinstance(node, dict) and node:
        return _clean_mapping(node, path, fits, taken, chunks)
    if isinstance(node, list | tuple) and len(node) > MOST_ITEMS:
        taken.append(path)
        return DROP
    if isinstance(node, list | tuple) and node:
        items = [known_part(item, f"{path}[]", fits, taken, chunks) for item in node]
        return DROP if any(item is DROP for item in items) else items
    if isinstance(node, dict):
        path, text = f"{path}/{{}}", ""
    elif isinstance(node, list | tuple):
        path, text = f"{path}[]", ""
    else:
        text = node.decode("latin-1") if isinstance(node, bytes) else str(node)
    if fits(path, text):
        return node
    taken.append(path)
    return DROP


def _clean_mapping(
    node: Mapping[Any, Any],
    path: str,
    fits: Rules,
    taken: list[str],
    chunks: Callable[[Any], bool] | None,
) -> Any:
    kept = {}
    for key, value in node.items():
        if not is_name(key):
            taken.append(f"{path}/?")
            continue
        clean = known_part(value, f"{path}/{key}", fits, taken, chunks)
        if clean is not DROP:
            kept[key] = clean
    return kept or DROP


def is_name(key: object) -> bool:
    """Whether a key or header has the form of a name."""
    return isinstance(key, str) and re.fullmatch(r"[\w.-]{1,100}", key, re.ASCII) is not None


_KNOWN_WORDS = frozenset(
    word
    for table in (tables.HEADERS, *tables.JOB_MESSAGES.values(), *tables.PARENT_MESSAGES.values())
    for path in table
    for word in re.findall(r"\w+", path)
)


def shown_path(path: str) -> str:
    """A field's path as it may be noted: a name that is in no table may be anything, a patient's too."""
    known = _KNOWN_WORDS | {"header", ""}
    return "/".join(part if part.rstrip("[]{}") in known else "?" for part in path.split("/"))


def text_fits(pattern: str, value: object) -> bool:
    """Whether a value's text is of this form, as a whole."""
    return re.fullmatch(pattern, str(value), re.ASCII) is not None


def rules_of(frame: Frame, table: Mapping[str, str]) -> Rules:
    """A table's rules, filled in for the site and the job of this frame."""
    compiled = _compiled(tuple(table.items()), frame.site, frame.job, frame.topic)

    def fits(path: str, text: str) -> bool:
        return any(rule.fullmatch(path) and value.fullmatch(text) for rule, value in compiled)

    return fits


@functools.lru_cache(maxsize=64)
def _compiled(
    table: tuple[tuple[str, str], ...], site: str, job: str, topic: str
) -> list[tuple[re.Pattern[str], re.Pattern[str]]]:
    words = {
        "SITE": re.escape(site),
        "JOB": re.escape(job) if job else tables.UUID,
        "ME": re.escape(f"{site}.{job}" if job else site),
        "TOPIC": re.escape(topic.partition(":")[2] or topic),
        "UUID": tables.UUID,
        "TIME": tables.TIME,
        "SIZE": tables.SIZE,
        "ADMIN_TOPIC": tables.ADMIN_TOPICS,
    }
    bodies = {**words, "ADMIN_BODY": tables.ADMIN_BODIES.replace("SITE", words["SITE"])}

    def filled(pattern: str) -> str:
        return re.sub(r"\b(ADMIN_BODY|ADMIN_TOPIC|SITE|JOB|ME|TOPIC|UUID|TIME|SIZE)\b", _group(bodies), pattern)

    return [(re.compile(path, re.ASCII), re.compile(filled(value), re.ASCII)) for path, value in table]


def _group(words: Mapping[str, str]) -> Callable[[re.Match[str]], str]:
    return lambda match: f"(?:{words[match.group()]})"
