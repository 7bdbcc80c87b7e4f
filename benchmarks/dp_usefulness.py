"""What privacy costs in pictures: the same run with and without noise, from the same public start, equal steps.

    python benchmarks/dp_usefulness.py pictures --arm private --seed 0 --work WORK --start START.safetensors
    python benchmarks/dp_usefulness.py phantoms --arm no-noise --seed 0 --work WORK

`pictures`: 2000 of the paper's CT pictures, unit image. `phantoms`: 2000 phantom patients with four slices each.
Arms: `private` (epsilon 8, delta 1e-4), `no-noise` (same Poisson draws and clipping, noise left out: a study, never a
release), `start` (the public start alone). Killed, the same command goes on. Figures: docs/results/dp-usefulness.json.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from real_ct import DATA, ROOT, fedscan

from ctslices.phantom import PROFILES, chest_slices
from ctslices.store import SliceStore
from fedscan.diffusion.network import DiffusionNetwork, resolve_precision
from fedscan.diffusion.samplers import Settings, sample, slice_generator
from fedscan.diffusion.schedule import Schedule
from fedscan.evaluation.features import FeatureExtractor, extract
from fedscan.evaluation.frechet import fd_lite112
from fedscan.plan import Plan
from fedscan.privacy.accounting import noise_multiplier_for
from fedscan.privacy.noise import SecureNoise
from fedscan.training import in_process, public_start
from fedscan.training.data import TrainingSet
from fedscan.training.model_file import load_model
from fedscan.training.weights import Weights

PATIENTS, SAMPLE_RATE, STEPS, EPSILON, DELTA = 2000, 0.25, 200, 8.0, 1e-4
PHANTOM_SLICES = 4
SAMPLES = 1000


class NoNoise(SecureNoise):
    """Secret draws, and zeros for noise: what the same run would be without privacy."""

    def normal(self, count: int) -> torch.Tensor:
        return torch.zeros(count, dtype=torch.float64)

    def prefetch(self, count: int) -> None:
        del count


def plan_of(case: str, seed: int, sha256: str, steps: int) -> Plan:
    """The defaults of jobs/ct_fedavg_dp at one site of 2000."""
    template = json.loads((ROOT / "jobs/ct_fedavg_dp/app_client/config/config_fed_client.json").read_text())["plan"]
    rounds = template["rounds"]
    noise = noise_multiplier_for(EPSILON, DELTA, SAMPLE_RATE, steps)
    privacy = template["privacy"] | {
        "unit": "image" if case == "pictures" else "patient",
        "noise_multiplier": noise,
        "delta": DELTA,
        "sites": {"one": {"sample_rate": SAMPLE_RATE, "expected_patients_per_step": SAMPLE_RATE * PATIENTS}},
    }
    return Plan.model_validate(
        template
        | {
            "privacy": privacy,
            "min_responses": 1,
            "seed": seed,
            "init_sha256": sha256,
            "training": template["training"] | {"local_steps": math.ceil(steps / rounds)},
        }
    )


def pictures(plan: Plan, work: Path) -> TrainingSet:
    """2000 of the pictures; each is a unit of its own."""
    store = work / "store"
    fedscan("prepare", str(DATA / "sars_cov_2_ct"), "--out", str(store), "--holdout", "0.1")
    data = TrainingSet.from_store(SliceStore.open(store), plan)
    chosen = np.linspace(0, len(data) - 1, PATIENTS).astype(int)
    return dataclasses.replace(
        data,
        hu=data.hu[chosen],
        patient=np.arange(PATIENTS, dtype=np.int32),
        pseudonyms=tuple(data.pseudonyms[i] for i in chosen),
    )


def phantoms(plan: Plan, work: Path) -> TrainingSet:
    """2000 patients of three hospitals, four slices each; drawn once."""
    kept = work / "phantoms.npy"
    if not kept.exists():
        rng = np.random.default_rng(1)
        parts = [
            chest_slices(rng, n * PHANTOM_SLICES, profile=profile, slices_per_patient=PHANTOM_SLICES)[0]
            for profile, n in zip(PROFILES, (667, 667, 666), strict=True)
        ]
        np.save(work / "partial.npy", np.concatenate(parts))
        (work / "partial.npy").replace(kept)
    return TrainingSet(
        hu=np.load(kept),
        window=plan.window,
        label=None,
        patient=np.repeat(np.arange(PATIENTS, dtype=np.int32), PHANTOM_SLICES),
        unit="patient",
        field_mm=360.0,
        pseudonyms=tuple(f"{i:032x}" for i in range(PATIENTS)),
    )


def draw(plan: Plan, weights: Weights, count: int) -> torch.Tensor:
    """float32 [n, 1, s, s] in [-1, 1]; the same start noises for every arm."""
    network = DiffusionNetwork(plan.model)
    network.load_state_dict(weights)
    network.eval()
    generators = [slice_generator(0, i) for i in range(count)]
    return sample(
        network,
        Schedule.from_plan(plan.diffusion),
        plan.diffusion.prediction,
        generators,
        Settings(),
        size=plan.model.size,
        precision=resolve_precision(plan.training.precision),
        batch=50,
    )


def note(key: str, figures: dict[str, Any]) -> None:
    """One arm's figures into the page's data, beside the others'."""
    path = ROOT / "docs" / "results" / "dp-usefulness.json"
    known = json.loads(path.read_text()) if path.exists() else {}
    known[key] = figures
    path.write_text(json.dumps(dict(sorted(known.items())), indent=1) + "\n")


def main() -> None:
    """Runs one arm and writes its figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("case", choices=("pictures", "phantoms"))
    parser.add_argument("--arm", choices=("private", "no-noise", "start"), required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--start", type=Path, help="default: the start that comes with fedscan")
    parser.add_argument("--steps", type=int, default=STEPS)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    case = arguments.case
    start = load_model(arguments.start or public_start.SHELF / "ct_phantom.safetensors")
    plan = plan_of(case, arguments.seed, start.sha256, arguments.steps)
    work = arguments.work / case
    work.mkdir(parents=True, exist_ok=True)
    data = (pictures if case == "pictures" else phantoms)(plan, work)
    key = f"{case}, {arguments.arm}, seed {arguments.seed}" + (
        "" if arguments.steps == STEPS else f", {arguments.steps} steps"
    )
    weights = start.weights
    began = time.process_time()
    if arguments.arm != "start":
        source = SecureNoise if arguments.arm == "private" else NoNoise

        def say(report: in_process.RoundReport) -> None:
            print(
                f"{key}: round {report.round_number + 1}/{plan.rounds}, {time.process_time() - began:.0f} s", flush=True
            )

        weights = in_process.run(
            plan, {"one": data}, work / key.replace(", ", "-").replace(" ", ""), say, initial=weights,
            noise=lambda _: source(),
        ).weights  # fmt: skip
    slices = draw(plan, weights, SAMPLES)
    np.save(work / f"{key}.npy", slices.numpy())
    extractor = FeatureExtractor()
    at = torch.linspace(0, len(data) - 1, SAMPLES).long()
    distance = fd_lite112(extract(extractor, slices), extract(extractor, data.batch(at)[0]), 0)
    assert plan.privacy is not None
    note(
        key,
        {
            "FD-lite112": str(distance),
            "n": SAMPLES,
            "noise_multiplier": plan.privacy.noise_multiplier if arguments.arm == "private" else 0.0,
            "epsilon": EPSILON if arguments.arm == "private" else None,
            "plan_digest": plan.digest,
            "start": start.sha256,
            "cpu_s": round(time.process_time() - began),
        },
    )
    print(key, distance, flush=True)


if __name__ == "__main__":
    main()
