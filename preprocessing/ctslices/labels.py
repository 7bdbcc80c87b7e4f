"""The site's small tables: labels.csv, map.csv, ids.txt. Rows are reported by number, never by what they hold."""

from __future__ import annotations

import csv
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from ctslices.one_form import one_form


class TableError(ValueError):
    """A table is not as its format says."""


@dataclass(slots=True)
class Table:
    """Two columns of text, and which rows were ever looked up with success."""

    name: str
    """What the table is called in messages: its option, not its path."""
    rows: dict[str, tuple[int, str]]
    """key: (row number as in a spreadsheet, value)."""
    used: set[str] = field(default_factory=set)

    def get(self, key: str) -> str | None:
        """The value of `key`, or None; notes that the row matched."""
        key = one_form(key)
        found = self.rows.get(key)
        if found is None:
            return None
        self.used.add(key)
        return found[1]

    def unmatched_rows(self) -> list[int]:
        """Numbers of the rows that matched nothing, ascending."""
        return sorted(number for key, (number, _) in self.rows.items() if key not in self.used)


def read_table(path: Path, columns: tuple[str, str], name: str) -> Table:
    """A CSV file (UTF-8) with at least these two columns; TableError when it is not.

    A key may come again with the same value; with another it is an error.
    """
    rows: dict[str, tuple[int, str]] = {}
    for number, (key, value) in _pairs(path, columns, name):
        if rows.setdefault(key, (number, value))[1] != value:
            raise TableError(
                f"{name}: rows {rows[key][0]} and {number} give one {columns[0]} two different values of "
                f"{columns[1]}: keep one of them"
            )
    return Table(name, rows)


def _pairs(path: Path, columns: tuple[str, str], name: str) -> list[tuple[int, tuple[str, str]]]:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise TableError(f"{name}: the file is not there") from None
    except UnicodeDecodeError:
        raise TableError(f"{name}: got bytes that are not UTF-8; save it as UTF-8") from None
    try:
        return _two_columns(text, columns, name)
    except csv.Error:
        raise TableError(f"{name}: got no CSV (a field of more than 128 KiB, or a NUL); save it anew") from None


def _two_columns(text: str, columns: tuple[str, str], name: str) -> list[tuple[int, tuple[str, str]]]:
    reader = csv.DictReader(text.splitlines(), skipinitialspace=True)
    if missing := [c for c in columns if c not in (reader.fieldnames or [])]:
        raise TableError(
            f"{name}: its first line must name the columns {columns[0]},{columns[1]}: {', '.join(missing)} missing"
        )
    pairs = []
    for number, row in enumerate(reader, start=2):
        key, value = (one_form((row.get(c) or "").strip()) for c in columns)
        if not key or not value:
            raise TableError(f"{name}: row {number} lacks a {columns[0] if not key else columns[1]}")
        pairs.append((number, (key, value)))
    return pairs


def read_labels(path: Path) -> Table:
    """labels.csv: columns key,label; a key is a patient, a series or a file (its path within the export)."""
    return read_table(path, ("key", "label"), "--labels")


def label_of(table: Table, patient: str | None, series: str, file: str) -> str | None:
    """The label of one slice: its file's row counts more than its series', and that more than its patient's."""
    found = [table.get(key) for key in (file, series, *([patient] if patient is not None else []))]
    return next((label for label in found if label is not None), None)


def read_ids(path: Path, name: str = "--exclude") -> Table:
    """ids.txt: PatientIDs as in the export, one a line; empty lines are skipped. `name`: the option in messages."""
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except FileNotFoundError:
        raise TableError(f"{name}: the file is not there") from None
    except UnicodeDecodeError:
        raise TableError(f"{name}: got bytes that are not UTF-8; save it as UTF-8") from None
    rows: dict[str, tuple[int, str]] = {}
    for number, line in enumerate(lines, start=1):
        if line.strip():
            rows.setdefault(one_form(line.strip()), (number, ""))
    return Table(name, rows)


@dataclass(frozen=True, slots=True)
class SamePatient:
    """Identities joined by `--same-patient`: every identity of a group becomes the smallest of them."""

    table: Table | None
    root: dict[str, str]

    def identity(self, patient: str) -> str:
        """The identity that stands for `patient`'s group; `patient` itself where no row names it."""
        found = self.root.get(patient)
        return patient if found is None else found

    def members(self, patient: str) -> set[str]:
        """Every identity of the group of `patient`, itself included."""
        wanted = self.identity(patient)
        return {patient, wanted} | {p for p, r in self.root.items() if r == wanted}

    def unmatched_rows(self, seen: Iterable[str]) -> list[int]:
        """Rows none of whose two identities occurs in the export."""
        if self.table is None:
            return []
        known = set(seen)
        return sorted(n for key, (n, value) in self.table.rows.items() if not known & {key, value})


def read_same_patient(path: Path | None) -> SamePatient:
    """map.csv of `--same-patient`: columns patient,same_as, both PatientIDs as in the export."""
    if path is None:
        return SamePatient(None, {})
    table = read_table(path, ("patient", "same_as"), "--same-patient")
    groups: dict[str, set[str]] = {}
    for one, (_, other) in table.rows.items():
        joined = groups.get(one, {one}) | groups.get(other, {other})
        for member in joined:
            groups[member] = joined
    return SamePatient(table, {member: min(group) for member, group in groups.items()})
