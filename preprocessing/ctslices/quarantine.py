"""STORE.quarantine/: slices that may carry burned-in text, for a person of the site to look at and to decide on."""

from __future__ import annotations

import csv
import io
import os
import shutil
from collections.abc import Sequence
from pathlib import Path

from ctslices.files import write_whole
from ctslices.labels import TableError
from ctslices.part import Suspect
from ctslices.swap import new_beside, put_in_place

LIST = "list.csv"
COLUMNS = ("picture", "path", "frame", "release")
YES = "yes"


def quarantine_path(store: Path) -> Path:
    """STORE.quarantine beside the store."""
    return store.with_name(store.name + ".quarantine")


def released_planes(folder: Path) -> frozenset[tuple[str, int]]:
    """(path relative to the export, frame) of the planes whose row says `yes` under `release`."""
    try:
        text = (folder / LIST).read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        return frozenset()
    reader = csv.DictReader(io.StringIO(text, newline=""))
    if missing := set(COLUMNS) - set(reader.fieldnames or []):
        raise TableError(
            f"the quarantine's {LIST}: its first line must name the columns {','.join(COLUMNS)}: "
            f"{', '.join(sorted(missing))} missing"
        )
    released = set()
    for number, row in enumerate(reader, start=2):
        if (row["release"] or "").strip().lower() != YES:
            continue
        if not (row["frame"] or "").isdecimal():
            raise TableError(f"the quarantine's {LIST}: row {number} must have a whole number under frame")
        released.add((row["path"], int(row["frame"])))
    return frozenset(released)


def write_quarantine(
    folder: Path, work: Path, suspects: Sequence[Suspect], released: frozenset[tuple[str, int]]
) -> None:
    """Replace the quarantine: pictures and the list, which keeps the decisions made so far. Removed when empty."""
    if not suspects and not released:
        shutil.rmtree(folder, ignore_errors=True)
        return
    new = new_beside(folder)
    shutil.rmtree(new, ignore_errors=True)
    new.mkdir(mode=0o700)
    os.chmod(new, 0o700)
    rows: list[tuple[str, str, int, str]] = [("", path, frame, YES) for path, frame in released]
    for number, suspect in enumerate(sorted(suspects, key=lambda s: (s.path, s.frame))):
        name = f"suspect-{number:05d}.png" if suspect.picture else ""
        if suspect.picture:
            write_whole(new / name, (work / suspect.picture).read_bytes(), mode=0o600)
        rows.append((name, suspect.path, suspect.frame, ""))
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    rows.sort(key=lambda row: (row[1], row[2]))
    writer.writerows(rows)
    write_whole(new / LIST, text.getvalue().encode(errors="surrogateescape"), mode=0o600)
    put_in_place(new, folder)
