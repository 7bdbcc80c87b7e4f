"""What the `fedscan job` commands share: options, sites, lines of progress, errors."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from fedscan.cli.output import fail, say

if TYPE_CHECKING:
    from fedscan.federation.findings import Finding
    from fedscan.federation.local_run import Listener

Job = Annotated[Path, typer.Argument(metavar="JOB", help="A job folder.")]
Site = Annotated[
    list[str] | None,
    typer.Option(
        "--site",
        metavar="NAME=SITE.json",
        help="A site and its site.json (or its kit), or a slice store alone; once for each site.",
    ),
]
Init = Annotated[
    Path | None,
    typer.Option("--init", metavar="MODEL", help="Start from this model file (model.safetensors of another run)."),
]
Kit = Annotated[
    Path | None,
    typer.Option("--kit", metavar="ADMIN_KIT", help="Your kit of a provisioned federation: the folder with startup/."),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for scripts.")]


def names(said: list[str] | None) -> list[str]:
    """A list with commas, over one option or several of them."""
    return [name.strip() for item in said or [] for name in item.split(",") if name.strip()]


def named_sites(site: list[str] | None) -> dict[str, Path]:
    """`--site NAME=PATH` as a mapping; ends the command on anything else."""
    sites: dict[str, Path] = {}
    for item in site or []:
        name, sign, path = item.partition("=")
        if not sign or not name or not path:
            fail(f"--site must be NAME=SITE.json or NAME=STORE, got {item!r}")
        if name in sites:
            fail(f"--site names {name!r} twice: each site has one store")
        sites[name] = Path(path)
    return sites


def listener() -> Listener:
    """Lines with the seconds since the start: readable in a terminal and in a log."""
    import time

    from fedscan.federation.local_run import Progress

    started = time.monotonic()

    def listen(progress: Progress) -> None:
        say(f"[{time.monotonic() - started:6.1f} s] {progress.text}", err=True)

    return listen


@contextmanager
def spoken(stopped: str) -> Iterator[None]:
    """Ends the command with the error's words. `stopped`: what to say when the user stops it."""
    from fedscan.federation.findings import JobError
    from fedscan.federation.local_run import RunError

    try:
        yield
    except JobError as error:
        fail_with(error.findings)
    except RunError as error:
        fail(str(error))
    except OSError as error:
        fail(_disk(error))
    except KeyboardInterrupt:
        fail(stopped)


def fail_with(findings: list[Finding]) -> NoReturn:
    """Every finding in a line, then status 1."""
    for finding in findings:
        say(f"{finding.level}: {finding.where}: {finding.text}", err=True)
    raise typer.Exit(1)


def _disk(error: OSError) -> str:
    what = error.strerror or type(error).__name__
    where = f" ({error.filename})" if error.filename else ""
    return f"the run's folder: {what}{where}: mend that, and go on with `job resume` if it had begun"
