"""The commands of a site that work on its kit."""

from __future__ import annotations

import typer

from fedscan.cli.revoke import at_site
from fedscan.cli.site_check import check
from fedscan.cli.site_doctor import clean, doctor
from fedscan.cli.site_dossier import dossier
from fedscan.cli.site_install import install


def register(app: typer.Typer) -> None:
    """Adds them to `fedscan site`."""
    app.command("install")(install)
    app.command("check")(check)
    app.command("doctor")(doctor)
    app.command("dossier")(dossier)
    app.command("clean")(clean)
    app.command("revoke")(at_site)
