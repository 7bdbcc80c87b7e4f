"""The steps of `fedscan demo`: each leaves whole files, is skipped once it is done, and goes on where it stopped."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedscan.cli.demo_progress import StepProgress

if TYPE_CHECKING:
    from collections.abc import Iterator

    from fedscan.federation.local_run import Progress

STATE = "steps.json"
OWN = ("exports", "stores", "job", "run", "synthetic", "report.html", STATE)
"""All that a demo writes into its folder; the state, which says that it is a demo's, is removed last."""


class DemoError(RuntimeError):
    """The demo cannot go on; the text says why and what to do."""


@dataclass(frozen=True)
class Settings:
    """What decides a demo. The plan is the template's with `plan` set on top."""

    patients: tuple[int, ...] = (26, 22, 24)
    """Phantom patients of each hospital, in the order of `ctslices.phantom.PROFILES`."""
    seed: int = 20
    every_mm: float = 9.0
    plan: tuple[str, ...] = (
        "name=ct-fedavg-demo",
        "model.preset=small",
        "rounds=24",
        "training.local_epochs=null",
        "training.local_steps=40",
        "training.batch_size=16",
        "training.learning_rate=0.002",
        "training.decay=cosine",
        "ema.half_life_rounds=2.0",
    )
    count: int = 64
    sampling_steps: int = 25
    sampling_seed: int = 0

    def as_json(self) -> dict[str, Any]:
        """With lists for tuples, as JSON gives them back."""
        data: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(self)))
        return data


class State:
    """steps.json: the settings a demo began with, and the seconds of each step that is complete."""

    def __init__(self, out: Path, settings: Settings) -> None:
        self._path = out / STATE
        self._data: dict[str, Any] = {"settings": settings.as_json(), "seconds": {}}
        if self._path.exists():
            self._data = json.loads(self._path.read_text(encoding="utf-8"))
        if self._data["settings"] != settings.as_json():
            raise DemoError(f"{out} holds a demo with other settings: start anew with --fresh, or choose another --out")
        self._write()

    @property
    def seconds(self) -> dict[str, float]:
        """Of the steps done so far, over all attempts at each."""
        return dict(self._data["seconds"])

    def is_done(self, step: str) -> bool:
        """Whether the step was completed."""
        return step in self._data.get("done", [])

    def add(self, step: str, seconds: float, done: bool) -> None:
        """Time spent on a step, by an attempt that completed it or did not."""
        spent = self._data["seconds"]
        spent[step] = round(spent.get(step, 0.0) + seconds, 2)
        if done:
            self._data["done"] = [*self._data.get("done", []), step]
        self._write()

    def _write(self) -> None:
        partial = self._path.with_name(self._path.name + ".partial")
        with partial.open("w", encoding="utf-8") as file:
            file.write(json.dumps(self._data, indent=1) + "\n")
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, self._path)


@dataclass(frozen=True)
class Demo:
    """Where a demo lies, what it was asked, and whom it tells."""

    out: Path
    settings: Settings
    template: Path
    progress: StepProgress
    state: State

    @property
    def hospitals(self) -> tuple[str, ...]:
        """Their names, which are the sites' names."""
        from ctslices.phantom import PROFILES

        return tuple(profile.name for profile in PROFILES[: len(self.settings.patients)])

    @property
    def stores(self) -> dict[str, Path]:
        """Site: its slice store."""
        return {name: self.out / "stores" / name for name in self.hospitals}


@dataclass(frozen=True)
class Step:
    """One step: `work` returns what to say of it; `yields` is what must be there once it is done."""

    key: str
    title: str
    usual_s: float
    """On two quiet cores."""
    yields: str
    work: Callable[[Demo], str]


def write_exports(demo: Demo) -> str:
    """demo/exports/NAME: a hospital's export as its scanner writes it, with labels.csv and the mess of real ones."""
    from ctslices.phantom import PROFILES
    from ctslices.phantom_export import write_hospital_export

    everybody = sum(demo.settings.patients)
    written = 0
    for number, (profile, patients) in enumerate(zip(PROFILES, demo.settings.patients, strict=False)):

        def tell(done: int, _: int, before: int = written, name: str = profile.name) -> None:
            demo.progress.update((before + done) / everybody, f"{name}, {before + done} of {everybody} patients")

        write_hospital_export(demo.out / "exports" / profile.name, profile, patients, demo.settings.seed + number, tell)
        written += patients
    return f"{written} phantom patients in {len(demo.settings.patients)} hospitals"


def prepare_stores(demo: Demo) -> str:
    """demo/stores/NAME: each hospital's slice store; its key and rejected.jsonl lie beside it."""
    from ctslices.files import write_whole
    from ctslices.options import Options
    from ctslices.prepare import Site, prepare

    slices = 0
    (demo.out / "stores").mkdir(exist_ok=True)
    for number, name in enumerate(demo.hospitals):

        def tell(phase: str, done: int, total: int, number: int = number, name: str = name) -> None:
            phases = ("reading headers", "converting", "writing")
            inner = (phases.index(phase) + done / max(total, 1)) / 3 if phase in phases else 0.0
            demo.progress.update((number + inner) / len(demo.hospitals), f"{name}, {phase} {done}/{total}")

        # Phantoms need no secret, and a known key makes the split, and so the whole demo, the same each time.
        key = demo.out / "stores" / f"{name}.key"
        if not key.exists():
            write_whole(key, hashlib.sha256(f"fedscan demo {name}".encode()).hexdigest().encode() + b"\n", mode=0o600)
        export = demo.out / "exports" / name
        options = Options(every_mm=demo.settings.every_mm)
        slices += prepare(export, demo.stores[name], options, Site(labels=export / "labels.csv"), tell).slices
    return f"{slices} slices of 64 x 64 pixels"


def make_job(demo: Demo) -> str:
    """demo/job: the template jobs/ct_fedavg with the demo's settings."""
    from fedscan.federation import job_check, job_folder

    job = demo.out / "job"
    if not job.exists():
        job_folder.new(demo.template, job, demo.settings.plan, demo.hospitals)
    if errors := [f for f in job_check.check(job, demo.stores, None) if f.level == "error"]:
        raise DemoError("the job is not fit to run: " + "; ".join(f.text for f in errors))
    return f"plan {job_folder.read_plan(job).digest[:12]}"


def train(demo: Demo) -> str:
    """demo/run: the job through NVFlare, with real processes for the server and every site."""
    from fedscan.federation import job_folder, local_run

    run = demo.out / "run"
    rounds = job_folder.read_plan(demo.out / "job").rounds

    def tell(progress: Progress) -> None:
        record = progress.record
        reached = 0.1 if record is None or record.round is None else 0.1 + 0.85 * (record.round + 1) / rounds
        demo.progress.update(max(reached, tell_state["share"]), progress.text)
        tell_state["share"] = max(reached, tell_state["share"])

    tell_state = {"share": 0.0}
    if (run / local_run.RUN_FILE).exists():
        local_run.resume(run, tell)
    else:
        shutil.rmtree(run, ignore_errors=True)
        local_run.run(demo.out / "job", demo.stores, run, listen=tell, no_policy=True)
    return f"{rounds} rounds over {len(demo.hospitals)} sites"


def draw(demo: Demo) -> str:
    """demo/synthetic: npz with `hu` int16 [count, 64, 64], and PNG."""
    from fedscan.diffusion.samplers import Settings as Sampling
    from fedscan.release.generate import generate

    _one_thread()
    out = demo.out / "synthetic"
    generate(
        demo.out / "run" / "model.safetensors",
        out,
        demo.settings.count,
        ("npz", "png"),
        seed=demo.settings.sampling_seed,
        settings=Sampling(steps=demo.settings.sampling_steps),
        progress=lambda done, total: demo.progress.update(done / total, f"{done} of {total} evaluations"),
    )
    return f"{demo.settings.count} slices"


def tell(demo: Demo) -> str:
    """demo/report.html, from the files of the steps before."""
    from fedscan.cli.demo_facts import gather
    from fedscan.cli.report import write_report

    _one_thread()
    facts = gather(demo.out, demo.hospitals, demo.state.seconds)
    demo.progress.update(0.7, "writing")
    write_report(facts, demo.out / "report.html")
    share = 100 * facts.chest.two_lungs_share
    return (
        f"two lungs in {share:.0f}% of {facts.chest.slices} slices, air {facts.chest.air_difference_points:+.1f} points"
    )


def _one_thread() -> None:
    """A small network gains little by two threads, and loses tenfold where other processes share the cores."""
    import torch

    torch.set_num_threads(1)


STEPS = (
    Step("exports", "three hospitals' exports as DICOM", 12.0, "exports", write_exports),
    Step("stores", "slice stores", 30.0, "stores", prepare_stores),
    Step("job", "the job", 4.0, "job/meta.json", make_job),
    Step("run", "federated training", 240.0, "run/model.safetensors", train),
    Step("synthetic", "synthetic slices", 15.0, "synthetic/slices.npz", draw),
    Step("report", "the report", 10.0, "report.html", tell),
)


def run_steps(demo: Demo, steps: Sequence[Step]) -> None:
    """Each step that is not done yet, in order. Whatever stops one, the next call goes on with it."""
    for number, step in enumerate(steps):
        if demo.state.is_done(step.key) and (demo.out / step.yields).exists():
            demo.progress.skip(number)
            continue
        demo.progress.start(number)
        with _timed(demo, step):
            said = step.work(demo)
        demo.progress.done(said)


@contextmanager
def _timed(demo: Demo, step: Step) -> Iterator[None]:
    began = time.monotonic()
    done = False
    try:
        yield
        done = True
    finally:
        demo.state.add(step.key, time.monotonic() - began, done)


def failures() -> tuple[type[Exception], ...]:
    """What the steps raise where the machine or the folder is at fault; each text says what to do."""
    from ctslices.prepare import PrepareError
    from ctslices.store import StoreError
    from fedscan.federation.findings import JobError
    from fedscan.federation.local_run import RunError
    from fedscan.release.generate import GenerateError
    from fedscan.training.model_file import ModelFileError

    return (DemoError, PrepareError, StoreError, JobError, RunError, GenerateError, ModelFileError, OSError)


def clear(out: Path) -> None:
    """Removes what a demo wrote into `out`, and nothing else; ends processes that a killed demo left."""
    from fedscan.federation import processes

    if (out / "run").exists():
        processes.stop_all(out / "run")
    for name in OWN:
        path = out / name
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def locked(out: Path) -> AbstractContextManager[Any]:
    """One demo at a time in one folder. Raises DemoError for a folder of something else."""
    from filelock import FileLock

    out.mkdir(parents=True, exist_ok=True)
    strangers = sorted(p.name for p in out.iterdir() if not p.name.startswith("."))
    if strangers and not (out / STATE).exists():
        raise DemoError(f"{out} holds other things ({strangers[0]}, ...): choose another --out")
    return FileLock(out / ".lock", timeout=0)
