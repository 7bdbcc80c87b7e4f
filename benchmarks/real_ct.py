"""Real CT, end to end: prepare, deal to sites by patient, an hour of training in federation, sample, measure.

    python benchmarks/real_ct.py sars --work WORK            # the paper's 2481 CT pictures, 10 sites, two classes
    python benchmarks/real_ct.py hu --work WORK              # all HU patients, every region, 4 sites
    python benchmarks/real_ct.py chest --work WORK           # the chests among them, 4 sites

An hour means CPU time of one core (`--cpu-hours`); killed, the same command goes on. Figures go to
docs/results/real-ct-CASE.json; sources that forbid commercial use leave figures here and neither pictures nor weights.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ctslices.store import SliceStore
from fedscan.diffusion.network import DiffusionNetwork, resolve_precision
from fedscan.diffusion.samplers import Settings, sample, slice_generator
from fedscan.diffusion.schedule import Schedule
from fedscan.evaluation.features import FeatureExtractor, extract
from fedscan.evaluation.frechet import fd_lite112
from fedscan.plan import Plan
from fedscan.training import in_process
from fedscan.training.checkpoints import Checkpoint
from fedscan.training.weights import Weights

ROOT = Path(__file__).resolve().parent.parent
DATA = Path(os.environ.get("FEDSCAN_DATA", ROOT.parent / "shared" / "data"))


@dataclass(frozen=True)
class Case:
    """One data set and how it is prepared, dealt and trained."""

    folder: str
    prepare: tuple[str, ...]
    sites: int
    samples: int
    plan: dict[str, Any]


def plan_of(rounds: int, classes: list[str], clients: int, steps: int) -> dict[str, Any]:
    """Few sites a round and short visits, moments kept at the sites, EMA over 6% of the rounds."""
    return {
        "model": {"preset": "small", "classes": classes},
        "rounds": rounds,
        "clients_per_round": clients,
        "ema": {"half_life_rounds": round(0.06 * rounds, 1)},
        "training": {"local_steps": steps, "learning_rate": 0.001, "warmup_steps": 20, "decay": "cosine"},
    }


CASES = {
    "sars": Case("sars_cov_2_ct", (), 10, 1000, plan_of(500, ["COVID", "non-COVID"], 2, 10)),
    "hu": Case(
        "ct_hu", ("--patient-from", "folder", "--min-slices", "1", "--region", "any"), 4, 500, plan_of(500, [], 2, 10)
    ),
    "chest": Case("ct_hu", ("--patient-from", "folder", "--min-slices", "1"), 4, 150, plan_of(500, [], 2, 10)),
}


def fedscan(*arguments: str) -> None:
    """One command of the product."""
    subprocess.run([sys.executable, "-m", "fedscan", *arguments], check=True, stdout=subprocess.DEVNULL)


def stores(case: Case, work: Path) -> tuple[SliceStore, dict[str, Path]]:
    """The whole store and the sites'; made once."""
    whole, key = work / "store", work / "store.key"
    if not key.exists():
        # The split follows from the pseudonyms: a published key makes it the same for everybody who repeats this.
        key.write_text(sha256(b"fedscan benchmark on public data").hexdigest() + "\n")
        key.chmod(0o600)
    fedscan("prepare", str(DATA / case.folder), "--out", str(whole), "--key", str(key), *case.prepare)
    sites = work / "sites"
    if not sites.exists():
        fedscan("deal", str(whole), "--sites", str(case.sites), "--out", str(sites))
    return SliceStore.open(whole), {path.name: path for path in sorted(sites.iterdir())}


def calibrated(case: Case, sites: dict[str, Path], cpu_hours: float, work: Path) -> Plan:
    """The case's plan with as many rounds as fit the hour, measured on three rounds once."""
    chosen = work / "plan.json"
    if not chosen.exists():
        trial = Plan.model_validate(case.plan | {"rounds": 1000})
        in_process.run(trial, sites, until_round=1)
        started = time.process_time()
        in_process.run(trial, sites, until_round=4)
        seconds = (time.process_time() - started) / 4
        rounds = max(10, int(cpu_hours * 3600 / seconds))
        plan = Plan.model_validate(case.plan | {"rounds": rounds, "ema": {"half_life_rounds": round(0.06 * rounds, 1)}})
        chosen.write_text(plan.canonical_json())
    return Plan.model_validate_json(chosen.read_text())


def train(plan: Plan, sites: dict[str, Path], work: Path, until_round: int | None) -> tuple[Checkpoint, list[float]]:
    """The state reached and the losses of this call's rounds; goes on from its checkpoints."""
    started = time.process_time()
    losses: list[float] = []

    def say(report: in_process.RoundReport) -> None:
        losses.append(report.loss)
        if report.round_number % 25 == 0:
            spent = time.process_time() - started
            print(f"round {report.round_number + 1}/{plan.rounds} loss {report.loss:.4f} {spent:.0f} CPU s", flush=True)

    return in_process.run(plan, sites, work / "run", on_round=say, until_round=until_round).state, losses


def draw(plan: Plan, weights: Weights, count: int, class_shares: list[float]) -> torch.Tensor:
    """Slices float32 [n, 1, s, s] in [-1, 1], classes in the shares of the training set."""
    network = DiffusionNetwork(plan.model)
    network.load_state_dict(weights)
    network.eval()
    labels = None
    if plan.model.classes:
        bounds = np.cumsum(class_shares) * count
        labels = torch.from_numpy(np.searchsorted(bounds, np.arange(count), side="right").clip(max=len(bounds) - 1))
    return sample(
        network,
        Schedule.from_plan(plan.diffusion),
        plan.diffusion.prediction,
        [slice_generator(0, i) for i in range(count)],
        Settings(),
        size=plan.model.size,
        labels=labels,
        precision=resolve_precision(plan.training.precision),
        batch=50,
    )


def measure(whole: SliceStore, plan: Plan, slices: torch.Tensor) -> dict[str, Any]:
    """FD-lite112 to training and to held-out slices, each at its own n beside the real-real floor over groups."""
    window = plan.window
    extractor = FeatureExtractor()
    drawn = extract(extractor, slices)
    figures: dict[str, Any] = {}
    for split in ("train", "holdout"):
        chosen = whole.indices(split)
        real = extract(extractor, torch.from_numpy(whole.window(window, indices=chosen)))
        for name, groups in (("other patients or blocks", whole.patient[chosen].tolist()), ("random halves", None)):
            figures[f"{split}, floor by {name}"] = _largest_n(drawn, real, groups)
    return figures


def _largest_n(drawn: torch.Tensor, real: torch.Tensor, groups: list[int] | None) -> str:
    """The distance at the largest n for which the groups give a floor."""
    n = min(len(drawn), len(real) // 2)
    while n > 10:
        try:
            return str(fd_lite112(drawn[torch.linspace(0, len(drawn) - 1, n).long()], real, 0, groups))
        except ValueError:
            n = int(0.9 * n)
    return "too few groups for a floor"


def main() -> None:
    """Runs one case and writes its figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("case", choices=sorted(CASES))
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--cpu-hours", type=float, default=1.0)
    parser.add_argument("--measure", action="store_true", help="train no more: measure the newest checkpoint")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    case, work = CASES[arguments.case], arguments.work / arguments.case
    work.mkdir(parents=True, exist_ok=True)
    whole, sites = stores(case, work)
    plan = calibrated(case, sites, arguments.cpu_hours, work)
    state, losses = train(plan, sites, work, 0 if arguments.measure else None)
    train_labels = whole.label[whole.indices("train")]
    class_shares = [float(np.mean(train_labels == whole.labels.index(c))) for c in plan.model.classes]
    slices = draw(plan, state.ema, case.samples, class_shares)
    np.save(work / "slices.npy", slices.numpy())
    results = {
        "command": f"python benchmarks/real_ct.py {arguments.case} --work WORK --cpu-hours {arguments.cpu_hours:g}",
        "store": {"slices": len(whole), "patients or blocks": len(whole.manifest.patients), "unit": whole.unit},
        "sites": {name: len(SliceStore.open(path).indices("train")) for name, path in sites.items()},
        "plan": json.loads(plan.canonical_json()),
        "plan_digest": plan.digest,
        "rounds done": f"{state.rounds_done} of {plan.rounds}, which would be {arguments.cpu_hours:g} CPU hours",
        "gradient steps": state.rounds_done * (plan.clients_per_round or len(sites)) * (plan.training.local_steps or 0),
        "loss, first and last rounds of this call": [losses[:3], losses[-3:]],
        "samples": case.samples,
        "figures": measure(whole, plan, slices),
        "torch": torch.__version__,
        "machine": f"{platform.machine()}, one core, {resolve_precision('auto')}",
        "seed": plan.seed,
    }
    out = ROOT / "docs" / "results" / f"real-ct-{arguments.case}.json"
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(results, indent=2) + "\n")
    print(json.dumps(results["figures"], indent=2))


if __name__ == "__main__":
    main()
