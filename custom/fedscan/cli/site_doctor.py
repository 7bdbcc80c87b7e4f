"""`fedscan site doctor` and `site clean`: a sick site explained, a full one emptied."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Annotated

import typer

from fedscan.cli.output import fail, print_json
from fedscan.cli.site import AsJson
from fedscan.cli.site_install import KitArgument

if TYPE_CHECKING:
    from fedscan.federation.retention import Cleaned, Item
    from fedscan.federation.site_doctor import Diagnosis, Seen


def doctor(
    kit: KitArgument,
    days: Annotated[float, typer.Option("--days", min=0.0, help="How far back to read.")] = 7.0,
    as_json: AsJson = False,
) -> None:
    """Explain a sick site: what its logs, refusals and processes say, each with its cause and cure.

    Shows known kinds, counts and times, never a line of a log: nothing of it can be about a patient, so it may be sent
    to the operator. Exit status 1: the site does not run as it should.

    Example: `fedscan site doctor KIT`
    """
    from fedscan.federation.site_doctor import diagnose
    from fedscan.federation.site_kit import KitError

    try:
        found = diagnose(kit, days=days)
    except KitError as error:
        fail(str(error))
    if as_json:
        print_json(
            {
                "site": found.site,
                "process": found.process,
                "jobs": list(found.jobs),
                "findings": [_as_json(seen) for seen in found.seen],
            }
        )
    else:
        _print(found, days)
    if found.process != "runs":
        raise typer.Exit(1)


def _as_json(seen: Seen) -> dict[str, object]:
    return {
        "name": seen.symptom.name,
        "count": seen.count,
        "first": seen.first.isoformat() if seen.first else None,
        "last": seen.last.isoformat() if seen.last else None,
        "where": sorted(seen.places),
        "cause": seen.symptom.cause,
        "cure": seen.symptom.cure,
    }


def _print(found: Diagnosis, days: float) -> None:
    jobs = f", with {len(found.jobs)} jobs at work" if found.jobs else ""
    typer.echo(f"{found.site}: the site's process {found.process}{jobs}")
    if found.process in ("does not run", "gave up"):
        typer.echo("    start it by its service, or by startup/start.sh of the kit (docs/hospital-it.md)")
    for seen in found.seen:
        typer.echo(f"{seen.symptom.name}: {_when(seen)}, in {' and '.join(sorted(seen.places))}")
        typer.echo(f"    cause: {seen.symptom.cause}")
        typer.echo(f"    cure: {seen.symptom.cure}")
    if not found.seen:
        typer.echo(f"nothing known to be wrong in the logs of the last {days:g} days")


def _when(seen: Seen) -> str:
    often = "once" if seen.count == 1 else f"{seen.count} times"
    if seen.first is None or seen.first == seen.last:
        return f"{often}, {_local(seen.last)}"
    return f"{often}, {_local(seen.first)} to {_local(seen.last)}"


def _local(at: datetime | None) -> str:
    return at.astimezone().strftime("%Y-%m-%d %H:%M:%S") if at else "at an unknown time"


def clean(
    kit: KitArgument,
    keep_days: Annotated[
        float | None,
        typer.Option("--keep-days", min=0.0, help="Keep what was finished within so many days; else site.json's."),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would go, remove nothing.")] = False,
    as_json: AsJson = False,
) -> None:
    """Remove the folders of finished jobs, and the training state of finished runs. A live job's is never touched.

    NVFlare never removes a job's folder at a site. Says what is kept, and why. Put it into a timer of the machine.

    Example: `fedscan site clean KIT --keep-days 30`
    """
    from fedscan.federation import site_clean
    from fedscan.federation.site_kit import KitError

    try:
        cleaned = site_clean.clean(kit, keep_days, dry_run=dry_run)
    except KitError as error:
        fail(str(error))
    except OSError as error:
        fail(f"{error.strerror} ({error.filename}): the same command goes on")
    tell_cleaned(cleaned, dry_run, as_json)


def tell_cleaned(cleaned: Cleaned, dry_run: bool, as_json: bool) -> None:
    """What went or would go, what is kept, and why."""
    if as_json:
        lists = {"removed": cleaned.removed, "kept": cleaned.kept}
        print_json({name: [_item(one) for one in items] for name, items in lists.items()} | {"dry_run": dry_run})
        return
    verb = "would be removed" if dry_run else "removed"
    for verb_of, items in ((verb, cleaned.removed), ("kept", cleaned.kept)):
        for one in items:
            typer.echo(f"{verb_of}: {one.what}, {one.megabytes:.1f} MB ({one.why}): {one.path}")
    typer.echo(f"{len(cleaned.removed)} folders {verb}, {sum(one.megabytes for one in cleaned.removed):.1f} MB")


def _item(one: Item) -> dict[str, object]:
    return {"path": str(one.path), "what": one.what, "megabytes": round(one.megabytes, 3), "why": one.why}
