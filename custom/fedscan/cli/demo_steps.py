"""How `fedscan demo` goes: each step leaves whole files, is skipped once it is done, and goes on where it stopped."""

from __future__ import annotations

import dataclasses
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

STATE = "steps.json"
PRIVATE_TEMPLATE = "ct_fedavg_dp"
START, MODEL = "start/model.safetensors", "model.safetensors"
RUNS = ("run", "run-private")
PICTURES = ("synthetic-start", "synthetic-private", "synthetic")
JOBS = ("job", "job.init.json", "job-private", "job-private.init.json")
OWN = ("exports", "stores", "start", "sites", *JOBS, *RUNS, *PICTURES, "report.html", STATE)
"""All that a demo writes into its folder; the state, which says that it is a demo's, is removed last."""


class DemoError(RuntimeError):
    """The demo cannot go on; the text says why and what to do."""


@dataclass(frozen=True)
class Settings:
    """What decides a demo. A plan is its template's with `plan` or `private_plan` set on top; both have one network."""

    patients: tuple[int, ...] = (26, 22, 24)
    """Phantom patients of each hospital, in the order of `ctslices.phantom.PROFILES`."""
    seed: int = 20
    every_mm: float = 9.0
    start_steps: int = 500
    start_slices: int = 800
    plan: tuple[str, ...] = (
        "name=ct-fedavg-demo",
        "model.preset=tiny",
        "rounds=10",
        "training.local_epochs=null",
        "training.local_steps=40",
        "training.batch_size=16",
        "training.learning_rate=0.002",
        "training.decay=cosine",
        "ema.half_life_rounds=1.0",
    )
    private_plan: tuple[str, ...] = (
        "name=ct-fedavg-dp-demo",
        "model.preset=tiny",
        "rounds=4",
        "training.local_steps=2",
        "training.learning_rate=0.001",
        "training.warmup_steps=0",
        "training.decay=constant",
        "ema.half_life_rounds=0.5",
        "privacy.target_epsilon=8.0",
        "privacy.delta=0.001",
        "privacy.slices_per_patient=8",
        "privacy.noise_draws_per_slice=2",
        "privacy.answer_after_s=25.0",
    )
    declared_patients: int = 16
    """What each hospital says in public of its number: round, and not its exact one."""
    sample_rate: float = 1.0
    """So few patients take few steps, of all of them: nothing would be gained by drawing."""
    policy: tuple[str, ...] = ("max_epsilon=12.0", "max_delta=0.001", "min_patients=10", "max_rounds=20")
    """Of every hospital; the rest is a new site's. Above the plan's epsilon: a round that a stop spoilt is charged."""
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

    @property
    def sites(self) -> dict[str, Path]:
        """Site: the folder of its site.json."""
        return {name: self.out / "sites" / name for name in self.hospitals}

    @property
    def private_template(self) -> Path:
        """Of the job under differential privacy: it lies beside the other."""
        return self.template.with_name(PRIVATE_TEMPLATE)


@dataclass(frozen=True)
class Step:
    """One step: `work` returns what to say of it; `yields` is what must be there once it is done."""

    key: str
    title: str
    usual_s: float
    """On two quiet cores."""
    yields: str
    work: Callable[[Demo], str]


def one_thread() -> None:
    """A small network gains little by two threads, and loses tenfold where other processes share the cores."""
    import torch

    torch.set_num_threads(1)


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


def clear(out: Path) -> None:
    """Removes what a demo wrote into `out`, and nothing else; ends processes that a killed demo left."""
    from fedscan.federation import processes

    for run in RUNS:
        if (out / run).exists():
            processes.stop_all(out / run)
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
