"""`fedscan audit ...`: attack our own claims, and read what server and sites noted."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fedscan.cli import audit_log
from fedscan.cli.output import fail, print_json

if TYPE_CHECKING:
    from fedscan.plan import Plan
    from fedscan.training.data import TrainingSet
    from fedscan.training.weights import Weights

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="markdown",
    help="Attack our own claims; read and verify what a server or a site noted.",
)
audit_log.register(app)


@app.command("privacy")
def privacy(
    job: Annotated[Path, typer.Argument(metavar="JOB", help="A job whose plan has privacy.")],
    store: Annotated[Path, typer.Option("--store", metavar="STORE", help="A slice store; it is read, never changed.")],
    site: Annotated[
        str | None,
        typer.Option("--site", metavar="NAME", help="Whose sampling of the plan; needed if it names several."),
    ] = None,
    canaries: Annotated[int, typer.Option(min=300, help="Made-up patients, about half of whom are trained on.")] = 400,
    patients: Annotated[int, typer.Option(min=1, help="Real patients beside them, at most.")] = 100,
    rounds: Annotated[int, typer.Option(min=1, help="Steps to take and attack; about 5 CPU seconds each.")] = 10,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for scripts.")] = False,
) -> None:
    """Attack a plan's privacy: who of several hundred canary patients was trained on?

    Trains on a copy in memory, with the real mechanism, and plays the worst server. What the attack proves is a
    lower bound on epsilon, at 99.9 % confidence; it must stay below what the accountant says for the same steps. Above
    it the protection is broken: exit status 1. Nothing is charged, nothing leaves.

    Example: `fedscan audit privacy my-job --store STORE --site a`
    """
    import torch

    from ctslices.store import StoreError
    from fedscan.evaluation import privacy_audit
    from fedscan.federation import job_folder
    from fedscan.federation.findings import JobError
    from fedscan.training.data import DataError

    torch.set_num_threads(1)
    try:
        plan = job_folder.read_plan(job)
        if plan.privacy is None:
            fail("the plan has no privacy: there is nothing to audit")
        name = site or next(iter(plan.privacy.sites))
        if name not in plan.privacy.sites or (site is None and len(plan.privacy.sites) > 1):
            fail(f"--site must be one of {', '.join(plan.privacy.sites)}, got {site}")
        result = privacy_audit.audit(
            plan,
            privacy_audit.some_patients(_data(store, plan), patients),
            _start(job, plan),
            sampling=plan.privacy.sites[name],
            canaries=canaries,
            rounds=rounds,
            say=lambda text: typer.echo(text, err=True),
        )
    except JobError as error:
        fail("; ".join(f"{f.where}: {f.text}" for f in error.findings))
    except (StoreError, DataError, privacy_audit.AuditError) as error:
        fail(str(error))
    if as_json:
        print_json(result.as_dict())
    else:
        typer.echo(
            f"{result.guesses.correct} of {result.guesses.made} guesses about {canaries} canaries were right.\n"
            f"attack: epsilon is at least {result.epsilon_lower_bound:.3f} ({result.confidence:.1%} confidence)\n"
            f"claim:  epsilon is at most {result.epsilon:.3f} at delta {result.delta:g}, for the same {rounds} steps\n"
            + ("the claim holds against this attack" if result.holds else "THE CLAIM IS BROKEN: stop, and report it")
        )
    if not result.holds:
        raise typer.Exit(1)


def _data(store: Path, plan: Plan) -> TrainingSet:
    from ctslices.store import SliceStore
    from fedscan.training.data import TrainingSet

    return TrainingSet.from_store(SliceStore.open(store), plan)


def _start(job: Path, plan: Plan) -> Weights:
    from fedscan.federation import job_folder
    from fedscan.training.model_file import load_model
    from fedscan.training.weights import initial_weights

    if plan.init_sha256 is None:
        return initial_weights(plan)
    source = job_folder.remembered_init(job)
    if source is None:
        fail(f"the plan starts from model {plan.init_sha256[:12]}, whose file is not known: make the job with --init")
    model = load_model(source)
    if model.sha256 != plan.init_sha256:
        fail(f"{source} is model {model.sha256[:12]}, the plan starts from {plan.init_sha256[:12]}")
    return model.weights
