"""Tables, JSON and the progress bar for people at a terminal."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console, Group
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from ctslices.report import PrepareReport


def print_json(data: Mapping[str, Any]) -> None:
    """One JSON document on stdout."""
    print(json.dumps(data, indent=2, ensure_ascii=False))


@contextmanager
def progress_bar() -> Iterator[Callable[[str, int, int], None]]:
    """A bar on stderr; what it yields takes (phase, done, total)."""
    columns = (TextColumn("{task.description:<16}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as progress:
        tasks: dict[str, TaskID] = {}

        def follow(phase: str, done: int, total: int) -> None:
            if phase not in tasks:
                tasks[phase] = progress.add_task(phase, total=total or None)
            progress.update(tasks[phase], completed=done, total=total or None)

        yield follow


def _table(title: str, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> Group:
    """The title as a line of its own: rich wraps a table's title to the table's width."""
    table = Table()
    for column in columns:
        table.add_column(column, overflow="fold", min_width=len(column))
    for row in rows:
        table.add_row(*(str(cell) for cell in row))
    return Group(Text(f"\n{title}"), table)


def _counts(title: str, what: str, counts: Mapping[str, int]) -> list[Group]:
    return [_table(title, (what, "count"), list(counts.items()))] if counts else []


def print_report(report: PrepareReport, store: Path) -> None:
    """What `prepare` did, and what to do next."""
    console = Console()
    unit = "patients" if report.unit == "patient" else "volumes or blocks of pictures (no patients are known)"
    if report.unchanged:
        console.print("Nothing to do: the export and the options are those that this store was made from.")
    console.print(f"{report.slices} slices of {report.patients} {unit}, {report.series} series", highlight=False)
    sides = [(side, c["patients"], c["slices"]) for side, c in report.by_split.items()]
    console.print(_table("Split", ("side", "patients" if report.unit == "patient" else "images", "slices"), sides))
    for table in (
        *_counts("Labels", "label", report.labels),
        *_counts("Rejected", "reason", report.rejected),
        *_counts("Slices dropped by region", "shows", report.dropped_by_region),
    ):
        console.print(table)
    for option, rows in report.unmatched.items():
        shown = ", ".join(map(str, rows[:10])) + (", ..." if len(rows) > 10 else "")
        console.print(f"{option}: {len(rows)} row(s) matched nothing in the export: line {shown}", highlight=False)
    for note in report.notes:
        console.print(f"Note: {note}", highlight=False)
    for line in _next(report, store):
        console.print(line, highlight=False, soft_wrap=True)


def _next(report: PrepareReport, store: Path) -> Iterator[str]:
    if report.rejected:
        yield f"What was rejected, file by file: {store.name}.rejected.jsonl beside the store, for this site alone."
    if report.quarantined:
        yield (
            f"{report.quarantined} slice(s) may carry burned-in text: look at them in {store.name}.quarantine, write "
            "yes under release in its list.csv for those that do not, and run the same command again."
        )
    if not report.slices:
        yield _empty(report.rejected, report.dropped_by_region)
        return
    yield f"Next: fedscan inspect {store}"


def _empty(rejected: Mapping[str, int], dropped: Mapping[str, int]) -> str:
    if not rejected and not dropped:
        return "The store is empty: no file lies in the export. Is it the right folder?"
    cures = []
    if "no-patient-id" in rejected:
        cures.append("no-patient-id: --patient-from folder wants each volume in a folder of its patient, a map a row")
    if dropped:
        cures.append("--region any keeps what was dropped by region")
    if "too-few-slices" in rejected:
        cures.append("--min-slices 1 takes short series")
    return "The store is empty: see the reasons above" + "".join(f"; {cure}" for cure in cures) + "."


def print_inspection(found: Mapping[str, Any], store: Path, picture: Path | None) -> None:
    """What `inspect` found."""
    console = Console()
    low, high = found["value_range"]
    what = "HU" if found["values"] == "hu" else "grey values"
    unit = "patients" if found["unit"] == "patient" else "volumes or blocks of pictures (no patients are known)"
    field = "" if found["field_mm"] is None else f", field {found['field_mm']:g} mm"
    console.print(
        f"{found['slices']} slices of {found['size']} x {found['size']} pixels{field}, {what} {low}..{high}; "
        f"{found['patients']} {unit}, "
        f"{found['series']} series; whole and as written",
        highlight=False,
    )
    splits = [(side, c["patients"], c["slices"]) for side, c in found["by_split"].items()]
    console.print(_table("Split", ("side", "patients" if found["unit"] == "patient" else "images", "slices"), splits))
    if found["labels"]:
        rows = [(name, c["train"], c["holdout"]) for name, c in found["labels"].items()]
        console.print(_table("Slices by label", ("label", "train", "holdout"), rows))
    names = ("manufacturer", "kernel", "kvp", "spacing_mm", "thickness_mm", "series", "slices")
    if not found["slices"]:
        console.print("The store is empty: nothing can be trained on it, and there is no picture.")
    scanners = [["" if row[name] is None else row[name] for name in names] for row in found["scanners"]]
    if scanners:
        console.print(_table("Scanners", names, scanners))
    for table in (
        *_counts("Rejected", "reason", found["rejected"]),
        *_counts("Slices dropped by region", "shows", found["dropped_by_region"]),
        *_counts("Notes on series", "note", found["series_notes"]),
    ):
        console.print(table)
    for note in found["notes"]:
        console.print(f"Note: {note}", highlight=False)
    if picture is not None:
        console.print(f"Picture: {picture}", highlight=False, soft_wrap=True)
