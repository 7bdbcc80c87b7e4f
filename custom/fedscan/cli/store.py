"""`fedscan store ...`: what is done to a slice store after it was prepared."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fedscan.cli.output import fail, print_json
from fedscan.cli.site import AsJson, SiteOption

if TYPE_CHECKING:
    from ctslices.forget import Forgotten, Named
    from ctslices.pseudonym import SiteKey
    from fedscan.privacy.site_file import Site

app = typer.Typer(no_args_is_help=True, rich_markup_mode="markdown", help="Change a slice store.")


@app.callback()
def _store() -> None:
    """A group, though it has one command yet."""


@app.command("forget")
def forget(
    store: Annotated[Path, typer.Argument(metavar="STORE", help="A slice store of this site.")],
    patients: Annotated[
        Path,
        typer.Option("--patients", metavar="IDS.txt", help="PatientIDs as in the export, or pseudonyms, one a line."),
    ],
    site: SiteOption,
    same_patient: Annotated[
        Path | None,
        typer.Option("--same-patient", metavar="CSV", help="The table that the store was prepared with, if any."),
    ] = None,
    skip_unknown: Annotated[
        bool, typer.Option("--skip-unknown", help="Go on although some rows name nobody in the store.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Take patients out of a store for good, with a signed removal record in the site's ledger.

    The store is written anew without them, whole or not at all. What was spent stays spent. A store that lost patients
    without such a record is refused by the judge.

    Example: `fedscan store forget STORE --patients ids.txt --site SITE.json`
    """
    from ctslices.forget import ForgetError
    from ctslices.labels import TableError
    from ctslices.pseudonym import KeyFileError
    from ctslices.store import StoreError
    from fedscan.privacy.ledger import LedgerError
    from fedscan.privacy.site_file import Site, SiteError

    try:
        opened = Site.open(site)
        found, done = _forget(store, patients, opened, same_patient, skip_unknown)
    except (SiteError, LedgerError, ForgetError, TableError, KeyFileError, StoreError) as error:
        fail(str(error))
    except OSError as error:
        fail(f"{error.strerror} ({error.filename}): run the same command again")
    if as_json:
        print_json(
            {
                "patients": done.patients,
                "slices": done.slices,
                "patients_left": done.patients_left,
                "slices_left": done.slices_left,
                "unknown_rows": list(found.unknown_rows),
            }
        )
        return
    typer.echo(
        f"{store}: {done.patients} patients with {done.slices} slices taken out, {done.patients_left} patients left. "
        "Take them out of the export too, or prepare with --exclude from now on; backups and copies are yours to clear"
    )


def _forget(
    store: Path, patients: Path, site: Site, same_patient: Path | None, skip_unknown: bool
) -> tuple[Named, Forgotten]:
    from ctslices import forget as forgetting
    from ctslices.store import read_manifest

    ledger = site.open_ledger()
    key = _key(site)
    manifest = read_manifest(store)
    known = frozenset[str]().union(*ledger.populations.values())
    found = forgetting.named(manifest, patients, key, same_patient, removed=known)
    if found.unknown_rows and not skip_unknown:
        rows = ", ".join(map(str, found.unknown_rows[:20])) + (", ..." if len(found.unknown_rows) > 20 else "")
        hint = "" if key is not None else f" (without the store's key {site.pseudonym_key} pseudonyms alone are known)"
        raise forgetting.ForgetError(
            f"--patients: nobody in the store is named by row {rows}{hint}: mend the rows, name --same-patient if the "
            "store was prepared with it, or say --skip-unknown; nothing was changed"
        )
    # The record comes first: stopped in between, the judge refuses the store until this command has ended.
    # Who is gone already gets one too, where it was lost with a disk.
    there = {patient.id for patient in manifest.patients}
    if found.pseudonyms - ledger.removed:
        ledger.record_removal(there | found.pseudonyms, there - found.pseudonyms)
    return found, forgetting.forget(store, found.pseudonyms)


def _key(site: Site) -> SiteKey | None:
    from ctslices.pseudonym import load_key

    return load_key(site.pseudonym_key) if site.pseudonym_key.exists() else None
