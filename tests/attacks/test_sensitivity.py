"""How far one patient can move the sum before noise, and whether a clip bug gets past the training path itself.

The noise hides a change of max_grad_norm and no more. Each patient is taken out in turn, one of them thirty times as
loud as the rest; then the classic bugs are planted, which no accountant would notice.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fedscan.privacy import optimiser as optimiser_module
from fedscan.privacy.clipping import ClipError
from fedscan.privacy.gradients import Engine, PatientGradients
from fedscan.privacy.mechanism import Mechanism
from fedscan.privacy_plan import PrivacyPlan, SiteSampling

PATIENTS, SLICES, LOUD = 6, 4, 3
CLIP = 0.5


class Everybody:
    """Draws all, adds nothing: what is left is the sum that the noise would have to hide."""

    reproducible = True

    def uniform(self, n: int) -> NDArray[np.float64]:
        return np.full(n, 1e-9)

    def normal(self, n: int) -> Tensor:
        return torch.zeros(n, dtype=torch.float64)


class Site:
    """A small convolutional network and its patients, through the mechanism's own step."""

    def __init__(self, engine: Engine = "kernels", physical: int = 4) -> None:
        generator = torch.Generator().manual_seed(0)
        self.net = nn.Sequential(
            nn.Conv2d(1, 8, 3, padding=1), nn.GroupNorm(2, 8), nn.SiLU(), nn.Flatten(), nn.Linear(8 * 64, 1)
        )
        with torch.no_grad():
            for p in self.net.parameters():
                p.copy_(torch.randn(p.shape, generator=generator) / 10)
        self.wrapped = PatientGradients(self.net, engine=engine)
        self.x = torch.randn(PATIENTS, SLICES, 1, 8, 8, generator=generator)
        self.loudness = torch.ones(PATIENTS)
        self.loudness[LOUD] = 30.0
        self.physical = physical

    def losses(self, patients: NDArray[np.int64]) -> Tensor:
        chosen = torch.from_numpy(patients)
        rows = self.x[chosen].transpose(0, 1).reshape(-1, 1, 8, 8)
        output: Tensor = self.wrapped(rows, patients=len(patients)).squeeze(1)
        return output.square() * self.loudness[chosen].repeat(SLICES)

    def sum(
        self, without: int | None = None, losses: Callable[[NDArray[np.int64]], Tensor] | None = None
    ) -> NDArray[np.float64]:
        """The summed update, as the inner optimiser got it (divisor 1), of everybody but `without`."""
        sampling = SiteSampling(sample_rate=1.0, expected_patients_per_step=1.0)
        privacy = PrivacyPlan(
            noise_multiplier=1.0, delta=1e-3, max_grad_norm=CLIP, slices_per_patient=SLICES, sites={"a": sampling}
        )
        mechanism = Mechanism(privacy, sampling, 1, Everybody(), allow_reproducible=True)
        optimiser = mechanism.optimiser(torch.optim.SGD(self.net.parameters(), lr=0.0))
        seen: list[NDArray[np.float64]] = []
        optimiser.attach_step_hook(
            lambda o: seen.append(np.concatenate([p.grad.numpy().astype(np.float64).ravel() for p in o.params]))
        )
        there = np.array([p for p in range(PATIENTS) if p != without])
        drawn = mechanism.draw(len(there))
        mechanism.step(optimiser, drawn, lambda part: (losses or self.losses)(there[part]), self.physical)
        return seen[0]


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.mark.parametrize("physical", [2, 100])
@pytest.mark.parametrize("engine", ["kernels", "loop"])
def test_removing_any_one_patient_moves_the_sum_by_at_most_the_clip(engine: Engine, physical: int) -> None:
    """All are clipped here, so each moves it by exactly so much: the bound is met and is not an accident."""
    site = Site(engine, physical)
    whole = site.sum()
    moved = [float(np.linalg.norm(whole - site.sum(without=patient))) for patient in range(PATIENTS)]
    assert max(moved) <= CLIP * (1 + 1e-5)
    assert min(moved) >= CLIP * (1 - 1e-4)


def test_a_patient_whose_gradient_is_not_finite_moves_the_sum_by_nothing() -> None:
    """It may neither spoil the others' part nor stop the step: either would tell that it is there."""
    site = Site()
    site.x[1, 2, 0, 0, 0] = torch.inf
    assert np.array_equal(site.sum(), site.sum(without=1))


def test_clipping_three_times_too_loose_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    right = optimiser_module.clip_factors
    monkeypatch.setattr(optimiser_module, "clip_factors", lambda norms, bound: right(norms, 3 * bound))
    site = Site()
    with pytest.raises(ClipError, match="longer than max_grad_norm"):
        site.sum()


def test_without_the_assertion_that_bug_would_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the assertion is worth: the same bug, the guard taken out, and one patient moves the sum by 3 C."""
    right = optimiser_module.clip_factors
    monkeypatch.setattr(optimiser_module, "clip_factors", lambda norms, bound: right(norms, 3 * bound))
    monkeypatch.setattr(optimiser_module, "assert_clipped", lambda norms, bound: None)
    site = Site()
    assert float(np.linalg.norm(site.sum() - site.sum(without=LOUD))) == pytest.approx(3 * CLIP, rel=1e-3)


def test_clipping_by_slice_is_caught() -> None:
    """Each slice taken for a patient: one patient would move the sum by up to SLICES times C."""
    site = Site()

    def by_slice(patients: NDArray[np.int64]) -> Tensor:
        rows = site.x[torch.from_numpy(patients)].transpose(0, 1).reshape(-1, 1, 8, 8)
        output: Tensor = site.wrapped(rows, patients=len(rows)).squeeze(1)
        return output.square()

    with pytest.raises(ClipError, match="slices must not be clipped as patients"):
        site.sum(losses=by_slice)


def test_clipping_slices_and_adding_them_up_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows are patients', but the factor is one slice's: a patient's row is then up to SLICES times too long."""
    right = optimiser_module.clip_factors
    monkeypatch.setattr(optimiser_module, "clip_factors", lambda norms, bound: right(norms / SLICES, bound))
    with pytest.raises(ClipError, match="longer than max_grad_norm"):
        Site().sum()


def test_a_patient_in_two_parts_of_a_step_is_caught() -> None:
    """A part that brings rows of a patient that another part brought too: twice C."""
    site = Site(physical=2)

    def doubled(patients: NDArray[np.int64]) -> Tensor:
        more = np.concatenate([patients, [0]])
        rows = site.x[torch.from_numpy(more)].transpose(0, 1).reshape(-1, 1, 8, 8)
        output: Tensor = site.wrapped(rows, patients=len(more)).squeeze(1)
        return output.square()[: SLICES * len(patients)]

    with pytest.raises(ClipError, match="not the drawn patients"):
        site.sum(losses=doubled)
