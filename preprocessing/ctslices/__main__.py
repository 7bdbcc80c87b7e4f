"""`python -m ctslices prepare|inspect`: the intake alone, without fedscan."""

from __future__ import annotations

import typer

from ctslices.command import inspect, prepare


def main() -> None:
    """Entry point of the `ctslices` script."""
    app = typer.Typer(
        name="ctslices",
        no_args_is_help=True,
        add_completion=False,
        rich_markup_mode="markdown",
        pretty_exceptions_show_locals=False,
        help="CT scans to a slice store.",
    )
    app.command("prepare")(prepare)
    app.command("inspect")(inspect)
    app()


if __name__ == "__main__":
    main()
