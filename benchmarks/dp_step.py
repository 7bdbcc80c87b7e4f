"""A private training step beside the same step without privacy: CPU time and memory.

`python benchmarks/dp_step.py` measures the cases that docs/results/dp-step.json does not hold yet and rewrites
dp-step.md (all: about 40 minutes of one quiet core); name cases to measure them again; `--steps 3` for a first look.
Both steps are the product's own (`training.local`, `training.private_round`), from int16 slices to the optimiser's
step. They take turns within one run, each in a thread of its own that waits while another works.
"""

from __future__ import annotations

import json
import os
import secrets
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import numpy as np
import torch
import typer
from torch import Tensor

from fedscan.plan import ModelPlan, Plan, TrainingPlan
from fedscan.privacy.event import round_event
from fedscan.privacy.gradients import PatientGradients
from fedscan.privacy.ledger import Charge, Ledger
from fedscan.privacy.noise import ReproducibleNoise, SecureNoise
from fedscan.privacy_plan import PrivacyPlan, SiteSampling
from fedscan.training.data import TrainingSet
from fedscan.training.local import LocalTrainer
from fedscan.training.private_round import PrivateTrainer
from fedscan.training.trainer_client import CHILD_ENVIRONMENT
from fedscan.training.weights import initial_weights

OUT = Path(__file__).resolve().parent.parent / "docs" / "results"
SITE = "benchmark"
WARM_UP_STEPS = 2
SIZE = 64
PLAIN, PRIVATE, SECURE, LOOP, HOOKS = "plain", "private", "secure noise, ledger", "loop engine", "Opacus' hooks"
PLAIN_CONTIGUOUS = "plain, weights in memory as in the private step"

AfterAStep = Callable[[], None]


@dataclass(frozen=True)
class Case:
    preset: Literal["tiny", "small", "medium"]
    fold: Literal[1, 2]
    precision: Literal["fp32", "bf16"]
    patients: int
    rows: int
    """Of each patient."""
    private_target: float | None = None
    """Most that the private step may take, in plain steps."""
    secure_target: float | None = None
    hooks: bool = False

    @property
    def name(self) -> str:
        return f"{self.preset}-{self.fold}-{self.precision}-{self.patients}x{self.rows}"


CASES = [
    *(Case("small", 1, p, 8, 4, 1.10, 1.25, hooks=p == "fp32") for p in ("fp32", "bf16")),  # type: ignore[arg-type]
    *(Case("small", 2, p, 8, 4, 1.15, 1.30, hooks=p == "fp32") for p in ("fp32", "bf16")),  # type: ignore[arg-type]
    *(Case("medium", 1, p, 8, 4, 1.10, 1.25) for p in ("fp32", "bf16")),  # type: ignore[arg-type]
    *(Case("medium", 2, p, 8, 4, 1.10, 1.30) for p in ("fp32", "bf16")),  # type: ignore[arg-type]
    *(Case("tiny", 2, p, 8, 4, None, 1.30) for p in ("fp32", "bf16")),  # type: ignore[arg-type]
    *(Case("tiny", 2, p, 32, 1) for p in ("fp32", "bf16")),  # type: ignore[arg-type]
]
MEMORY_PATIENTS = (1, 4, 8, 16, 32)
"""Of 32 rows in all."""


class TorchNoise(ReproducibleNoise):
    """torch's own generator: the cheapest noise, and no protection at all."""

    def normal(self, n: int) -> Tensor:
        return torch.randn(n).double()


class Seconds(NamedTuple):
    """CPU seconds of a step."""

    process: float
    """Of all threads: with the one that makes noise ahead."""
    thread: float
    """Of the thread that trains."""


class Turn:
    """A loop in a thread of its own that goes on by one step at a time."""

    def __init__(self, loop: Callable[[AfterAStep], None]) -> None:
        self._go, self._done = threading.Semaphore(0), threading.Semaphore(0)
        self._error: BaseException | None = None
        self._started = self._own = 0.0
        self._thread = threading.Thread(target=self._run, args=(loop,), daemon=True)
        self._thread.start()

    def step(self) -> Seconds:
        """What the next step took."""
        before = time.process_time()
        self._go.release()
        self._done.acquire()
        if self._error is not None:
            raise self._error
        return Seconds(time.process_time() - before, self._own)

    def finish(self) -> None:
        self._go.release()
        self._thread.join()

    def _run(self, loop: Callable[[AfterAStep], None]) -> None:
        self._go.acquire()
        self._started = time.thread_time()
        try:
            loop(self._after_a_step)
        except BaseException as error:  # noqa: BLE001 - it is raised again in the thread that measures
            self._error = error
            self._done.release()

    def _after_a_step(self) -> None:
        self._own = time.thread_time() - self._started
        self._done.release()
        self._go.acquire()
        self._started = time.thread_time()


def plans(case: Case, steps: int) -> tuple[Plan, Plan]:
    """The plain plan and the private one, in which every patient is drawn in every step."""
    model = ModelPlan(preset=case.preset, fold=case.fold, size=SIZE)
    training = TrainingPlan(local_steps=steps, batch_size=case.patients * case.rows, precision=case.precision)
    privacy = PrivacyPlan(
        noise_multiplier=1.0,
        delta=1e-5,
        sites={SITE: SiteSampling(sample_rate=1.0, expected_patients_per_step=float(case.patients))},
        slices_per_patient=case.rows,
        from_scratch=True,
    )
    plain = Plan(model=model, training=training, rounds=1)
    return plain, Plan(model=model, training=training, rounds=1, privacy=privacy, weighting="uniform")


def data_of(case: Case) -> TrainingSet:
    count = case.patients * max(case.rows, 4)
    hu = np.random.default_rng(0).integers(-1000, 1000, (count, SIZE, SIZE)).astype(np.int16)
    patient = np.arange(count, dtype=np.int32) % case.patients
    pseudonyms = tuple(f"patient{i}" for i in range(case.patients))
    return TrainingSet(hu, "full", None, np.sort(patient), "patient", pseudonyms=pseudonyms)


def private_trainer(case: Case, plan: Plan, engine: Literal["kernels", "loop"] = "kernels") -> PrivateTrainer:
    trainer = PrivateTrainer(plan, data_of(case), SITE, allow_reproducible=True)
    if engine == "loop":
        trainer._gradients = PatientGradients(trainer._gradients.remove(), engine="loop")
    return trainer


def contenders(case: Case, steps: int, folder: Path) -> dict[str, Turn]:
    plain_plan, plan = plans(case, steps)
    weights = initial_weights(plain_plan)

    def plain(contiguous: bool) -> Callable[[AfterAStep], None]:
        trainer = LocalTrainer(plain_plan, data_of(case), SITE)
        for parameter in trainer.network.parameters() if contiguous else ():
            parameter.data = parameter.data.contiguous()
        return lambda after: void(trainer.round(weights, 0, progress=lambda _: after()))

    def private(engine: Literal["kernels", "loop"]) -> Callable[[AfterAStep], None]:
        trainer = private_trainer(case, plan, engine)
        return lambda after: void(trainer.round(weights, 0, None, TorchNoise(0), lambda _: after()))

    def secure(after: AfterAStep) -> None:
        ledger = Ledger.create(folder / "ledger", secrets.token_bytes(32), folder / "anchor")
        charge = Charge(secrets.token_hex(16), plan.digest, 0, "0" * 64, round_event(plan, SITE), frozenset({"a"}))

        def charge_and_after() -> None:
            ledger.reserve(charge)
            after()

        private_trainer(case, plan).round(weights, 0, None, SecureNoise(), lambda _: charge_and_after())

    loops = {PLAIN: plain(False), PRIVATE: private("kernels"), SECURE: secure, LOOP: private("loop")}
    if case.precision == "fp32" and case.fold > 1:
        loops[PLAIN_CONTIGUOUS] = plain(True)
    if case.hooks:
        loops[HOOKS] = lambda after: hooks(case, plain_plan, steps, after)
    return {name: Turn(loop) for name, loop in loops.items()}


def void(_: object) -> None:
    return None


def hooks(case: Case, plan: Plan, steps: int, after: AfterAStep) -> None:
    """Opacus as it comes: gradients by slice (it knows no patients), clipped by slice, noise of torch's generator."""
    from opacus.grad_sample import GradSampleModule
    from opacus.optimizers import DPOptimizer

    trainer = LocalTrainer(plan, data_of(case), SITE)
    wrapped = GradSampleModule(trainer.network, loss_reduction="mean")
    count = case.patients * case.rows
    inner = torch.optim.AdamW(trainer.network.parameters(), lr=1e-3, fused=True)
    optimiser = DPOptimizer(inner, noise_multiplier=1.0, max_grad_norm=0.1, expected_batch_size=count)
    for _ in range(steps):
        x0, _labels = trainer.data.batch(torch.arange(count))
        t, noise = torch.randint(1000, (count,)), torch.randn(x0.shape)
        trainer.losses(wrapped, x0, t, noise, None).mean().backward()
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        after()


def measure(case: Case, steps: int) -> dict[str, dict[str, list[float]]]:
    """CPU seconds of each step by contender and measure (`Seconds`); the first two of each are not counted."""
    with tempfile.TemporaryDirectory() as folder:
        turns = contenders(case, steps + WARM_UP_STEPS, Path(folder))
        seconds: dict[str, list[Seconds]] = {name: [] for name in turns}
        for _ in range(steps + WARM_UP_STEPS):
            for name, turn in turns.items():
                seconds[name].append(turn.step())
        for turn in turns.values():
            turn.finish()
    return {
        name: {field: [getattr(step, field) for step in steps[WARM_UP_STEPS:]] for field in Seconds._fields}
        for name, steps in seconds.items()
    }


def peak_mb(preset: Literal["tiny", "small", "medium"], patients: int, which: str) -> float:
    """Peak resident MB of this process after two steps of 32 rows; to be called in a process of its own."""
    case = Case(preset, 2, "fp32", patients, 32 // patients)
    plain_plan, plan = plans(case, 2)
    weights = initial_weights(plain_plan)
    if which == PLAIN:
        LocalTrainer(plain_plan, data_of(case), SITE).round(weights, 0)
    else:
        private_trainer(case, plan, "loop" if which == LOOP else "kernels").round(weights, 0, None, TorchNoise(0))
    # not getrusage: its peak begins with that of the process that started this one
    peak = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(peak.split()[1]) / 1024


def measure_memory(preset: str) -> dict[str, Any]:
    parameters = sum(w.numel() for w in initial_weights(Plan(model=ModelPlan(preset=preset))).values())  # type: ignore[arg-type]

    def run(patients: int, which: str) -> float:
        command = [sys.executable, __file__, "--peak", f"{preset},{patients},{which}"]
        # glibc's own settings: what is freed is given back, so that the peak is what is needed at once
        environment = {k: v for k, v in os.environ.items() if k not in CHILD_ENVIRONMENT}
        return float(subprocess.run(command, check=True, capture_output=True, text=True, env=environment).stdout)

    return {
        "parameters": parameters,
        PLAIN: run(8, PLAIN),
        LOOP: run(8, LOOP),
        PRIVATE: {str(patients): run(patients, PRIVATE) for patients in MEMORY_PATIENTS},
    }


def page(record: dict[str, Any]) -> str:
    from training import cpu_name

    lines = [
        "# A private step beside a plain one",
        "",
        f"`python benchmarks/dp_step.py`; {cpu_name()}, one thread, torch {torch.__version__}.",
        "CPU seconds a step, medians of steps that took turns in one run (smallest..largest in brackets), under the "
        "trainer child's malloc settings; then medians in plain steps, with their targets in brackets. Slices of 64 "
        "pixels, a batch of 32 rows: so many patients times so many slices each.",
        "",
        "- plain: `training.local`; private: `training.private_round`; both from int16 slices to the optimiser's step.",
        "- private: gradients by patient, clipping and its assertion, noise of torch's generator (protects nobody). "
        "Batches have one shape, here the 32 rows of the 8 patients. At a site the last batch of a draw is filled up, "
        "which comes on top: half a batch on average; one has 32 rows, or those of an eighth of the expected patients.",
        f"- {SECURE}: ChaCha20 noise made ahead in a second thread, and a ledger entry, fsynced, with each step (the "
        "product makes one a round). First the time of the thread that trains, then of both threads, which is what "
        "counts where no second core is free.",
        f"- {LOOP}: one forward and backward a patient. {HOOKS}: as they come, by slice and not by patient: another, "
        "far weaker guarantee.",
        "- same layout: the private step against the plain one without channels-last weights, which the plain step has "
        "at fold 2 in fp32 alone and the private one cannot use.",
        "",
        "| preset | fold | precision | patients x slices | plain s | private | same layout "
        f"| {SECURE} | both threads | {LOOP} | {HOOKS} |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
        *(_row(case, record["steps"][case.name]) for case in CASES if case.name in record["steps"]),
        "",
        "Where a step is short beside its gradients the ratio stays above its target: medium at fold 2 writes 8 x"
        " 10.9 M values, reads them twice (norms, then the clipped sum) and adds noise to 10.9 M sums, in float64"
        " so that no patient's rounding hangs on another's. Of its bf16 step 135 of 1148 ms were the optimiser's "
        "(36 of them torch's noise; plain AdamW 7 of 876), 128 more in the backward (grouped weight gradients at "
        "8 x 8 pixels are as much writing as arithmetic), 17 more in the forward. Tried besides: sums in float32 "
        "(a quarter of the time, and rounding that grows with the drawn), products over unfolded pictures instead"
        " of grouped convolutions (bf16 a third faster at 8 x 8 in an order that then has to be turned round, "
        "fp32 half as fast), smaller and larger blocks.",
        "",
        *_memory_page(record.get("memory", {})),
    ]
    return "\n".join(lines) + "\n"


def _row(case: Case, seconds: dict[str, dict[str, list[float]]]) -> str:
    plain = seconds[PLAIN]["process"]

    def ratio(name: str, measure: str = "process", target: float | None = None, against: str = PLAIN) -> str:
        if name not in seconds or against not in seconds:
            return "-"
        value = statistics.median(seconds[name][measure]) / statistics.median(seconds[against]["process"])
        return f"**{value:.2f}** ({target:.2f})" if target else f"{value:.2f}"

    return (
        f"| {case.preset} | {case.fold} | {case.precision} | {case.patients} x {case.rows} | {_spread(plain)} | "
        f"{ratio(PRIVATE, target=case.private_target)} | {ratio(PRIVATE, against=PLAIN_CONTIGUOUS)} | "
        f"{ratio(SECURE, 'thread', case.secure_target)} | {ratio(SECURE)} | {ratio(LOOP)} | {ratio(HOOKS)} |"
    )


def _spread(seconds: list[float]) -> str:
    return f"{statistics.median(seconds):.3f} ({min(seconds):.3f}..{max(seconds):.3f})"


def _memory_page(memory: dict[str, Any]) -> list[str]:
    lines = [
        "## Memory",
        "",
        "Peak resident MB of a process that takes two steps of 32 rows at fold 2 in fp32, by the number of patients "
        "that the rows belong to; beside each, what is above the process with one patient, and the float32 gradients "
        "of the further patients (patients x parameters x 4 bytes), which bound it. All begin with what a process "
        "needs to start and check itself, so that a few patients more can cost nothing.",
        "",
        "| preset | parameters | plain | loop engine, 8 patients | patients | private | above one | gradients |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for preset, result in memory.items():
        one = result[PRIVATE]["1"]
        for patients, peak in result[PRIVATE].items():
            gradients = (int(patients) - 1) * result["parameters"] * 4 / 2**20
            lines.append(
                f"| {preset} | {result['parameters']:,} | {result[PLAIN]:.0f} | {result[LOOP]:.0f} | {patients} | "
                f"{peak:.0f} | {peak - one:.0f} | {gradients:.0f} |"
            )
    return lines


def main(
    names: Annotated[list[str] | None, typer.Argument(help="Cases, or memory; none: those without a result.")] = None,
    out: Annotated[Path, typer.Option(help="Folder for dp-step.md and dp-step.json.")] = OUT,
    steps: Annotated[int, typer.Option(help="Steps that count, of each contender.")] = 9,
    peak: Annotated[str | None, typer.Option(hidden=True)] = None,
) -> None:
    """Measures case by case; a case's result is kept as soon as it is there."""
    if peak is not None:
        torch.set_num_threads(1)
        preset, patients, which = peak.split(",")
        typer.echo(peak_mb(preset, int(patients), which))  # type: ignore[arg-type]
        return
    if any(os.environ.get(name) != value for name, value in CHILD_ENVIRONMENT.items()):  # malloc reads them at start
        environment = os.environ | CHILD_ENVIRONMENT | {"OMP_NUM_THREADS": "1"}
        os.execve(sys.executable, [sys.executable, *sys.argv], environment)
    torch.set_num_threads(1)
    out.mkdir(parents=True, exist_ok=True)
    file = out / "dp-step.json"
    record = json.loads(file.read_text()) if file.exists() else {"steps": {}, "memory": {}, "cases": {}}
    for case in CASES:
        if case.name in names if names else case.name not in record["steps"]:
            record["steps"][case.name] = measure(case, steps)
            record["cases"][case.name] = asdict(case)
            typer.echo(_row(case, record["steps"][case.name]))
            _keep(record, file)
    for preset in ("small", "medium"):
        if f"memory-{preset}" in names if names else preset not in record["memory"]:
            record["memory"][preset] = measure_memory(preset)
            _keep(record, file)
    typer.echo(page(record))


def _keep(record: dict[str, Any], file: Path) -> None:
    file.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    file.with_suffix(".md").write_text(page(record), encoding="utf-8")


if __name__ == "__main__":
    typer.run(main)
