"""`fedscan federation demo`, step by step: kits, installation, and a job through real processes."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from fedscan.cli.demo_hospitals import prepare_stores, write_exports
from fedscan.cli.demo_steps import MODEL, Demo, DemoError, Settings, Step, one_thread

if TYPE_CHECKING:
    from collections.abc import Callable

    from fedscan.federation.consortium import Consortium
    from fedscan.federation.local_run import Progress

CONSORTIUM, JOB, RUN, PICTURES, CACHE = "consortium", "job", "run", "synthetic", ".matplotlib"
OWN = ("exports", "stores", "sites", CONSORTIUM, JOB, f"{JOB}.init.json", RUN, PICTURES, CACHE)

SETTINGS = Settings(
    patients=(12, 11, 12),
    seed=40,
    private_plan=(
        "name=ct-fedavg-dp-federation-demo",
        "model.preset=tiny",
        "rounds=3",
        "training.local_steps=2",
        "training.learning_rate=0.001",
        "training.warmup_steps=0",
        "training.decay=constant",
        "ema.half_life_rounds=0.5",
        "privacy.target_epsilon=8.0",
        "privacy.delta=0.001",
        "privacy.slices_per_patient=4",
        "privacy.noise_draws_per_slice=1",
        "privacy.answer_after_s=25.0",
    ),
    declared_patients=8,
    policy=("max_epsilon=40.0", "max_delta=0.001", "min_patients=5", "max_rounds=20"),
    count=4,
)


def project_file() -> Path:
    """site_configs/project.yml of the checkout that this package lies in."""
    import fedscan

    return Path(fedscan.__file__).resolve().parents[2] / "site_configs" / "project.yml"


def make_kits(demo: Demo) -> str:
    """OUT/consortium: the project's kits, with its server and its sites on this machine."""
    from fedscan.federation import consortium, kits

    folder = demo.out / CONSORTIUM
    shutil.rmtree(folder, ignore_errors=True)
    description = consortium.read_project(project_file())
    copied = consortium.loopback_copy(description, demo.hospitals, kits.free_ports(1)[0])
    made = consortium.provision(folder, copied)
    return f"a server, {len(made.sites)} sites, {len(made.names('admin'))} people; root key {_root_key(made)}"


def _root_key(made: Consortium) -> str:
    return str(Path(made.description["name"]) / "state" / "cert.json")


def install_sites(demo: Demo) -> str:
    """Each site's kit gets its hospital's own part: key, ledger, policy, store."""
    from fedscan.federation import consortium, site_install
    from fedscan.privacy.site_init import policy_with

    made = consortium.Consortium.open(demo.out / CONSORTIUM)
    policy = policy_with(demo.settings.policy)
    for name, store in demo.stores.items():
        choices = site_install.Choices(store=store.absolute(), private=demo.sites[name].absolute(), policy=policy)
        site_install.install(made.kit(name), choices)
    return f"each with a budget of epsilon {policy.max_epsilon:g} at delta {policy.max_delta:g}"


def make_job(demo: Demo) -> str:
    """OUT/job: the template under differential privacy, with the demo's settings."""
    from fedscan.federation import job_folder

    declared = dict.fromkeys(demo.hospitals, demo.settings.declared_patients)
    plan = job_folder.new(
        demo.private_template,
        demo.out / JOB,
        demo.settings.private_plan,
        patients=declared,
        sample_rate=demo.settings.sample_rate,
    )
    return f"plan {plan.digest[:12]}, {plan.rounds} rounds"


def train(demo: Demo) -> str:
    """OUT/run: the job through server and sites, as a lead submits, follows and fetches it."""
    from fedscan.federation import consortium, consortium_run, federation_file, job_folder, remote_run

    made = consortium.Consortium.open(demo.out / CONSORTIUM)
    run, kit = demo.out / RUN, made.kit(made.lead)
    tell = _follower(demo, job_folder.read_plan(demo.out / JOB).rounds)
    demo.progress.update(0.02, "the server and the sites start")
    with consortium_run.running(made):
        if (run / federation_file.FILE).exists():
            judged = remote_run.resume(run, tell, until_done=True)
        else:
            shutil.rmtree(run, ignore_errors=True)
            judged = remote_run.run(demo.out / JOB, kit, run, tell, until_done=True)
    if not judged.good:
        raise DemoError(f"the run is not good: {'; '.join(judged.failings)} (see {run})")
    return f"{judged.rounds_done} rounds over {len(made.sites)} sites, submitted by {made.lead}"


def _follower(demo: Demo, rounds: int) -> Callable[[Progress], None]:
    share = 0.1

    def tell(progress: Progress) -> None:
        nonlocal share
        record = progress.record
        if record is not None and record.round is not None:
            share = max(share, 0.2 + 0.7 * (record.round + 1) / rounds)
        demo.progress.update(share, progress.text)

    return tell


def draw(demo: Demo) -> str:
    """OUT/synthetic: a few slices of the model."""
    from fedscan.diffusion.samplers import Settings as Sampling
    from fedscan.release.generate import generate

    one_thread()
    generate(
        demo.out / RUN / MODEL,
        demo.out / PICTURES,
        demo.settings.count,
        ("npz", "png"),
        seed=demo.settings.sampling_seed,
        settings=Sampling(steps=demo.settings.sampling_steps),
        progress=lambda done, total: demo.progress.update(done / total, f"{done} of {total} evaluations"),
    )
    return f"{demo.settings.count} slices"


STEPS = (
    Step("exports", "three hospitals' exports as DICOM", 8.0, "exports", write_exports),
    Step("stores", "slice stores", 10.0, "stores", prepare_stores),
    Step("kits", "kits of the consortium", 2.0, CONSORTIUM, make_kits),
    Step("sites", "each hospital installs its kit", 2.0, "sites", install_sites),
    Step("job", "a job under differential privacy", 8.0, JOB, make_job),
    Step("run", "the job through the federation", 110.0, f"{RUN}/{MODEL}", train),
    Step("synthetic", "synthetic slices", 8.0, f"{PICTURES}/slices.npz", draw),
)


def clear(out: Path) -> None:
    """Removes what this demo wrote into `out`, and nothing else; ends processes that a killed one left."""
    from fedscan.cli.demo_steps import STATE
    from fedscan.federation import processes

    processes.stop_all(out)
    for name in (*OWN, STATE):
        path = out / name
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def failures() -> tuple[type[Exception], ...]:
    """What the steps raise where the machine or the folder is at fault; each text says what to do."""
    from fedscan.cli import demo_story
    from fedscan.federation.admin import AdminError
    from fedscan.federation.consortium import ProjectError
    from fedscan.federation.kits import ProvisionError
    from fedscan.federation.site_install import InstallError

    return (*demo_story.failures(), AdminError, ProjectError, ProvisionError, InstallError)
