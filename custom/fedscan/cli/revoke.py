"""Revoking people and sites: the list is made by who holds the root key, and laid at the server and at sites."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fedscan.cli.output import fail, print_json

if TYPE_CHECKING:
    from fedscan.federation.revocation import RevocationList

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for scripts.")]
ListFile = Annotated[Path, typer.Argument(metavar="LIST", help="The list that `fedscan federation revoke` wrote.")]


def make(
    names: Annotated[list[str], typer.Argument(metavar="NAME...", help="People and sites, as project.yml names them.")],
    state: Annotated[
        Path,
        typer.Option("--state", metavar="FOLDER", help="The state/ folder of `nvflare provision`, with the root key."),
    ],
    file: Annotated[
        Path, typer.Option("--list", metavar="FILE", help="The list so far, written anew; made if it is not there.")
    ] = Path("revocations.json"),
    as_json: AsJson = False,
) -> None:
    """Revoke all certificates that these people and sites have today.

    The list is signed with the root key and has the next number. Give it to the server's operator (`server revoke`),
    whose server sends it with every task; a hospital can lay it by hand (`site revoke`). Whoever is let in again needs
    a new kit; a site, a new name. Take them out of project.yml too.

    Example: `fedscan federation revoke lead@fedscan.example.org --state consortium/ct-consortium/state`
    """
    from fedscan.federation import revocation

    try:
        made = revocation.make(state, names, file)
    except revocation.RevocationError as error:
        fail(str(error))
    except KeyError as error:
        fail(f"this root has given no certificate to {error.args[0]!r}: names are those of project.yml")
    except OSError as error:
        fail(f"{error.filename or file}: {error.strerror}")
    _show(made, as_json)


def at_server(
    file: ListFile,
    kit: Annotated[Path, typer.Option("--kit", metavar="SERVER_KIT", help="The server's kit.")],
    as_json: AsJson = False,
) -> None:
    """Lay a list at the server: from the next round on it goes out with every task, revoked sites are not asked, and
    jobs of revoked people stop. The server need not be restarted.

    Example: `fedscan server revoke revocations.json --kit prod_00/server.example.org`
    """
    _lay(file, kit, "fed_server.json", lambda: kit / "local", as_json)


def at_site(
    file: ListFile,
    kit: Annotated[Path, typer.Option("--kit", metavar="KIT", help="The site's kit, installed.")],
    as_json: AsJson = False,
) -> None:
    """Lay a list at this site, without waiting for the server: jobs of revoked people are refused from now on, running
    ones before their next round.

    Example: `fedscan site revoke revocations.json --kit hosp-a`
    """
    from fedscan.privacy.site_file import Site, SiteError

    def state() -> Path:
        try:
            return Site.open(kit).state
        except SiteError as error:
            fail(str(error))

    _lay(file, kit, "fed_client.json", state, as_json)


def _lay(file: Path, kit: Path, settings: str, folder: Callable[[], Path], as_json: bool) -> None:
    from fedscan.federation import revocation
    from fedscan.federation.site_certificates import ROOT

    if not (kit / "startup" / settings).is_file():
        fail(f"{kit} is no such kit: it has no startup/{settings}")
    try:
        held = revocation.Revocations(folder() / revocation.FILE, kit / "startup" / ROOT)
        offered = revocation.verify(file.read_text(encoding="utf-8"), revocation.root_of(kit / "startup" / ROOT))
        newest = held.lay(file.read_text(encoding="utf-8"))
    except revocation.RevocationError as error:
        fail(str(error))
    except (OSError, UnicodeDecodeError) as error:
        fail(f"{file}: {getattr(error, 'strerror', None) or 'is no text'}")
    if newest.number > offered.number:
        fail(f"list {newest.number} lies there already, and is newer than this one ({offered.number})")
    _show(newest, as_json)


def _show(newest: RevocationList, as_json: bool) -> None:
    if as_json:
        print_json(newest.model_dump(mode="json"))
        return
    typer.echo(f"list {newest.number}: {len(newest.revoked)} revoked")
    for name, until in newest.revoked.items():
        typer.echo(f"  {name}: certificates issued until {until}")
