"""The demo's training: a public start of phantoms, the two jobs, and their runs through NVFlare."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from fedscan.cli.demo_steps import MODEL, START, Demo, DemoError, one_thread

if TYPE_CHECKING:
    from fedscan.federation.local_run import Progress
    from fedscan.plan import Plan


def make_start(demo: Demo) -> str:
    """demo/start: a model trained on phantoms of a scanner that no hospital has, without disease."""
    from fedscan.federation import job_folder
    from fedscan.training import public_start

    one_thread()
    settings = demo.settings
    plan = job_folder.plan_of_network(demo.private_template)
    said = 0

    def say(text: str) -> None:
        nonlocal said
        said += 1
        demo.progress.update(said / (settings.start_steps / public_start.STEPS_A_ROUND + 2), text)

    model = demo.out / START
    model.parent.mkdir(exist_ok=True)
    work = model.with_name("work")
    public_start.make(
        plan, model, work, steps=settings.start_steps, seed=settings.seed, slices=settings.start_slices, say=say
    )
    shutil.rmtree(work)
    return f"{settings.start_steps} steps on {settings.start_slices} slices of healthy phantoms"


def make_jobs(demo: Demo) -> str:
    """demo/job and demo/job-private: the templates with the demo's settings, both from the public start."""
    from fedscan.federation import job_check, job_folder

    settings, start = demo.settings, demo.out / START
    plain, private = demo.out / "job", demo.out / "job-private"
    if not plain.exists():
        job_folder.new(demo.template, plain, settings.plan, demo.hospitals, start)
    if not private.exists():
        declared = dict.fromkeys(demo.hospitals, settings.declared_patients)
        job_folder.new(
            demo.private_template,
            private,
            settings.private_plan,
            init=start,
            patients=declared,
            sample_rate=settings.sample_rate,
        )
    for job in (plain, private):
        if errors := [f for f in job_check.check(job, demo.stores, None) if f.level == "error"]:
            raise DemoError(f"{job} is not fit to run: " + "; ".join(f.text for f in errors))
    plans = [job_folder.read_plan(job) for job in (plain, private)]
    if plans[0].model != plans[1].model:
        raise DemoError("the two jobs train different networks: their pictures could not be compared")
    return f"plans {plans[0].digest[:12]} and, under differential privacy, {plans[1].digest[:12]}"


def train(demo: Demo) -> str:
    """demo/run: the job without privacy, outside of the hospitals' policies, which refuse it: on their stores alone."""
    plan = _run(demo, "job", "run", demo.stores, no_policy=True)
    return f"{plan.rounds} rounds over {len(demo.hospitals)} sites"


def train_privately(demo: Demo) -> str:
    """demo/run-private: the job under differential privacy, each hospital under its own policy and ledger."""
    from fedscan.federation.local_run import RunError

    try:
        plan = _run(demo, "job-private", "run-private", demo.sites, no_policy=False)
    except RunError as error:
        site = next(iter(demo.sites.values()))
        raise DemoError(
            f"{error}. A round that is trained again is charged again; what is left says `fedscan budget --site "
            f"{site}`, why a hospital refused lies in {site}/state. When the budget is spent: --fresh"
        ) from error
    assert plan.privacy is not None
    return f"{plan.rounds} rounds, epsilon {plan.privacy.target_epsilon:g} at delta {plan.privacy.delta:g}"


def _run(demo: Demo, job_name: str, run_name: str, sites: Mapping[str, Path], *, no_policy: bool) -> Plan:
    """The job through NVFlare, with real processes for the server and every site."""
    from fedscan.federation import job_folder, local_run

    job, run = demo.out / job_name, demo.out / run_name
    plan = job_folder.read_plan(job)
    share = 0.0

    def tell(progress: Progress) -> None:
        nonlocal share
        record = progress.record
        reached = 0.1 if record is None or record.round is None else 0.1 + 0.85 * (record.round + 1) / plan.rounds
        share = max(reached, share)
        demo.progress.update(share, progress.text)

    if (run / local_run.RUN_FILE).exists():
        local_run.resume(run, tell)
    else:
        shutil.rmtree(run, ignore_errors=True)
        local_run.run(job, sites, run, listen=tell, no_policy=no_policy)
    if not (run / MODEL).is_file():
        raise DemoError(f"{run} ended without {MODEL}: the same command goes on")
    return plan
