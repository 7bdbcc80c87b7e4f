"""Weights of a dishonest server that make of rounding a change of everybody's gradient when one patient is added."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch
from torch import Tensor

from fedscan.plan import Plan
from fedscan.privacy_plan import SiteSampling
from fedscan.training import private_checks
from fedscan.training.data import TrainingSet
from fedscan.training.private_round import PrivateTrainer
from fedscan.training.weights import Weights, initial_weights

PATIENTS, SIZE = 40, 32
EMBEDDED, LARGE = "net.time_embed", 1e5


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def make(expected: float = 4.0) -> PrivateTrainer:
    sampling = {"sample_rate": 0.5, "expected_patients_per_step": expected}
    plan = Plan.model_validate(
        {
            "model": {"preset": "tiny", "size": SIZE},
            "weighting": "uniform",
            "training": {"local_steps": 1, "precision": "fp32"},
            "privacy": {"noise_multiplier": 1.0, "delta": 1e-3, "from_scratch": True, "sites": {"a": sampling}},
        }
    )
    hu = np.random.default_rng(0).integers(-1000, 1000, (PATIENTS, SIZE, SIZE)).astype(np.int16)
    names = tuple(f"p{number}" for number in range(PATIENTS))
    data = TrainingSet(hu, "full", None, np.arange(PATIENTS, dtype=np.int32), "patient", pseudonyms=names)
    return PrivateTrainer(plan, data, "a")


def amplifying(plan: Plan) -> Weights:
    """The time embedding's first three features are a sum, its first half and its second half, all of them large: the
    difference that the next layer takes and enlarges is rounding alone."""
    generator = torch.Generator().manual_seed(3)
    weights = {n: w + 0.05 * torch.randn(w.shape, generator=generator) for n, w in initial_weights(plan).items()}
    first, second = (torch.zeros_like(weights[f"{EMBEDDED}.{layer}.weight"]) for layer in (0, 2))
    half = first.shape[1] // 2
    terms = LARGE * (2.0 * torch.rand(first.shape[1], generator=generator) - 1.0)
    first[0], first[1, :half], first[2, half:] = terms, terms[:half], terms[half:]
    second[:, :3] = torch.tensor([100.0, -100.0, -100.0])
    bias = torch.zeros(len(first))
    bias[:3] = LARGE * torch.tensor([8.0, 4.0, 4.0])  # into the part of the activation that is a line
    crafted = {"0.weight": first, "0.bias": bias, "2.weight": second, "2.bias": torch.zeros(len(second))}
    return weights | {f"{EMBEDDED}.{name}": tensor for name, tensor in crafted.items()}


def test_who_else_is_drawn_changes_nobodys_gradient_by_a_bit() -> None:
    trainer = make()
    weights = amplifying(trainer.plan)

    def of(patients: list[int]) -> Tensor:
        return trainer.gradients_of(weights, 0, 0, np.array(patients))

    most = trainer.physical_patients
    assert most > 4
    everybody = of(list(range(most)))
    for drawn in ([0], [0, 1, 2], [0, 1, 2, 3], list(range(5)), list(range(1, most)), list(range(most))[::-1]):
        assert torch.equal(of(drawn), everybody[drawn]), drawn
    # the attack is one: in batches of as many as were drawn it moves patients who were there before
    trainer.physical_patients = 1
    # (between which two sizes is the processor's own matter)
    norms = everybody.norm(dim=1)
    alone = {n: of(list(range(n))) for n in range(1, 9)}
    moved = [((alone[n + 1][:n] - alone[n]).norm(dim=1) / norms[:n]).max() for n in range(1, 8)]
    assert max(moved) > 0.1, moved


def test_where_a_place_in_the_batch_changes_rounding_patients_go_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another processor may sum in another order at the end of a batch than at its beginning."""
    losses: Callable[..., Tensor] = PrivateTrainer.losses

    def by_place(self: PrivateTrainer, *arguments: object) -> Tensor:
        of_rows = losses(self, *arguments)
        return of_rows * (1.0 + 2e-7 * torch.arange(len(of_rows)))

    assert make(1.0).physical_patients == private_checks.LEAST_ROWS
    assert make(320.0).physical_patients == 320 / private_checks.PARTS
    monkeypatch.setattr(PrivateTrainer, "losses", by_place)
    assert make().physical_patients == 1


@pytest.mark.parametrize(
    ("expected", "rows", "fit", "patients"),
    [
        (1.0, 1, 1000, 32),  # a whole batch for few
        (8.0, 4, 1000, 8),
        (8.0, 4, 5, 4),  # two batches of four, not of five with two fillers
        (500.0, 1, 1000, 56),
        (500.0, 1, 40, 39),
        (3.0, 64, 1, 1),
    ],
)
def test_the_expected_patients_fill_their_batches_within_memory(
    expected: float, rows: int, fit: int, patients: int
) -> None:
    sampling = SiteSampling(sample_rate=0.1, expected_patients_per_step=expected)
    assert private_checks.patients_in_a_batch(sampling, rows, fit) == patients
