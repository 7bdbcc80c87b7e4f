"""`fedscan deal`: one store dealt out to several sites, for studies."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fedscan.cli.output import fail, print_json, print_table


def deal(
    store: Annotated[Path, typer.Argument(metavar="STORE", help="A slice store made by `fedscan prepare`.")],
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Folder for the stores site-01, site-02, ...")],
    sites: Annotated[int, typer.Option(min=1, help="How many sites.")] = 4,
    seed: Annotated[int, typer.Option(min=0, help="Draws who goes where.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for scripts.")] = False,
) -> None:
    """Deal one store out to several sites, for a study of a federation on data that lie in one place.

    Whole patients are dealt (of pictures: blocks of consecutive numbers, since neighbours are slices of one patient),
    each label by itself. Nobody's side of the train/holdout split changes.

    Example: `fedscan deal store --sites 4 --out dealt`
    """
    from ctslices.deal import DealError
    from ctslices.deal import deal as deal_out
    from ctslices.store import SliceStore, StoreError

    try:
        paths = deal_out(SliceStore.open(store), out, sites, seed)
    except (StoreError, DealError) as error:
        fail(str(error))
    except OSError as error:
        fail(f"the stores cannot be written: {error.strerror}. None was left; the same command tries again")
    except KeyboardInterrupt:
        fail("stopped by you; none of the stores was left")
    opened = [SliceStore.open(path) for path in paths]
    rows = [
        (p.name, len(s.manifest.patients), len(s), len(s.indices("train"))) for p, s in zip(paths, opened, strict=True)
    ]
    columns = ("site", f"{opened[0].unit}s" if opened[0].unit == "patient" else "blocks", "slices", "in train")
    if as_json:
        print_json([dict(zip(("site", "patients", "slices", "train"), row, strict=True)) for row in rows])
    else:
        print_table(str(out), columns, rows)
