"""`fedscan audit log` and `fedscan audit bytes`: what a server or a site did, and what left a site."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fedscan.cli.output import fail, print_json, print_table

if TYPE_CHECKING:
    from fedscan.federation.audit_log import AuditLog, Verified

Place = Annotated[
    Path,
    typer.Argument(metavar="KIT|STATE", help="A server's or site's kit, or the folder that holds audit/ or bytes/."),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for scripts.")]


def log(
    kit: Place,
    verify: Annotated[bool, typer.Option("--verify", help="Say whether the log is whole; status 1 if not.")] = False,
    head: Annotated[
        str | None,
        typer.Option("--head", metavar="COUNT:SHA256", help="A head that you noted earlier: it must still be there."),
    ] = None,
    last: Annotated[int, typer.Option(min=0, help="Show this many of the newest records.")] = 20,
    as_json: AsJson = False,
) -> None:
    """Show the chained audit log of a server or a site, and verify it offline.

    Each record names the hash of the one before it: a changed, missing, repeated or reordered line is found, and so are
    newest lines that were cut, as long as the anchor or a head that was noted elsewhere tells of them. Not found is a
    cut by somebody who put back an older anchor as well: note the printed head elsewhere now and then, and give it
    with --head.

    Example: `fedscan audit log --verify KIT --head 118:5f0c...`
    """
    from fedscan.federation.audit_log import AuditError, Head

    try:
        found = _log_of(kit).verify(Head.parse(head) if head else None)
    except AuditError as error:
        fail(str(error))
    if as_json:
        print_json(
            {
                "ok": found.ok,
                "faults": list(found.faults),
                "head": str(found.head),
                "keyed": found.keyed,
                "records": [event.model_dump(mode="json") for event in found.events[-last:] if last],
            }
        )
    else:
        _print(found, last, verify=verify or head is not None)
    if not found.ok:
        raise typer.Exit(1)


def bytes_left(
    kit: Place,
    job: Annotated[
        str | None,
        typer.Option("--job", metavar="ID", help="Of this job's process alone; `parent`: of the site's own."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Show what left a site, by channel: messages and bytes, and what was blocked.

    Counted in the site's own processes, before the connection's framing and TLS, which add 0.2 % to long answers and
    20 KB or so to a short run. docs/what-leaves.md explains each channel.

    Example: `fedscan audit bytes KIT`
    """
    from fedscan.federation import byte_log

    folder = _folder_of(kit, byte_log.FOLDER)
    try:
        found = byte_log.totals(byte_log.read(folder), job)
    except OSError as error:
        fail(f"{error.strerror} ({error.filename})")
    if not found:
        fail(f"no byte log in {folder / byte_log.FOLDER}: has this site run, with gate and counter in its kit?")
    if as_json:
        print_json(byte_log.as_dict(found))
        return
    rows = [
        (total.channel, total.to, total.messages, f"{total.bytes:,}", "blocked" if total.blocked else "")
        for total in found
    ]
    columns = ("channel", "to", "messages", "bytes", "")
    print_table("what left, by channel", columns, rows, whole=columns[1:])
    typer.echo(f"left this site: {byte_log.left(found):,} bytes")


def register(app: typer.Typer) -> None:
    """Adds both commands to `fedscan audit`."""
    app.command("log")(log)
    app.command("bytes")(bytes_left)


def _log_of(kit: Path) -> AuditLog:
    from fedscan.federation.audit_log import FOLDER, AuditLog

    return AuditLog(_folder_of(kit, FOLDER))


def _folder_of(kit: Path, name: str) -> Path:
    """The folder that has the subfolder: of a site's kit its state folder, or the kit itself."""
    from fedscan.federation.site_folder import notes_of

    return notes_of(kit) if not (kit / name).is_dir() and (kit / "local").is_dir() else kit


def _print(found: Verified, last: int, *, verify: bool) -> None:
    rows = [
        (event.n, event.time, event.what, event.who, event.text, event.job) for event in found.events[-last:] if last
    ]
    if rows and not verify:
        print_table("audit log", ("n", "time", "what", "who", "text", "job"), rows)
    for fault in found.faults:
        typer.echo(f"FAULT: {fault}")
    if not found.keyed:
        typer.echo("the key was not there: the chain was checked, not who made it")
    if found.ok:
        typer.echo(f"{found.head.count} records, whole and in order")
    typer.echo(f"head (note it elsewhere): {found.head}")
