"""What privacy costs in pictures: the same run with and without noise, from the same public start, equal steps.

    fedscan warm-start jobs/ct_fedavg_dp --out START.safetensors --look pictures
    python benchmarks/dp_usefulness.py pictures private --seed 0 --work WORK --start START.safetensors
    python benchmarks/dp_usefulness.py phantoms no-noise --seed 0 --work WORK
    python benchmarks/dp_usefulness.py verdict

`pictures`: 2000 of the paper's CT pictures, unit image. `phantoms`: 2000 phantom patients with four slices each.
Arms: `private` (epsilon 8 or `--epsilon`, delta 1e-4), `no-noise` (same Poisson draws and clipping, noise left out: a
study, never a release), `start` (the public start alone). Figures go to docs/results/dp-usefulness.json; `verdict`
compares them with what was promised. Killed, the same command goes on, and comes to the same. About 10 CPU minutes an
arm.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
import sys
import time
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock
from numpy.typing import NDArray
from PIL import Image
from real_ct import DATA, ROOT, fedscan

from ctslices.phantom import PROFILES, chest_slices
from ctslices.store import SliceStore
from fedscan.diffusion.network import DiffusionNetwork, resolve_precision
from fedscan.diffusion.samplers import Settings, sample, slice_generator
from fedscan.diffusion.schedule import Schedule
from fedscan.evaluation.features import FeatureExtractor, extract
from fedscan.evaluation.frechet import FeatureSums, frechet_distance
from fedscan.plan import Plan
from fedscan.privacy.accounting import noise_multiplier_for
from fedscan.privacy.noise import ReproducibleNoise
from fedscan.training import in_process, public_start
from fedscan.training.data import TrainingSet
from fedscan.training.model_file import load_model
from fedscan.training.weights import Weights

PATIENTS, SAMPLE_RATE, EPSILON, DELTA = 2000, 0.25, 8.0, 1e-4
PHANTOM_SLICES = 4
SAMPLES = 1000
LIMIT = 1.4
"""Of FD-lite112 with noise over that without."""
RESULTS = ROOT / "docs" / "results"


class StudyNoise:
    """Draws that every arm of a seed shares, and noise, or none of it. Anybody can repeat both: for studies alone."""

    reproducible = True

    def __init__(self, seed: int, round_number: int, noised: bool) -> None:
        self._draws, self._noise = (ReproducibleNoise((seed * 10_000 + round_number) * 2 + part) for part in (0, 1))
        self._noised = noised

    def uniform(self, n: int) -> NDArray[np.float64]:
        """float64 [n] in (0, 1)."""
        return self._draws.uniform(n)

    def normal(self, n: int) -> torch.Tensor:
        """float64 [n]."""
        return self._noise.normal(n) if self._noised else torch.zeros(n, dtype=torch.float64)


def plan_of(case: str, seed: int, start: str, epsilon: float = EPSILON) -> Plan:
    """The defaults of jobs/ct_fedavg_dp at one site of 2000."""
    template = json.loads((ROOT / "jobs/ct_fedavg_dp/app_client/config/config_fed_client.json").read_text())["plan"]
    steps = template["rounds"] * template["training"]["local_steps"]
    privacy = template["privacy"] | {
        "unit": "image" if case == "pictures" else "patient",
        "target_epsilon": epsilon,
        "noise_multiplier": noise_multiplier_for(epsilon, DELTA, SAMPLE_RATE, steps),
        "delta": DELTA,
        "sites": {"one": {"sample_rate": SAMPLE_RATE, "expected_patients_per_step": SAMPLE_RATE * PATIENTS}},
    }
    return Plan.model_validate(template | {"privacy": privacy, "min_responses": 1, "seed": seed, "init_sha256": start})


def pictures(plan: Plan, work: Path) -> TrainingSet:
    """2000 of the pictures; each is a unit of its own."""
    key = work / "store.key"
    if not key.exists():
        # As in real_ct.py: the split follows from the pseudonyms, a published key makes it the same for everybody.
        key.write_text(sha256(b"fedscan benchmark on public data").hexdigest() + "\n")
        key.chmod(0o600)
    fedscan("prepare", str(DATA / "sars_cov_2_ct"), "--out", str(work / "store"), "--key", str(key))
    data = TrainingSet.from_store(SliceStore.open(work / "store"), plan)
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


def train(plan: Plan, data: TrainingSet, work: Path, weights: Weights, *, seed: int, noised: bool) -> Weights:
    """The weights after all rounds. Draws and noise follow from (seed, round), so that a stop changes nothing."""
    began = time.process_time()
    for number in range(plan.rounds):
        source = StudyNoise(seed, number, noised)
        done = in_process.run(
            plan, {"one": data}, work, initial=weights, until_round=number + 1, noise=lambda _, source=source: source
        )
        print(f"{work.name}: round {number + 1}/{plan.rounds}, {time.process_time() - began:.0f} s", flush=True)
    return done.weights


def distances(data: TrainingSet, slices: torch.Tensor) -> tuple[float, float]:
    """FD-lite112 of the slices to 1000 real ones, and of 1000 other real ones to those: the floor."""
    extractor = FeatureExtractor()
    places = torch.linspace(0, len(data) - 1, 2 * SAMPLES).long()
    real, other = (FeatureSums.of(extract(extractor, data.batch(places[part::2])[0])) for part in (0, 1))
    return frechet_distance(FeatureSums.of(extract(extractor, slices)), real), frechet_distance(other, real)


def grid(slices: torch.Tensor, path: Path, columns: int = 16) -> None:
    """The first slices, [-1, 1] as black to white, two rows."""
    grey = ((slices[: 2 * columns, 0] + 1.0) * 127.5).clamp(0, 255).round().to(torch.uint8).numpy()
    size = grey.shape[-1]
    rows = grey.reshape(2, columns, size, size).transpose(0, 2, 1, 3).reshape(2 * size, columns * size)
    Image.fromarray(rows).save(path)


def note(key: str, figures: dict[str, Any], root: Path) -> None:
    """One arm's figures into the page's data, beside the others', whose runs may end at the same time."""
    path = RESULTS / "dp-usefulness.json"
    with FileLock(root / "figures.lock"):
        known = json.loads(path.read_text()) if path.exists() else {}
        known[key] = figures
        path.write_text(json.dumps(dict(sorted(known.items())), indent=1) + "\n")


def run_arm(case: str, arm: str, seed: int, root: Path, start_file: Path, epsilon: float = EPSILON) -> None:
    """One arm with one seed, from data to figures."""
    began = time.process_time()
    start = load_model(start_file)
    plan = plan_of(case, seed, start.sha256, epsilon)
    work = root / case
    work.mkdir(parents=True, exist_ok=True)
    data = (pictures if case == "pictures" else phantoms)(plan, work)
    name = f"{arm}-{seed}-{start.sha256[:8]}" + (f"-{epsilon:g}" if epsilon != EPSILON else "")
    weights = start.weights
    if arm != "start":
        weights = train(plan, data, work / name, weights, seed=seed, noised=arm == "private")
    slices = draw(plan, weights, SAMPLES)
    np.save(work / f"{name}.npy", slices.numpy())
    grid(slices, work / f"{name}.png")
    distance, floor = distances(data, slices)
    privacy = plan.privacy
    assert privacy is not None
    figures = {
        "fd_lite112": round(distance, 1),
        "floor": round(floor, 1),
        "n": SAMPLES,
        "noise_multiplier": privacy.noise_multiplier if arm == "private" else 0.0,
        "max_grad_norm": privacy.max_grad_norm,
        "slices_per_patient": privacy.slices_per_patient,
        "plan_digest": plan.digest,
        "start": start.sha256,
        "cpu_s": round(time.process_time() - began),
    }
    at = f", epsilon {epsilon:g}" if epsilon != EPSILON else ""
    note(f"{case}, {arm}{at}, seed {seed}", figures, root)
    print(name, figures, flush=True)


def verdict() -> bool:
    """Prints, for each case, the FD of each arm over the seeds and how private compares; whether all is as promised."""
    known = json.loads((RESULTS / "dp-usefulness.json").read_text())
    kept = True
    for case in ("pictures", "phantoms"):
        of_arm = {
            arm: [figures["fd_lite112"] for key, figures in known.items() if key.startswith(f"{case}, {arm}, seed")]
            for arm in ("start", "no-noise", "private")
        }
        print(case, of_arm)
        if of_arm["private"] and of_arm["no-noise"]:
            ratio = statistics.mean(of_arm["private"]) / statistics.mean(of_arm["no-noise"])
            print(f"{case}: private / no-noise {ratio:.2f}, at most {LIMIT}")
            kept = kept and ratio <= LIMIT
    return kept


def main() -> None:
    """Runs one arm and writes its figures, or judges them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("case", choices=("pictures", "phantoms", "verdict"))
    parser.add_argument("arm", nargs="?", choices=("private", "no-noise", "start"))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--epsilon", type=float, default=EPSILON, help="of the private arm")
    parser.add_argument("--work", type=Path)
    parser.add_argument("--start", type=Path, default=public_start.SHELF / "ct_phantom.safetensors")
    arguments = parser.parse_args()
    if arguments.case == "verdict":
        sys.exit(0 if verdict() else 1)
    if arguments.arm is None or arguments.work is None:
        parser.error("name an arm and --work")
    torch.set_num_threads(1)
    run_arm(arguments.case, arguments.arm, arguments.seed, arguments.work, arguments.start, arguments.epsilon)


if __name__ == "__main__":
    main()
