"""The commands `prepare` and `inspect`. What is heavy is imported inside them, so that help comes at once."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

if TYPE_CHECKING:
    from ctslices.prepare import Site

Export = Annotated[Path, typer.Argument(metavar="EXPORT", help="Folder of scans, of any nesting.")]
Out = Annotated[Path, typer.Option("--out", metavar="STORE", help="The store to make, or to bring up to date.")]
FieldMm = Annotated[float, typer.Option("--field-mm", help="Side of the square field of view, in mm.")]
Size = Annotated[int, typer.Option("--size", help="Side of a slice in pixels.")]
EveryMm = Annotated[float, typer.Option("--every-mm", help="Step between kept slices, in mm; 0 keeps every slice.")]
Region = Annotated[str, typer.Option("--region", help="`chest` keeps slices that show lung; `any` keeps all.")]
Labels = Annotated[
    Path | None,
    typer.Option("--labels", metavar="CSV", help="Columns key,label; a key is a patient, a series or a file."),
]
PatientFrom = Annotated[
    str | None,
    typer.Option(
        "--patient-from",
        metavar="folder|CSV",
        help="Who is the patient of a NIfTI or NRRD volume: `folder` (the first folder below EXPORT), or a table with "
        "the columns key,patient (a key is a file or a folder). Without it the store's unit is `image`.",
    ),
]
SamePatient = Annotated[
    Path | None,
    typer.Option("--same-patient", metavar="CSV", help="Columns patient,same_as: identities of one person."),
]
Kernel = Annotated[
    str | None,
    typer.Option("--kernel", help="Of series of one acquisition, take the one with this kernel (else the smoothest)."),
]
Exclude = Annotated[
    Path | None, typer.Option("--exclude", metavar="TXT", help="PatientIDs that must not get in, one a line.")
]
Key = Annotated[
    Path | None,
    typer.Option("--key", metavar="FILE", help="The site's secret for pseudonyms; default STORE.key, made if missing."),
]
MinSlices = Annotated[int, typer.Option("--min-slices", help="Series with fewer slices are refused.")]
AllowBurnedIn = Annotated[
    bool,
    typer.Option("--allow-burned-in", help="Take images marked as carrying burned-in text, and do not screen for it."),
]
Holdout = Annotated[float, typer.Option("--holdout", help="Fraction of patients held out of training.")]
SplitSeed = Annotated[int, typer.Option("--split-seed", help="Decides who is held out.")]
Workers = Annotated[int | None, typer.Option("--workers", help="Processes; default: one for each processor.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for scripts.")]


def prepare(
    export: Export,
    out: Out,
    field_mm: FieldMm = 360.0,
    size: Size = 64,
    every_mm: EveryMm = 5.0,
    region: Region = "chest",
    labels: Labels = None,
    patient_from: PatientFrom = None,
    same_patient: SamePatient = None,
    kernel: Kernel = None,
    exclude: Exclude = None,
    key: Key = None,
    min_slices: MinSlices = 5,
    allow_burned_in: AllowBurnedIn = False,
    holdout: Holdout = 0.2,
    split_seed: SplitSeed = 0,
    workers: Workers = None,
    as_json: AsJson = False,
) -> None:
    """Turn an export of CT scans into a slice store: DICOM, NIfTI, NRRD, or folders of pictures.

    Nothing of a patient gets into the store. Beside it lie files for the site alone: STORE.key (keep it: the store
    takes no other), STORE.rejected.jsonl (what was refused and why), STORE.quarantine/ (slices that may carry
    burned-in text: look at them, write `yes` under `release` in its list.csv, and prepare again).

    Stopped at any moment, the same command goes on where it was. Example: `fedscan prepare export --out store`
    """
    from ctslices.prepare import Site

    site = Site(labels, patient_from, same_patient, exclude, key, holdout, split_seed, workers)
    chosen = {
        "field_mm": field_mm,
        "size": size,
        "every_mm": every_mm or None,
        "region": region,
        "kernel": kernel,
        "min_slices": min_slices,
        "allow_burned_in": allow_burned_in,
    }
    _prepare(export, out, chosen, site, as_json)


def _prepare(export: Path, out: Path, chosen: Mapping[str, object], site: Site, as_json: bool) -> None:
    from ctslices.options import Options
    from ctslices.prepare import prepare as run

    try:
        options = Options(**chosen)  # type: ignore[arg-type]
        with _progress(shown=not as_json and sys.stderr.isatty()) as progress:
            report = run(export, out, options, site, progress)
    except (ValueError, RuntimeError) as error:
        _fail(str(error))
    except KeyboardInterrupt:
        _fail("stopped by you; the same command goes on where it was")
    if as_json:
        from ctslices.console import print_json

        print_json(report.as_dict())
        return
    from ctslices.console import print_report

    print_report(report, out)


def inspect(
    store: Annotated[Path, typer.Argument(metavar="STORE", help="A slice store.")],
    out: Annotated[
        Path | None, typer.Option("--out", metavar="PNG", help="Where the picture goes; default STORE.montage.png.")
    ] = None,
    window: Annotated[
        str, typer.Option("--window", help="full, lung, mediastinum or bone; pictures have one of their own.")
    ] = "full",
    seed: Annotated[int, typer.Option("--seed", help="Decides which slices the picture shows.")] = 0,
    as_json: AsJson = False,
) -> None:
    """Check a store and say what is in it; draw a montage of its slices.

    Example: `fedscan inspect store`
    """
    from ctslices.console import print_inspection, print_json
    from ctslices.inspection import inspect_store
    from ctslices.montage import montage_path, write_montage
    from ctslices.store import SliceStore

    try:
        opened = SliceStore.open(store)
        found = inspect_store(opened)
        picture = write_montage(opened, out or montage_path(store), window, seed)
    except ValueError as error:
        _fail(str(error))
    except OSError:
        _fail("the picture cannot be written there: name another place with --out")
    if as_json:
        print_json(found | {"montage": None if picture is None else str(picture)})
    else:
        print_inspection(found, store, picture)


def _fail(text: str) -> NoReturn:
    typer.secho(f"error: {text}", err=True, fg=typer.colors.RED if sys.stderr.isatty() else None)
    raise typer.Exit(1)


@contextmanager
def _progress(shown: bool) -> Iterator[Callable[[str, int, int], None] | None]:
    """A bar on stderr that follows (phase, done, total)."""
    if not shown:
        yield None
        return
    from ctslices.console import progress_bar

    with progress_bar() as follow:
        yield follow
