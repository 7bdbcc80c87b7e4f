"""A training step beside diffusers' UNet2DModel of as many parameters: same slices, same precision, one run.

`python benchmarks/training.py` (about 4 minutes of one core) writes docs/results/training.md and training.json.
Our step is the product's own (`training.local`, from int16 slices to the optimiser's step), timed between its progress
calls; theirs runs in between: their scheduler's noising, their network, the same weighted loss, clip and fused AdamW.
"""

from __future__ import annotations

import json
import os
import platform
import statistics
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
import typer

from fedscan.diffusion.network import autocast, resolve_precision
from fedscan.plan import ModelPlan, Plan, TrainingPlan
from fedscan.training.data import TrainingSet
from fedscan.training.local import LocalTrainer, Progress
from fedscan.training.trainer_client import CHILD_ENVIRONMENT
from fedscan.training.weights import initial_weights

Precision = Literal["fp32", "bf16"]
OURS_FP32, OURS_BF16, BF16_GAIN = 1.10, 1.0, 1.3
"""Targets: at most so many times their step; bf16 at least so many times faster than fp32."""
OUT = Path(__file__).resolve().parent.parent / "docs" / "results"


@dataclass(frozen=True)
class Case:
    preset: Literal["tiny", "small", "medium"]
    fold: Literal[1, 2]
    precision: Precision
    batch: int
    steps: int
    compare: bool


@dataclass(frozen=True)
class Result:
    case: Case
    parameters: int
    ours_s: list[float]
    theirs_parameters: int | None
    theirs_s: list[float]

    @property
    def ratio(self) -> float | None:
        return statistics.median(self.ours_s) / statistics.median(self.theirs_s) if self.theirs_s else None


class Theirs:
    """diffusers' network and scheduler in the loop of its own training example, with the fused optimiser."""

    def __init__(self, plan: Plan, data: TrainingSet, precision: Precision) -> None:
        from diffusers import DDPMScheduler, UNet2DModel

        unet = plan.model.arguments
        self.network = UNet2DModel(
            sample_size=plan.model.size,
            in_channels=1,
            out_channels=1,
            layers_per_block=unet.num_res_blocks,
            block_out_channels=unet.channels,
            norm_num_groups=unet.norm_num_groups,
            attention_head_dim=unet.num_head_channels,
            down_block_types=tuple("AttnDownBlock2D" if a else "DownBlock2D" for a in unet.attention_levels),
            up_block_types=tuple("AttnUpBlock2D" if a else "UpBlock2D" for a in reversed(unet.attention_levels)),
        )
        self.scheduler = DDPMScheduler(beta_schedule="squaredcos_cap_v2", prediction_type="sample")
        self.optimiser = torch.optim.AdamW(self.network.parameters(), lr=2e-3, betas=(0.9, 0.99), fused=True)
        self.slices, _ = data.batch(torch.arange(plan.training.batch_size))
        self.precision = precision

    @property
    def parameters(self) -> int:
        return sum(p.numel() for p in self.network.parameters())

    def step(self) -> None:
        noise = torch.randn_like(self.slices)
        t = torch.randint(1000, (len(self.slices),))
        noised = self.scheduler.add_noise(self.slices, noise, t)
        with autocast(self.precision):
            output = self.network(noised, t).sample
        weight = 1.0 / (1.0 - self.scheduler.alphas_cumprod[t]).clamp(min=0.05)
        loss = ((output.float() - self.slices).square().mean((1, 2, 3)) * weight).mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.network.parameters(), 1.0)
        self.optimiser.step()
        self.optimiser.zero_grad()
        loss.item()


def measure(case: Case) -> Result:
    """CPU seconds of each step, theirs right after ours; the first two of both are not counted."""
    plan = Plan(
        model=ModelPlan(preset=case.preset, fold=case.fold),
        training=TrainingPlan(
            local_epochs=None, local_steps=case.steps + 2, batch_size=case.batch, precision=case.precision
        ),
        rounds=1,
    )
    hu = np.random.default_rng(0).integers(-1000, 1000, (4 * case.batch, 64, 64)).astype(np.int16)
    data = TrainingSet(hu, "full", None, np.zeros(len(hu), np.int32), "patient")
    theirs = Theirs(plan, data, case.precision) if case.compare else None
    trainer = LocalTrainer(plan, data, "benchmark")
    ours_s: list[float] = []
    theirs_s: list[float] = []
    last = time.process_time()

    def after_a_step(_: Progress) -> None:
        nonlocal last
        ours_s.append((now := time.process_time()) - last)
        if theirs is not None:
            theirs.step()
            theirs_s.append(time.process_time() - now)
        last = time.process_time()

    weights = initial_weights(plan)
    last = time.process_time()
    trainer.round(weights, 0, progress=after_a_step)
    count = sum(w.numel() for w in weights.values())
    return Result(case, count, ours_s[2:], theirs.parameters if theirs else None, theirs_s[2:])


def cases(quick: bool) -> list[Case]:
    precisions: list[Precision] = ["fp32", *(["bf16"] if resolve_precision("auto") == "bf16" else [])]  # type: ignore[list-item]
    presets: list[tuple[Any, int, int]] = [("tiny", 32, 3 if quick else 11), ("small", 32, 3 if quick else 9)]
    if not quick:
        presets.append(("medium", 8, 5))
    return [
        Case(preset, fold, precision, batch, steps, compare=fold == 1)
        for preset, batch, steps in presets
        for fold in (1, 2)
        for precision in precisions
    ]


def page(results: list[Result]) -> str:
    lines = [
        "# A training step beside diffusers",
        "",
        f"`python benchmarks/training.py`; {cpu_name()}, one thread, torch {torch.__version__}, "
        f"diffusers {_version('diffusers')}, MONAI {_version('monai')}.",
        "CPU seconds a step, medians of alternating steps in one run (smallest..largest in brackets), slices of 64 "
        "pixels. Both ran under the trainer child's malloc settings.",
        "Ours is the whole step of `training.local`: int16 slices to [-1, 1], noise, network, loss, clip, fused AdamW. "
        "Theirs is `UNet2DModel` with the same channels, attention and groups and `DDPMScheduler`, and the same loss, "
        "clip and fused AdamW on slices that are ready.",
        "",
        "| preset | fold | parameters ours / theirs | batch | precision | ours s | theirs s | ours / theirs | target |",
        "|---|---|---|---|---|---|---|---|---|",
        *(_row(result) for result in results),
        "",
        "Fold 2 (space-to-depth) is our default; it has no counterpart there, so its rows stand alone.",
        "",
        *_gains(results),
    ]
    return "\n".join(lines) + "\n"


def _row(result: Result) -> str:
    case = result.case
    theirs = f"{result.theirs_parameters:,}" if result.theirs_parameters else "-"
    ratio = "-" if result.ratio is None else f"**{result.ratio:.2f}**"
    target = "-" if result.ratio is None else f"at most {OURS_FP32 if case.precision == 'fp32' else OURS_BF16:.2f}"
    return (
        f"| {case.preset} | {case.fold} | {result.parameters:,} / {theirs} | {case.batch} | {case.precision} | "
        f"{_spread(result.ours_s)} | {_spread(result.theirs_s)} | {ratio} | {target} |"
    )


def _spread(seconds: list[float]) -> str:
    return f"{statistics.median(seconds):.3f} ({min(seconds):.3f}..{max(seconds):.3f})" if seconds else "-"


def _gains(results: list[Result]) -> list[str]:
    lines = [
        f"bf16 over fp32, our step (target: at least {BF16_GAIN} where the processor has bf16):",
        "",
        "| preset | fold | fp32 s / bf16 s |",
        "|---|---|---|",
    ]
    medians = {(r.case.preset, r.case.fold, r.case.precision): statistics.median(r.ours_s) for r in results}
    for (preset, fold, precision), seconds in medians.items():
        if precision == "fp32":
            bf16 = medians.get((preset, fold, "bf16"))
            lines.append(f"| {preset} | {fold} | {'no bf16 here' if bf16 is None else f'**{seconds / bf16:.2f}**'} |")
    return lines


def cpu_name() -> str:
    """Of /proc/cpuinfo where there is one."""
    info = Path("/proc/cpuinfo")
    names = [line.split(":", 1)[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _version(package: str) -> str:
    from importlib.metadata import version

    return version(package)


def main(
    out: Annotated[Path, typer.Option(help="Folder for training.md and training.json.")] = OUT,
    quick: Annotated[bool, typer.Option(help="Three steps of tiny and small: does it run?")] = False,
) -> None:
    """Measures, prints the table and writes it."""
    if any(os.environ.get(name) != value for name, value in CHILD_ENVIRONMENT.items()):  # malloc reads them at start
        os.execve(
            sys.executable, [sys.executable, *sys.argv], os.environ | CHILD_ENVIRONMENT | {"OMP_NUM_THREADS": "1"}
        )
    torch.set_num_threads(1)
    results = []
    for case in cases(quick):
        results.append(measure(case))
        typer.echo(_row(results[-1]))
    out.mkdir(parents=True, exist_ok=True)
    (out / "training.md").write_text(page(results), encoding="utf-8")
    record = [asdict(result) | {"ratio": result.ratio} for result in results]
    (out / "training.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    typer.echo(page(results))


if __name__ == "__main__":
    typer.run(main)
