"""`fedscan site backup | restore | land | move | renew-anchor`: a site's ledger outlives disks and machines."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from fedscan.cli.output import fail, print_json
from fedscan.cli.site import AsJson, SiteOption

Package = Annotated[Path, typer.Argument(metavar="PACKAGE", help="A package of this site, one file.")]
WithStore = Annotated[bool, typer.Option("--with-store", help="Put the slice store into it too.")]
Folder = Annotated[Path, typer.Argument(metavar="FOLDER", help="The site's folder to make on this machine.")]


@contextmanager
def _told() -> Iterator[None]:
    """Errors as one line."""
    from fedscan.privacy.ledger import LedgerError
    from fedscan.privacy.site_file import SiteError

    try:
        yield
    except LedgerError as error:
        fail(f"ledger: {error}")
    except (SiteError, ValueError) as error:
        fail(str(error))
    except OSError as error:
        fail(f"{error.strerror} ({error.filename})")


def backup(package: Package, site: SiteOption, with_store: WithStore = False, as_json: AsJson = False) -> None:
    """Write keys, ledger, the patients behind it, policy and state into one file. Keep it as you keep patients' data.

    The anchor is not in it and must be kept apart: with it alone a ledger from a backup can go on.

    Example: `fedscan site backup a-2026-11-24.tar --site SITE.json`
    """
    from fedscan.privacy.ledger_package import pack
    from fedscan.privacy.ledger_report import head_text
    from fedscan.privacy.site_file import Site

    with _told():
        opened = Site.open(site)
        ledger = opened.open_ledger()
        with ledger.lock():
            pack(opened, ledger, package, with_store)
            head = ledger.head
    if as_json:
        print_json({"package": str(package), "head": {"count": head.count, "mac": head.mac}})
    else:
        typer.echo(f"{package}: the ledger up to entry {head_text(head)}. It holds the site's keys: mode 0600")


def land(folder: Folder, as_json: AsJson = False) -> None:
    """Begin a move, on the new machine: make the secret that lets one package land in FOLDER, and print its code.

    Example: `fedscan site land site-a`, then on the old machine `fedscan site move a.tar --to CODE --site SITE.json`
    """
    from fedscan.privacy.ledger_recovery import new_landing, with_check

    with _told():
        code = with_check(new_landing(_landing(folder)))
    if as_json:
        print_json({"code": code})
    else:
        typer.echo(code)


def move(
    package: Package,
    site: SiteOption,
    to: Annotated[str, typer.Option("--to", metavar="CODE", help="What `fedscan site land` said on the new machine.")],
    with_store: WithStore = False,
    as_json: AsJson = False,
) -> None:
    """Move the site to another machine: retire the ledger here, for good, and write the package that goes on there.

    A stopped move is ended by the same command.

    Example: `fedscan site move a.tar --to CODE --site SITE.json`
    """
    from fedscan.privacy.ledger_package import pack
    from fedscan.privacy.ledger_recovery import checked, move_out
    from fedscan.privacy.site_file import Site

    with _told():
        opened = Site.open(site)
        ledger = opened.open_ledger()
        if package.exists():
            fail(f"{package} is there already: name another file")
        code = checked(to.strip().lower())
        if code is None:
            fail(
                "--to must be the 72 hexadecimal digits that `fedscan site land` printed on the new machine: a digit "
                "is wrong or missing. Nothing was moved"
            )
        with ledger.lock():
            entry = move_out(ledger, code)
            pack(opened, ledger, package, with_store)
    if as_json:
        print_json({"package": str(package), "entry": entry.number})
    else:
        typer.echo(
            f"{package}: take it to the new machine and run `fedscan site restore`. The ledger here is retired with "
            f"entry {entry.number} and pays for nothing any more"
        )


def restore(
    package: Package,
    into: Annotated[Path, typer.Option("--into", metavar="FOLDER", help="The site's folder to make.")],
    anchor: Annotated[
        Path,
        typer.Option(
            "--anchor",
            metavar="FILE",
            help="The ledger's anchor, which was kept apart; after a move, where to make it.",
        ),
    ],
    store: Annotated[
        Path | None, typer.Option("--store", metavar="STORE", help="The slice store, where the package holds none.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Put a site back from a package: after a lost disk with the anchor that was kept, or moved from another machine.

    Entries that are newer than the package are charged as far as the anchor knows: nothing is won by an old one.

    Example: `fedscan site restore a.tar --into site-a --anchor /mnt/other/a.anchor --store STORE`
    """
    from fedscan.privacy.ledger import Ledger
    from fedscan.privacy.ledger_package import KEY, LEDGER, unpack
    from fedscan.privacy.ledger_recovery import Settled, settle
    from fedscan.privacy.ledger_report import incidents
    from fedscan.privacy.own_files import read_key
    from fedscan.privacy.site_file import SITE_JSON, Site
    from fedscan.privacy.site_init import init

    with _told():
        contents, places = unpack(package, into, store)
        key = read_key(places.of(KEY), "the site's key")
        settled = settle(places.of(LEDGER), key, anchor, _landing(into))
        warnings: tuple[str, ...] = ()
        if settled is Settled.RESTORED:
            warnings = tuple(incidents(Ledger.open(places.of(LEDGER), key, anchor).lines)[-1:])
        if not (into / SITE_JSON).exists():
            made = init(into, name=contents.site, store=places.store, anchor=anchor, limits=contents.limits)
            warnings += made.warnings
        elif store is not None and (kept := Site.open(into).store).resolve() != store.resolve():
            warnings += (f"site.json was kept, and names the store {kept}: correct `store` in it",)
    if as_json:
        print_json({"site": str(into / SITE_JSON), "ledger": settled.name.lower(), "warnings": list(warnings)})
        return
    for warning in warnings:
        typer.secho(f"warning: {warning}", err=True)
    typer.echo(f"{into / SITE_JSON}: the ledger is back: {settled.value}")


def renew_anchor(
    site: SiteOption,
    head: Annotated[
        str | None,
        typer.Option(
            "--head",
            metavar="COUNT:MAC",
            help="The newest head of this site that a server recorded: ask the lead for RUN/site_heads.json.",
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Make a lost anchor anew, where the ledger holds the newest entry that a server recorded. The ledger notes it.

    Example: `fedscan site renew-anchor --head 41:9f0c... --site SITE.json`
    """
    from fedscan.privacy import ledger_recovery
    from fedscan.privacy.ledger_witness import parse_head, received_head
    from fedscan.privacy.site_file import Site

    with _told():
        opened = Site.open(site)
        recorded = parse_head(head) if head is not None else None
        entry = ledger_recovery.renew_anchor(
            opened.file.ledger, opened.key(), opened.file.anchor, recorded, received_head(opened.state)
        )
    if as_json:
        print_json({"entry": entry.number})
    else:
        typer.echo(f"{opened.file.anchor}: made anew; entry {entry.number} of the ledger says so")


def _landing(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}.landing")


def register(app: typer.Typer) -> None:
    """Under `fedscan site`."""
    app.command("backup")(backup)
    app.command("restore")(restore)
    app.command("land")(land)
    app.command("move")(move)
    app.command("renew-anchor")(renew_anchor)
