"""STORE.rejected.jsonl: what was refused and why, with paths, beside the store and for the site alone."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from ctslices.files import write_whole
from ctslices.reject import Rejected


def rejected_path(store: Path) -> Path:
    """STORE.rejected.jsonl beside the store."""
    return store.with_name(store.name + ".rejected.jsonl")


def write_rejected(path: Path, rejected: Iterable[Rejected]) -> None:
    """One JSON object a line (path relative to the export, reason, detail), sorted; mode 0600."""
    records = sorted({(r.path, str(r.reason), r.detail) for r in rejected})
    lines = (json.dumps({"path": p, "reason": r, "detail": d}, ensure_ascii=True) + "\n" for p, r, d in records)
    write_whole(path, (line.encode() for line in lines), mode=0o600)


def count_by_reason(rejected: Iterable[Rejected]) -> dict[str, int]:
    """Records by reason, the reasons sorted by name."""
    unique = {(r.path, r.reason, r.detail) for r in rejected}
    return dict(sorted(Counter(str(reason) for _, reason, _ in unique).items()))
