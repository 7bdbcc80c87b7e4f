"""Samplers on one trained network: FD-lite112 and processor time of DDPM with every step, and of the others with few.

    python benchmarks/sampling.py --data ../shared/data --out docs/results

Trains the tiny preset on the CT pictures in DATA/sars_cov_2_ct (about a minute of one core; only figures are kept),
then draws `--count` slices with each sampler and each seed, the samplers taking turns within a seed. A row that is in
WORK/rows.jsonl is not drawn again, so that a stopped run goes on.
"""

from __future__ import annotations

import argparse
import csv
import json
import platform
import re
import statistics
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from PIL import Image
from torch import Tensor

from fedscan.diffusion.network import DiffusionNetwork, build_network, resolve_precision
from fedscan.diffusion.process import loss_per_slice
from fedscan.diffusion.samplers import Settings, sample, slice_generator
from fedscan.diffusion.schedule import Schedule
from fedscan.evaluation.features import FeatureExtractor, extract
from fedscan.evaluation.frechet import FeatureSums, floor, frechet_distance, kernel_distance
from fedscan.plan import DiffusionPlan, ModelPlan

SAMPLERS = {
    "ddpm 1000, posterior": Settings(sampler="ddpm"),
    "sa_solver 20": Settings(sampler="sa_solver", steps=20),
    "sa_solver 25": Settings(sampler="sa_solver", steps=25),
    "sa_solver 30": Settings(sampler="sa_solver", steps=30),
    "dpmpp 25": Settings(sampler="dpmpp", steps=25),
    "ddim 25": Settings(sampler="ddim", steps=25),
    "ddim 50": Settings(sampler="ddim", steps=50),
    "ddim 25, eta 1": Settings(sampler="ddim", steps=25, eta=1.0),
    "ddpm 25, beta": Settings(sampler="ddpm", steps=25, variance="beta"),
}
GAUSSIANS = [(-1.0, 0.5), (-0.5, 0.2), (0.0, 1.0), (0.3, 0.1)]
ANALYTIC_PIXELS = 8 * 128 * 128
BLOCK = 25
BATCH = 50
TRAIN_BATCH = 32
LEARNING_RATE = 2e-3
WARMUP = 50
EMA_HALF_LIFE = 50


@dataclass(frozen=True)
class Bench:
    """What all rows share."""

    network: DiffusionNetwork
    schedule: Schedule
    diffusion: DiffusionPlan
    real: Tensor
    extractor: FeatureExtractor
    count: int


def pictures(root: Path) -> tuple[Tensor, list[int]]:
    """float32 [n, 1, 64, 64] in [-1, 1], padded to a square; each one's block of consecutive file numbers."""
    images, blocks = [], []
    with (root / "sars_cov_2_ct" / "index.csv").open() as file:
        for row in csv.DictReader(file):
            image = Image.open(root / row["file"]).convert("L")
            side = max(image.size)
            square = Image.new("L", (side, side), 0)
            square.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
            images.append(np.asarray(square.resize((64, 64), Image.Resampling.BOX), np.float32) / 127.5 - 1.0)
            number = int(re.findall(r"\((\d+)\)", row["original_name"])[0])
            blocks.append(2 * ((number - 1) // BLOCK) + (row["class"] == "COVID"))
    return torch.from_numpy(np.stack(images))[:, None], blocks


def train(x: Tensor, diffusion: DiffusionPlan, steps: int) -> dict[str, Tensor]:
    """The averaged weights of the tiny preset after `steps`."""
    network = build_network(ModelPlan(preset="tiny"), torch.Generator().manual_seed(0))
    schedule, g = Schedule.from_plan(diffusion), torch.Generator().manual_seed(1)
    optimiser = torch.optim.AdamW(network.parameters(), LEARNING_RATE, betas=(0.9, 0.99), weight_decay=0.0, fused=True)
    average = {name: value.clone() for name, value in network.state_dict().items()}
    for step in range(steps):
        batch = x[torch.randint(len(x), (TRAIN_BATCH,), generator=g)]
        t = torch.randint(schedule.steps, (TRAIN_BATCH,), generator=g)
        noise = torch.randn(batch.shape, generator=g)
        for group in optimiser.param_groups:
            group["lr"] = LEARNING_RATE * min(1.0, (step + 1) / WARMUP)
        loss = loss_per_slice(network, schedule, diffusion, batch, t, noise, precision=resolve_precision("auto"))
        optimiser.zero_grad()
        loss.mean().backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimiser.step()
        decay = min(0.5 ** (1 / EMA_HALF_LIFE), (step + 1) / (step + 10))
        for name, value in network.state_dict().items():
            average[name].lerp_(value, 1.0 - decay)
    return average


def row_of(bench: Bench, name: str, seed: int) -> dict[str, Any]:
    """Draw, time, compare with as many real slices (the same ones in every row)."""
    began = time.process_time()
    drawn = sample(
        bench.network,
        bench.schedule,
        bench.diffusion.prediction,
        [slice_generator(seed, i) for i in range(bench.count)],
        SAMPLERS[name],
        size=64,
        precision=resolve_precision("auto"),
        batch=BATCH,
    )
    seconds = time.process_time() - began
    features = extract(bench.extractor, drawn)
    return {
        "sampler": name,
        "seed": seed,
        "n": bench.count,
        "fd_lite112": frechet_distance(FeatureSums.of(features), FeatureSums.of(bench.real)),
        "kernel_distance": kernel_distance(features, bench.real),
        "mean": float(drawn.mean()),
        "deviation": float(drawn.std()),
        "cpu_s": seconds,
    }


def analytic(name: str, settings: Settings) -> list[str]:
    """Mean and deviation drawn from each of `GAUSSIANS` by its exact denoiser, without clipping."""
    schedule = Schedule.from_plan(DiffusionPlan(schedule=name))
    cells = []
    for mean, deviation in GAUSSIANS:

        def denoise(
            x: Tensor, t: Tensor, labels: Tensor | None = None, m: float = mean, v: float = deviation**2
        ) -> Tensor:
            a = float(schedule.abar[int(t[0])])
            return m + a**0.5 * v / (a * v + 1.0 - a) * (x - a**0.5 * m)

        generators = [slice_generator(0, i) for i in range(8)]
        side = round((ANALYTIC_PIXELS / 8) ** 0.5)
        drawn = sample(denoise, schedule, "sample", generators, replace(settings, clip=False), size=side)
        cells.append(f"{float(drawn.mean()):.3f} / {float(drawn.std()):.3f}")
    return cells


def analytic_report() -> list[str]:
    """What the samplers do where the network is exact: all error is theirs."""
    lines = [
        "",
        "## Exact denoisers of Gaussian pixels",
        "",
        f"Mean / deviation that come out; {ANALYTIC_PIXELS} pixels each: the standard error of a mean is 0.003 of its "
        "deviation.",
        "",
        "| schedule | sampler | " + " | ".join(f"N({m}, {d}^2)" for m, d in GAUSSIANS) + " |",
        "|---|---|" + "---|" * len(GAUSSIANS),
    ]
    for schedule in ("cosine", "linear_beta"):
        for name, settings in {**SAMPLERS, "ddpm 1000, beta": Settings(sampler="ddpm", variance="beta")}.items():
            lines.append(f"| {schedule} | {name} | " + " | ".join(analytic(schedule, settings)) + " |")
    return lines


def report(rows: list[dict[str, Any]], facts: dict[str, Any]) -> str:
    """The page docs/results/sampling.md."""
    lines = [
        "# Samplers on one trained network",
        "",
        f"`python benchmarks/sampling.py`: preset tiny, {facts['train_steps']} steps on {facts['pictures']} pictures "
        f"(SARS-CoV-2 CT-scan, CC BY-NC-SA 4.0, figures only), {facts['precision']}, one thread; {facts['processor']}.",
        f"FD-lite112 between n={facts['count']} drawn and n={facts['count']} real slices, the same real ones in every "
        f"row; median over {len(facts['seeds'])} sampling seeds, range in brackets. Floors at that n: random halves "
        f"{facts['floor']}; blocks of neighbours apart {facts['floor_blocks']}.",
        f"Real slices: mean {facts['real_mean']:.3f}, deviation {facts['real_deviation']:.3f}. Rows may stem from "
        "several runs of the command on one network: compare CPU times roughly.",
        "",
        "| sampler | FD-lite112 | kernel distance | mean | deviation | CPU s |",
        "|---|---|---|---|---|---|",
    ]
    for name in SAMPLERS:
        mine = [row for row in rows if row["sampler"] == name]
        if not mine:
            continue
        value = {key: statistics.median(row[key] for row in mine) for key in mine[0] if key not in ("sampler", "seed")}
        low, high = (pick(row["fd_lite112"] for row in mine) for pick in (min, max))
        lines.append(
            f"| {name} | {value['fd_lite112']:.0f} ({low:.0f}-{high:.0f}) | {value['kernel_distance']:.0f} "
            f"| {value['mean']:.3f} | {value['deviation']:.3f} | {value['cpu_s']:.1f} |"
        )
    return "\n".join([*lines, *analytic_report(), ""])


def main() -> None:
    """Train once, then every sampler with every seed; write the page and the rows."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--work", type=Path, default=Path("build/sampling"))
    parser.add_argument("--out", type=Path, default=Path("docs/results"))
    parser.add_argument("--count", type=int, default=400)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--train-steps", type=int, default=600)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    arguments.work.mkdir(parents=True, exist_ok=True)
    x, blocks = pictures(arguments.data)
    diffusion = DiffusionPlan()
    weights = arguments.work / f"tiny-{arguments.train_steps}.safetensors"
    if not weights.exists():
        safetensors.torch.save_file(train(x, diffusion, arguments.train_steps), weights)
    network = build_network(ModelPlan(preset="tiny"), torch.Generator())
    network.load_state_dict(safetensors.torch.load_file(weights))
    extractor = FeatureExtractor()
    features = extract(extractor, x)
    compared = torch.randperm(len(x), generator=torch.Generator().manual_seed(9))[: arguments.count]
    bench = Bench(network, Schedule.from_plan(diffusion), diffusion, features[compared], extractor, arguments.count)
    log = arguments.work / "rows.jsonl"
    rows = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
    done = {(row["sampler"], row["seed"], row["n"]) for row in rows}
    for seed in arguments.seeds:
        for name in SAMPLERS:
            if (name, seed, arguments.count) not in done:
                rows.append(row_of(bench, name, seed))
                print(json.dumps(rows[-1]), flush=True)
                with log.open("a") as file:
                    file.write(json.dumps(rows[-1]) + "\n")
    facts = {
        "train_steps": arguments.train_steps,
        "pictures": len(x),
        "precision": resolve_precision("auto"),
        "processor": f"{platform.machine()}, torch {torch.__version__}",
        "count": arguments.count,
        "seeds": arguments.seeds,
        "floor": str(floor(features, arguments.count, 0)),
        "floor_blocks": str(floor(features, arguments.count, 0, blocks)),
        "real_mean": float(x.mean()),
        "real_deviation": float(x.std()),
    }
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / "sampling.md").write_text(report(rows, facts))
    (arguments.out / "sampling.json").write_text(json.dumps({"facts": facts, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
