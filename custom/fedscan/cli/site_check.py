"""`fedscan site check`: the preflight of a kit, or of a site's own files alone."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fedscan.cli.output import fail, print_json
from fedscan.cli.site import AsJson

if TYPE_CHECKING:
    from fedscan.federation.site_findings import Check


def check(
    kit: Annotated[
        Path | None, typer.Argument(metavar="[KIT|SITE.json]", help="The site's kit; or its site.json alone.")
    ] = None,
    site: Annotated[
        Path | None,
        typer.Option("--site", metavar="KIT|SITE.json", help="The site's own files alone: its site.json, or the kit."),
    ] = None,
    offline: Annotated[
        bool, typer.Option("--offline", help="Look at the files alone: no connection to the server.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Say all that is wrong with a site at once, each finding with its cure. Changes nothing, registers nowhere.

    Of a kit: what may run and who may command it, file modes, start scripts, certificates and their last day, the way
    to the server, clock, ports, disk, and key, ledger, anchor, policy, store. Of a SITE.json: the latter alone, with
    the ledger held against the last entry that a server sent back. Exit status 1: something must be mended.

    Example: `fedscan site check KIT`
    """
    if kit is not None and site is None and (kit / "startup").is_dir():
        _check_kit(kit, offline, as_json)
    elif (place := kit or site) is not None and (kit is None or site is None):
        _check_own(place, as_json)
    else:
        fail("name one thing to check: the site's kit, or its site.json")


def _check_kit(kit: Path, offline: bool, as_json: bool) -> None:
    from fedscan.federation import site_preflight
    from fedscan.federation.site_kit import KitError

    try:
        found = site_preflight.check(kit, network=not offline)
    except KitError as error:
        fail(str(error))
    except OSError as error:
        fail(f"the kit cannot be read: {error.strerror} ({error.filename})")
    errors = [one for one in found if one.level == "error"]
    if as_json:
        print_json({"ok": not errors, "findings": [one.__dict__ for one in found if one.level != "ok"]})
    else:
        _print(found)
    if errors:
        raise typer.Exit(1)


def _print(found: Sequence[Check]) -> None:
    shown = [one for one in found if one.level != "ok"]
    for one in shown:
        typer.echo(f"{one.level}: {one.name}: {one.text}")
        if one.fix:
            typer.echo(f"    cure: {one.fix}")
    good = [one.name for one in found if one.level == "ok"]
    typer.echo(f"in order: {', '.join(good)}")
    for one in found:
        if one.level == "ok" and one.text:
            typer.echo(f"{one.name}: {one.text}")
    errors = sum(one.level == "error" for one in shown)
    if errors:
        typer.echo(f"{errors} to mend before this site runs")
    else:
        typer.echo("this site is fit for jobs that its policy allows")


def _check_own(place: Path, as_json: bool) -> None:
    from fedscan.privacy import site_check
    from fedscan.privacy.site_file import Site, SiteError
    from fedscan.training.site_store import store_facts

    try:
        opened = Site.open(place)
    except SiteError as error:
        fail(str(error))
    findings = site_check.check(opened, store_facts(opened.store))
    errors = [finding for finding in findings if finding.level == "error"]
    if as_json:
        print_json({"ok": not errors, "findings": [finding.__dict__ for finding in findings]})
    else:
        for finding in findings:
            typer.echo(f"{finding.level}: {finding.text}")
    if errors:
        raise typer.Exit(1)
    if not as_json:
        typer.echo(f"{opened.name} is fit for jobs that its policy allows.")
