"""`fedscan site install`: at most five questions, each with a default, and then what was done."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from fedscan.cli.output import fail, print_json
from fedscan.cli.site import AnchorFile, AsJson

if TYPE_CHECKING:
    from fedscan.federation.site_install import Choices, Installed
    from fedscan.privacy.policy import Policy
    from fedscan.privacy.store_facts import StoreFacts

KitArgument = Annotated[
    Path, typer.Argument(metavar="KIT", help="The kit of this site: the folder with `startup` and `local` in it.")
]
T = TypeVar("T")


def install(
    kit: KitArgument,
    store: Annotated[
        Path | None, typer.Option("--store", metavar="STORE", help="The slice store that jobs train on.")
    ] = None,
    anchor: AnchorFile = None,
    private: Annotated[
        Path | None,
        typer.Option(
            "--private", metavar="DIR", help="Where key, ledger, policy and state go or are; default KIT.private."
        ),
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="FIELD=VALUE", help="Set a field of the policy: max_epsilon=4, approval=by_digest."
        ),
    ] = None,
    cores: Annotated[int | None, typer.Option(min=1, help="CPU threads that jobs may use; default 1.")] = None,
    new_root: Annotated[
        str | None,
        typer.Option(
            "--new-root",
            metavar="DIGITS",
            help="Take a kit that another root key signed: the 64 digits from the operator.",
        ),
    ] = None,
    second_federation: Annotated[
        bool,
        typer.Option("--second-federation", help="Join a second federation: the same patients, one budget."),
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Ask nothing: the defaults, and what the options say.")] = False,
    as_json: AsJson = False,
) -> None:
    """Lay this hospital's own part over the kit that the operator sent: key, ledger, policy, and the link to the store.

    Asks at most five questions. Run it again after a stop, or on a renewed kit: what is there is kept. With --anchor
    it moves the anchors.

    Example: `fedscan site install KIT --store STORE --anchor /mnt/other`
    """
    from fedscan.federation import site_install
    from fedscan.privacy.limits import Limits
    from fedscan.privacy.site_file import SiteError

    choices = site_install.Choices(
        store=store, private=private, anchor=anchor, new_root=new_root, second_federation=second_federation
    )
    fields = _fields(settings or [])
    try:
        new = site_install.present_site(kit, private) is None
        facts = site_install.store_of(choices, kit)
        if new and not (yes or as_json):
            anchor, fields, cores = _ask(kit, choices, facts, fields, cores)
        policy = _policy(fields, facts) if new or fields else None
        limits = Limits(cores=cores) if cores is not None else None
        done = site_install.install(
            kit,
            site_install.Choices(store, private, anchor, policy, limits, new_root, second_federation),
        )
    except (site_install.InstallError, SiteError) as error:
        fail(f"nothing was installed: {error}")
    except OSError as error:
        fail(f"{error.strerror} ({error.filename}): the same command goes on when this is mended")
    _tell(done, as_json)


def _fields(settings: list[str]) -> dict[str, Any]:
    """`field=value` of --set, values in JSON; a bare word is a text."""
    fields: dict[str, Any] = {}
    for setting in settings:
        name, sign, text = setting.partition("=")
        if not sign:
            fail(f"--set {setting}: must be field=value, such as max_epsilon=4")
        try:
            fields[name] = json.loads(text)
        except (ValueError, RecursionError):
            fields[name] = text
    return fields


def _policy(fields: dict[str, Any], facts: StoreFacts) -> Policy:
    """The private policy with these fields; max_delta fits the store where it is not said."""
    from fedscan.privacy.site_init import policy_with

    said = {"max_delta": default_delta(facts.units), **fields}
    return policy_with([f"{name}={json.dumps(value)}" for name, value in said.items()])


def default_delta(units: int) -> float:
    """The policy's default 1e-4, or for a large store the power of ten that is at most a tenth of 1 / patients."""
    return min(1e-4, 10.0 ** math.floor(math.log10(0.1 / units))) if units else 1e-4


def _ask(
    kit: Path, choices: Choices, facts: StoreFacts, fields: dict[str, Any], cores: int | None
) -> tuple[Path | None, dict[str, Any], int | None]:
    """At most five questions, and none that an option answered."""
    from fedscan.federation.site_install import private_folder

    if not sys.stdin.isatty():
        fail("this command asks questions: say --yes to take the defaults, or run it at a terminal")
    home = private_folder(kit, choices.private)
    anchor, asked = choices.anchor, dict(fields)
    typer.echo(f"Enter takes the default. The store has {facts.units} {facts.unit}s to train on.")
    if anchor is None:
        what = "1. A folder or file on another disk for the logs' counters, which show a rolled-back disk"
        anchor = Path(_question(what, str(home / "ledger.anchor"), str))
    if "max_epsilon" not in asked:
        what = "2. epsilon that may be spent on these patients, over all jobs for ever"
        asked["max_epsilon"] = _question(what, 8.0, float)
    if "min_patients" not in asked:
        asked["min_patients"] = _question("3. The smallest number of patients to train on", 100, int)
    if "approval" not in asked:
        what = "4. Must a person here approve each plan (by_digest), or is what the policy allows run (automatic)"
        asked["approval"] = _question(what, "automatic", str)
    if cores is None:
        cores = _question("5. CPU threads that jobs may use", 1, int)
    return anchor, asked, cores


def _question(text: str, default: T, kind: Callable[[str], T]) -> T:
    answer: T = typer.prompt(text, default=default, type=kind, err=True)
    return answer


def _tell(installed: Installed, as_json: bool) -> None:
    from fedscan.federation import site_certificates

    kit, site = installed.kit, installed.site
    end = site_certificates.soonest_end(kit.startup)
    if as_json:
        report = {
            "kit": str(kit.folder),
            "federation": kit.project,
            "site": site.name,
            "site_file": str(site.path.resolve()),
            "server": f"{kit.server.host}:{kit.server.port}",
            "certificates_end": end[1].isoformat() if end else None,
            "done": list(installed.done),
            "warnings": list(installed.warnings),
        }
        print_json(report)
        return
    server = f"{kit.server.host}:{kit.server.port}"
    typer.echo(f"{kit.folder}: site {site.name!r} of the federation {kit.project!r}, server {server}")
    for line in installed.done or ("everything was installed already: nothing was changed",):
        typer.echo(f"  {line}")
    for warning in installed.warnings:
        typer.secho(f"warning: {warning}", err=True)
    if end:
        typer.echo(f"certificates hold until {end[1]:%Y-%m-%d} ({end[0]})")
    typer.echo(
        f"next: read the policy in {site.file.policy}, keep copies of the keys (docs/site.md), then\n"
        f"  fedscan site check {kit.folder}"
    )
