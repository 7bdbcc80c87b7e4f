"""Attacks on our own privacy at several settings, with planted holes beside them.

    python benchmarks/privacy_audit.py --sample-rate 1 --steps 3 --epsilon 1 --noise-share 1

50 phantom patients, 400 canaries, preset tiny from ct_phantom, delta 1e-5. `--noise-share` 1 is the product; 0.1 and 0
plant noise ten times too small and none. One thread; 18 CPU seconds for 3 steps.
Figures: docs/results/privacy-audit.md.
"""

from __future__ import annotations

import argparse
import dataclasses

import torch

from fedscan.evaluation.privacy_audit import audit
from fedscan.plan import Plan
from fedscan.privacy.accounting import noise_multiplier_for
from fedscan.privacy.noise import SecureNoise
from fedscan.training import public_start
from fedscan.training.model_file import load_model

DELTA, PATIENTS = 1e-5, 50


class ShareOfNoise(SecureNoise):
    """The planted hole."""

    share = 1.0

    def normal(self, n: int) -> torch.Tensor:
        return self.share * super().normal(n)

    def prefetch(self, n: int) -> None:
        del n


def main() -> None:
    """One setting."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sample-rate", type=float, default=1.0)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--epsilon", type=float, default=1.0)
    parser.add_argument("--noise-share", type=float, default=1.0)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    start = load_model(public_start.SHELF / "ct_phantom.safetensors")
    rate, steps = arguments.sample_rate, arguments.steps
    sampling = {"sample_rate": rate, "expected_patients_per_step": rate * 5 * PATIENTS}
    plan = Plan.model_validate(
        {
            "model": {"preset": "tiny"},
            "window": start.plan.window,
            "rounds": steps,
            "weighting": "uniform",
            "training": {"local_steps": 1, "learning_rate": 1e-3, "warmup_steps": 5},
            "init_sha256": start.sha256,
            "privacy": {
                "noise_multiplier": noise_multiplier_for(arguments.epsilon, DELTA, rate, steps),
                "delta": DELTA,
                "sites": {"audit": sampling},
            },
        }
    )
    data = public_start.phantoms(plan, "hu", 8 * PATIENTS, 3)
    data = dataclasses.replace(data, pseudonyms=tuple(map(str, range(PATIENTS))))
    noise = ShareOfNoise()
    noise.share = arguments.noise_share
    assert plan.privacy is not None
    print(audit(plan, data, start.weights, sampling=plan.privacy.sites["audit"], noise=noise))


if __name__ == "__main__":
    main()
