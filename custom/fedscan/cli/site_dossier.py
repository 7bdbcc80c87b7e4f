"""`fedscan site dossier`: the draft of the impact assessment, as a file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fedscan.cli.output import fail, print_json
from fedscan.cli.site import AsJson
from fedscan.cli.site_install import KitArgument


def dossier(
    kit: KitArgument,
    out: Annotated[Path, typer.Option("--out", metavar="FILE.md", help="The draft to write, Markdown.")],
    force: Annotated[bool, typer.Option("--force", help="Write over a file that is there.")] = False,
    as_json: AsJson = False,
) -> None:
    """Draft the data-protection impact assessment from what is really set: policy, ledger, store and kit.

    Under the headings of ISO/IEC 27559; what a person must answer is marked "Open". The same files give the same text.

    Example: `fedscan site dossier KIT --out dpia.md`
    """
    from fedscan.federation import site_dossier
    from fedscan.federation.site_kit import KitError

    if out.exists() and not force:
        fail(f"{out} is there already, perhaps with a person's answers: name another file, or say --force")
    try:
        facts = site_dossier.read(kit)
        site_dossier.write(facts, out)
    except (KitError, site_dossier.DossierError) as error:
        fail(str(error))
    except OSError as error:
        fail(f"{error.strerror} ({error.filename})")
    still_open = out.read_text(encoding="utf-8").count("**Open**")
    if as_json:
        report = {"out": str(out), "open": still_open, "looser": list(facts.looser)}
        print_json(report | {"findings": [one.name for one in facts.findings]})
        return
    typer.echo(f"{out}: a draft; {still_open} points are open for people to fill in. It holds numbers of patients")
    for line in (*facts.looser, *(f"{one.name}: {one.text}" for one in facts.findings)):
        typer.echo(f"    it says: {line}")
