"""The demo's steps in order, from exports to the report."""

from __future__ import annotations

from fedscan.cli.demo_hospitals import make_sites, prepare_stores, write_exports
from fedscan.cli.demo_steps import MODEL, PICTURES, START, Demo, DemoError, Step, one_thread
from fedscan.cli.demo_training import make_jobs, make_start, train, train_privately


def draw(demo: Demo) -> str:
    """demo/synthetic, synthetic-private, synthetic-start: npz with `hu` int16 [count, 64, 64], and PNG. One seed."""
    from fedscan.diffusion.samplers import Settings as Sampling
    from fedscan.release.generate import generate

    one_thread()
    models = (START, f"run-private/{MODEL}", f"run/{MODEL}")
    for number, (model, folder) in enumerate(zip(models, PICTURES, strict=True)):
        if (demo.out / folder).exists():
            continue

        def tell_progress(done: int, total: int, before: int = number, name: str = folder) -> None:
            demo.progress.update((before + done / total) / len(models), f"{name}, {done} of {total} evaluations")

        generate(
            demo.out / model,
            demo.out / folder,
            demo.settings.count,
            ("npz", "png"),
            seed=demo.settings.sampling_seed,
            settings=Sampling(steps=demo.settings.sampling_steps),
            progress=tell_progress,
        )
    return f"{demo.settings.count} slices of each of {len(models)} models"


def tell(demo: Demo) -> str:
    """demo/report.html, from the files of the steps before."""
    from fedscan.cli.demo_facts import gather
    from fedscan.cli.report import write_report

    one_thread()
    facts = gather(demo.out, demo.hospitals, demo.state.seconds)
    demo.progress.update(0.7, "writing")
    write_report(facts, demo.out / "report.html")
    share = 100 * facts.chest.two_lungs_share
    return (
        f"two lungs in {share:.0f}% of {facts.chest.slices} slices, air {facts.chest.air_difference_points:+.1f} points"
    )


STEPS = (
    Step("exports", "three hospitals' exports as DICOM", 12.0, "exports", write_exports),
    Step("stores", "slice stores", 15.0, "stores", prepare_stores),
    Step("start", "a public start, of phantoms alone", 60.0, START, make_start),
    Step("sites", "each hospital's ledger and policy", 1.0, "sites", make_sites),
    Step("job", "the jobs", 4.0, "job-private/meta.json", make_jobs),
    Step("run", "federated training", 100.0, f"run/{MODEL}", train),
    Step("run-private", "under differential privacy", 90.0, f"run-private/{MODEL}", train_privately),
    Step("synthetic", "synthetic slices", 15.0, "synthetic/slices.npz", draw),
    Step("report", "the report", 15.0, "report.html", tell),
)


def failures() -> tuple[type[Exception], ...]:
    """What the steps raise where the machine or the folder is at fault; each text says what to do."""
    from ctslices.prepare import PrepareError
    from ctslices.store import StoreError
    from fedscan.federation.findings import JobError
    from fedscan.federation.local_run import RunError
    from fedscan.privacy.ledger import LedgerError
    from fedscan.privacy.site_file import SiteError
    from fedscan.release.generate import GenerateError
    from fedscan.training.model_file import ModelFileError

    ours = (DemoError, PrepareError, StoreError, JobError, RunError, GenerateError, ModelFileError)
    return (*ours, LedgerError, SiteError, OSError)
