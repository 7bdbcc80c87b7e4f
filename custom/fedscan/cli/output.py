"""How commands speak: errors to stderr with exit status 1, tables for people, JSON for scripts."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from typing import NoReturn

import typer

from fedscan.readable import readable_json, readable_lines


def fail(text: str) -> NoReturn:
    """Says what is wrong, and ends with status 1."""
    typer.secho(f"error: {readable_lines(text)}", err=True, fg=typer.colors.RED if sys.stderr.isatty() else None)
    raise typer.Exit(1)


def print_json(data: object) -> None:
    """One JSON document on stdout."""
    typer.echo(readable_json(json.dumps(data, indent=2, ensure_ascii=False)))


def print_table(
    title: str, columns: Sequence[str], rows: Sequence[Sequence[object]], whole: Sequence[str] = ()
) -> None:
    """A table for people. `whole`: columns whose cells stay on one line, since they are copied from there."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table(title=escape(readable_lines(title)), title_justify="left")
    for column in columns:
        table.add_column(column, overflow="fold", no_wrap=column in whole)
    for row in rows:
        table.add_row(*("" if cell is None else escape(readable_lines(str(cell))) for cell in row))
    Console().print(table)


def say(text: str, *, err: bool = False) -> None:
    """A line that may hold what another party wrote."""
    typer.echo(readable_lines(text), err=err)
