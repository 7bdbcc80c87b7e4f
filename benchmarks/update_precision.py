"""Bytes that an update takes on its way against the loss after equal rounds.

    fedscan warm-start jobs/ct_fedavg_dp --out START.safetensors --look pictures
    python benchmarks/update_precision.py --work WORK --start START.safetensors

Ten sites of the paper's CT pictures, preset tiny, 20 rounds of 10 steps, in process (which equals NVFlare to the bit:
tests/integration/test_local_run.py). Three seeds of each; about 4 CPU minutes a run, done once each, killed it goes on.
Figures: docs/results/update-precision.json, update-precision.md.
"""

from __future__ import annotations

import json
import statistics
from pathlib import Path
from typing import Annotated, Any
from unittest import mock

import torch
import typer
from dp_usefulness import distances, draw
from poisoned import SAMPLES, opened, plan_of
from real_ct import CASES, stores
from training import cpu_name

from fedscan.plan import Plan
from fedscan.training import in_process
from fedscan.training.data import TrainingSet
from fedscan.training.model_file import load_model
from fedscan.training.update_codec import ErrorFeedback, encode
from fedscan.training.weights import Weights

OUT = Path(__file__).resolve().parent.parent / "docs" / "results"
ARMS = ("fp32", "bf16", "int8", "int8 without error feedback")
SEEDS = (0, 1, 2)
WORDS = (
    "A quarter of the bytes cost nothing that shows: the same loss to five digits, FD-lite112 within 0.3 of "
    "float32's (seeds lie 7 apart). In so few rounds error feedback makes no difference either: with a scale a "
    "row, rounding takes less than half a percent of an update. It is kept because it bounds what is lost over "
    "any number of rounds (tests/fedscan/training/test_update_codec.py). Only updates shrink; the model goes out "
    "to sites in float32.",
)


def forgetful(self: ErrorFeedback, _round: int, update: Weights) -> Weights:
    """Encodes and forgets the rest: what error feedback is worth."""
    return encode(update, self.precision)


def run(arm: str, seed: int, start: Path, sites: dict[str, TrainingSet], data: TrainingSet) -> dict[str, Any]:
    model = load_model(start)
    base = plan_of("mean", model.sha256).model_dump()
    plan = Plan.model_validate(base | {"seed": seed, "update_precision": arm.split(maxsplit=1)[0]})
    wire = encode(model.weights, plan.update_precision)
    encoder = forgetful if arm.endswith("without error feedback") else ErrorFeedback.encode
    with mock.patch.object(ErrorFeedback, "encode", encoder):
        done = in_process.run(plan, sites, initial=model.weights)
    return {
        "bytes": sum(tensor.numel() * tensor.element_size() for tensor in wire.values()),
        "loss": round(statistics.fmean(report.loss for report in done.rounds[-5:]), 5),
        "fd_lite112": round(distances(data, draw(plan, done.weights, SAMPLES))[0], 1),
    }


def page(record: dict[str, Any]) -> str:
    lines = [
        "# Updates in fewer bytes",
        "",
        f"`python benchmarks/update_precision.py`; {record['hardware']}, torch {torch.__version__}. Ten sites of the "
        "SARS-CoV-2 CT pictures, preset tiny (0.27 M parameters), 20 rounds of 10 steps from a public "
        f"start; by seed, as far as they were run of {', '.join(map(str, SEEDS))}. Loss: "
        f"mean of the last five rounds; FD-lite112 of {SAMPLES} slices.",
        "",
        "| update_precision | bytes a site and round | loss | FD-lite112 |",
        "|---|---|---|---|",
    ]
    for arm in ARMS:
        runs = [record["runs"][key] for seed in SEEDS if (key := f"{arm}, {seed}") in record["runs"]]
        if runs:
            losses, figures = (", ".join(f"{one[name]:g}" for one in runs) for name in ("loss", "fd_lite112"))
            lines.append(f"| {arm} | {runs[0]['bytes']:,} | {losses} | {figures} |")
    return "\n".join([*lines, "", *WORDS]) + "\n"


def main(
    work: Annotated[Path, typer.Option(help="Folder to work in.")],
    start: Annotated[Path, typer.Option(help="The public start.")],
    out: Annotated[Path, typer.Option(help="Folder for the page.")] = OUT,
) -> None:
    """Run after run; each is kept as soon as it is there."""
    torch.set_num_threads(1)
    file = out / "update-precision.json"
    record = json.loads(file.read_text()) if file.exists() else {"hardware": cpu_name(), "runs": {}}
    work.mkdir(parents=True, exist_ok=True)
    whole, folders = stores(CASES["sars"], work)
    base = plan_of("mean", load_model(start).sha256)
    data = TrainingSet.from_store(whole, base)
    sites = {name: TrainingSet.from_store(store, base) for name, store in opened(folders).items()}
    for seed in SEEDS:
        for arm in ARMS:
            key = f"{arm}, {seed}"
            if key not in record["runs"]:
                record["runs"][key] = run(arm, seed, start, sites, data)
                typer.echo(f"{key}: {record['runs'][key]}")
                file.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
                file.with_suffix(".md").write_text(page(record), encoding="utf-8")


if __name__ == "__main__":
    typer.run(main)
