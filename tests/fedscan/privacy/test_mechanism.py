"""fedscan.privacy.mechanism on a linear model: draws, whole steps, empty steps, and what cannot be set up."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from monai.utils import set_determinism
from numpy.typing import NDArray
from scipy import stats
from torch import Tensor, nn

from fedscan.privacy.clipping import TOLERANCE, ClipError
from fedscan.privacy.event import Event
from fedscan.privacy.gradients import PatientGradients
from fedscan.privacy.mechanism import Mechanism, MechanismError
from fedscan.privacy.noise import NoiseSource, ReproducibleNoise, SecureNoise
from fedscan.privacy_plan import PrivacyPlan, SiteSampling

PATIENTS, SLICES, FEATURES = 11, 3, 40
SIGMA, CLIP = 1.5, 0.2
QUIET = 7
"""The one patient that is not clipped."""


class Chosen:
    """Draws exactly the patients of a list, step by step, and adds noise only if told to."""

    reproducible = True

    def __init__(self, *draws: list[int], normal: Callable[[int], Tensor] | None = None) -> None:
        self._draws = list(draws)
        self._normal = normal or (lambda n: torch.zeros(n, dtype=torch.float64))

    def uniform(self, n: int) -> NDArray[np.float64]:
        drawn = self._draws.pop(0)
        return np.where(np.isin(np.arange(n), drawn), 1e-9, 1 - 1e-9)

    def normal(self, n: int) -> Tensor:
        return self._normal(n)


class Linear:
    """A wrapped linear model, its patients, and a mechanism with a plain optimiser of rate 1."""

    def __init__(self, noise: NoiseSource, steps: int = 9, rate: float = 0.3, expected: float = 3.3) -> None:
        generator = torch.Generator().manual_seed(0)
        self.model = nn.Linear(FEATURES, 5)
        with torch.no_grad():
            for p in self.model.parameters():
                p.copy_(torch.randn(p.shape, generator=generator) / (10 if p.ndim == 2 else 100))
        self.x = torch.randn(PATIENTS, SLICES, FEATURES, generator=generator)
        self.x[QUIET] *= 0.02
        self.wrapped = PatientGradients(self.model)
        self.sampling = SiteSampling(sample_rate=rate, expected_patients_per_step=expected)
        self.privacy = privacy(self.sampling)
        self.mechanism = Mechanism(self.privacy, self.sampling, steps, noise, allow_reproducible=True)
        self.optimiser = self.mechanism.optimiser(torch.optim.SGD(self.model.parameters(), lr=1.0))

    def losses(self, patients: NDArray[np.int64]) -> Tensor:
        rows = self.x[torch.from_numpy(patients)].transpose(0, 1).reshape(-1, FEATURES)
        output: Tensor = self.wrapped(rows, patients=len(patients))
        return output.square().sum(1)

    def step(self, physical: int = 100) -> NDArray[np.int64]:
        drawn = self.mechanism.draw(PATIENTS)
        self.mechanism.step(self.optimiser, drawn, self.losses, physical)
        return drawn

    def weights(self) -> NDArray[np.float64]:
        return np.concatenate([p.detach().numpy().astype(np.float64).ravel() for p in self.model.parameters()])

    def clipped(self, patient: int) -> NDArray[np.float64]:
        """One patient's clipped gradient by plain autograd, without the code under test."""
        copy = nn.Linear(FEATURES, 5)
        copy.load_state_dict(self.model.state_dict())
        copy(self.x[patient]).square().sum(1).mean().backward()
        one = np.concatenate([p.grad.numpy().astype(np.float64).ravel() for p in copy.parameters()])  # type: ignore[union-attr]
        factor: float = min(1.0, CLIP / np.linalg.norm(one))
        return one * factor


def privacy(sampling: SiteSampling, **fields: Any) -> PrivacyPlan:
    numbers = {"noise_multiplier": SIGMA, "delta": 1e-3, "max_grad_norm": CLIP, "slices_per_patient": SLICES}
    return PrivacyPlan(sites={"a": sampling}, **{**numbers, **fields})


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def test_a_step_is_the_drawn_patients_clipped_sum_by_the_public_divisor() -> None:
    """3.3 expected, two drawn, floor(N q) = 3: only 3.3 divides. One is clipped, of the other the mean over slices."""
    linear = Linear(Chosen([2, 7]))
    before = linear.weights()
    assert CLIP / 9 < np.linalg.norm(linear.clipped(QUIET)) < CLIP / 3.1
    wanted = before - (linear.clipped(2) + linear.clipped(QUIET)) / 3.3
    assert linear.step().tolist() == [2, 7]
    assert np.abs(linear.weights() - wanted).max() < 1e-7
    assert np.abs(wanted - before).max() > 1e-3


def test_noise_of_the_plan_is_added_to_the_sum() -> None:
    size = FEATURES * 5 + 5
    noise = torch.randn(size, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    linear, quiet = Linear(Chosen([2, 7], normal=lambda n: noise)), Linear(Chosen([2, 7]))
    linear.step()
    quiet.step()
    weight_then_bias = np.roll(noise.numpy(), -5)  # the optimiser takes it for small parameters first
    added = weight_then_bias * SIGMA * CLIP * (1 + TOLERANCE) / 3.3
    assert np.abs(linear.weights() - (quiet.weights() - added)).max() < 1e-7


@pytest.mark.parametrize("physical", [1, 2, 3, 5, 7, 100])
def test_parts_come_to_the_same_as_the_whole(physical: int) -> None:
    draws = ([0, 2, 3, 5, 7, 8, 10], [1], [0, 1, 2, 3, 4])
    parts, whole = Linear(Chosen(*draws)), Linear(Chosen(*draws))
    sizes: list[int] = []
    plain = parts.losses

    def losses(patients: NDArray[np.int64]) -> Tensor:
        sizes.append(len(patients))
        return plain(patients)

    parts.losses = losses  # type: ignore[method-assign]
    for _ in draws:
        parts.step(physical)
        whole.step()
    assert max(sizes) == min(physical, 7)
    assert sum(sizes) == 13
    assert np.abs(parts.weights() - whole.weights()).max() < 1e-6


def test_an_empty_draw_is_a_noised_step() -> None:
    """Standard deviation sigma C / B within 5 %; counted; no loss is asked for."""
    noise = SecureNoise()
    linear = Linear(noise, rate=1e-12, expected=2.5)
    model = nn.Linear(300, 300, bias=False)
    wrapped = PatientGradients(model)
    mechanism = Mechanism(linear.privacy, linear.sampling, 2, noise)
    optimiser = mechanism.optimiser(torch.optim.SGD(wrapped.parameters(), lr=1.0))
    before = model.weight.detach().clone()
    drawn = mechanism.draw(1000)
    assert len(drawn) == 0
    mechanism.step(optimiser, drawn, lambda patients: pytest.fail("nobody was drawn"), 4)
    moved = model.weight.detach() - before
    assert float(moved.std()) == pytest.approx(SIGMA * CLIP / 2.5, rel=0.05)
    assert stats.kstest((moved / (SIGMA * CLIP / 2.5)).flatten().numpy()[:5000], "norm").pvalue > 1e-6
    assert mechanism.steps_left == 1


def test_a_site_without_patients_takes_its_steps_too() -> None:
    linear = Linear(SecureNoise())
    before = linear.weights()
    linear.mechanism.step(linear.optimiser, linear.mechanism.draw(0), linear.losses, 4)
    assert np.all(linear.weights() != before)


def test_the_draw_is_poisson() -> None:
    """Each patient apart with the plan's probability: counts by patient, by step, and of pairs."""
    steps, patients, rate = 4000, 50, 0.3
    sampling = SiteSampling(sample_rate=rate, expected_patients_per_step=15.0)
    drawn, source = np.zeros((steps, patients)), SecureNoise()
    for step in range(steps):
        drawn[step, Mechanism(privacy(sampling), sampling, 1, source).draw(patients)] = 1
    by_patient = drawn.mean(0)
    assert np.abs(by_patient - rate).max() < 5.5 * math.sqrt(rate * (1 - rate) / steps)
    assert stats.chisquare(
        np.bincount(np.clip(drawn.sum(1).astype(int), 7, 23) - 7, minlength=17),
        steps * np.diff(np.concatenate([[0], stats.binom.cdf(np.arange(7, 23), patients, rate), [1]])),
    ).pvalue > 1e-6  # fmt: skip
    correlation = np.corrcoef(drawn.T) - np.eye(patients)
    assert np.abs(correlation).max() < 6 / math.sqrt(steps)
    assert abs(np.corrcoef(drawn[:-1].ravel(), drawn[1:].ravel())[0, 1]) < 5 / math.sqrt(steps * patients)


def test_a_rate_of_one_draws_everybody_and_indices_are_ascending() -> None:
    assert Linear(SecureNoise(), rate=1.0).step().tolist() == list(range(PATIENTS))
    drawn = Linear(SecureNoise(), rate=0.9).mechanism.draw(1000)
    assert drawn.dtype == np.int64
    assert np.all(np.diff(drawn) > 0)


def test_two_runs_differ_whatever_is_seeded() -> None:
    """The attack: run again with all the same seeds, and subtract."""

    def run() -> tuple[list[int], NDArray[np.float64]]:
        set_determinism(7)
        torch.manual_seed(7)
        linear = Linear(SecureNoise(), rate=0.5)
        drawn = [patient for _ in range(9) for patient in [*linear.step().tolist(), -1]]
        return drawn, linear.weights()

    try:
        one, other = run(), run()
    finally:
        set_determinism(None)
    assert one[0] != other[0]
    assert np.all(one[1] != other[1])


def test_two_demo_runs_are_the_same() -> None:
    one, other, third = (Linear(ReproducibleNoise(seed)) for seed in (4, 4, 5))
    for _ in range(3):
        assert one.step().tolist() == other.step().tolist()
        third.step()
    assert np.array_equal(one.weights(), other.weights())
    assert not np.array_equal(one.weights(), third.weights())


def test_what_is_charged_is_what_is_set_up() -> None:
    linear = Linear(SecureNoise(), steps=9)
    assert linear.mechanism.event == Event(noise_multiplier=SIGMA, sample_rate=0.3, steps=9, unit="patient")
    optimiser = linear.optimiser
    assert (optimiser.noise_multiplier, optimiser.max_grad_norm, optimiser.expected_batch_size) == (SIGMA, CLIP, 3.3)


def test_no_step_is_taken_that_was_not_charged() -> None:
    linear = Linear(SecureNoise(), steps=2)
    linear.step()
    linear.step()
    before = linear.weights()
    with pytest.raises(MechanismError, match="all 2 charged steps are taken"):
        linear.step()
    assert np.array_equal(linear.weights(), before)


def test_draws_cannot_be_chosen_among_nor_used_twice() -> None:
    linear = Linear(SecureNoise())
    drawn = linear.mechanism.draw(PATIENTS)
    with pytest.raises(MechanismError, match="cannot be refused"):
        linear.mechanism.draw(PATIENTS)
    other = np.setdiff1d(np.arange(PATIENTS), drawn)
    with pytest.raises(MechanismError, match="the last draw"):
        linear.mechanism.step(linear.optimiser, other, linear.losses, 4)
    linear.mechanism.step(linear.optimiser, drawn, linear.losses, 4)
    with pytest.raises(MechanismError, match="the last draw"):
        linear.mechanism.step(linear.optimiser, drawn, linear.losses, 4)
    assert linear.mechanism.steps_left == 8


def test_another_optimiser_is_refused() -> None:
    linear, other = Linear(SecureNoise()), Linear(SecureNoise())
    with pytest.raises(MechanismError, match="one optimiser"):
        linear.mechanism.optimiser(torch.optim.SGD(linear.model.parameters(), lr=1.0))
    drawn = linear.mechanism.draw(PATIENTS)
    with pytest.raises(MechanismError, match="not of this mechanism"):
        linear.mechanism.step(other.optimiser, drawn, linear.losses, 4)


@pytest.mark.parametrize("field", ["noise_multiplier", "max_grad_norm", "expected_batch_size"])
def test_settings_changed_behind_its_back_are_noticed(field: str) -> None:
    """Opacus has schedulers that do just that."""
    linear = Linear(SecureNoise())
    setattr(linear.optimiser, field, getattr(linear.optimiser, field) * 0.5)
    with pytest.raises(MechanismError, match="no longer the plan's"):
        linear.step()
    assert linear.mechanism.steps_left == 9


def test_noise_that_can_be_drawn_again_is_refused() -> None:
    sampling = SiteSampling(sample_rate=0.3, expected_patients_per_step=3.0)
    with pytest.raises(MechanismError, match="the noise is reproducible"):
        Mechanism(privacy(sampling), sampling, 1, ReproducibleNoise(0))


def test_a_sampling_that_is_not_of_the_plan_is_refused() -> None:
    sampling = SiteSampling(sample_rate=0.3, expected_patients_per_step=3.0)
    with pytest.raises(MechanismError, match=r"privacy\.sites"):
        Mechanism(privacy(sampling), sampling.model_copy(update={"sample_rate": 0.1}), 1, SecureNoise())


@pytest.mark.parametrize(
    "fields", [{"noise_multiplier": 0.0}, {"noise_multiplier": math.nan}, {"max_grad_norm": math.inf}, {"delta": 0.5}]
)
def test_a_plan_that_validation_would_refuse_is_refused(fields: dict[str, float]) -> None:
    """`model_copy` and `model_construct` go past validation."""
    sampling = SiteSampling(sample_rate=0.3, expected_patients_per_step=3.0)
    with pytest.raises(MechanismError, match=next(iter(fields))):
        Mechanism(privacy(sampling).model_copy(update=fields), sampling, 1, SecureNoise())


@pytest.mark.parametrize("steps", [0, -1, True, 1.5])
def test_steps_must_be_a_positive_number(steps: Any) -> None:
    sampling = SiteSampling(sample_rate=0.3, expected_patients_per_step=3.0)
    with pytest.raises(MechanismError, match="steps"):
        Mechanism(privacy(sampling), sampling, steps, SecureNoise())


@pytest.mark.parametrize("values", [np.zeros(PATIENTS), np.full(PATIENTS, math.nan), np.full(3, 0.5)])
def test_a_broken_source_draws_nobody(values: NDArray[np.float64], monkeypatch: pytest.MonkeyPatch) -> None:
    source = Chosen()
    monkeypatch.setattr(source, "uniform", lambda n: values)
    with pytest.raises(MechanismError, match="noise source is broken"):
        Linear(source).step()


@pytest.mark.parametrize("error", [RuntimeError("out of memory"), KeyboardInterrupt()])
def test_a_step_that_fails_moves_nothing_and_is_spent(error: BaseException) -> None:
    """In the second of three parts; the next step is as if the first had never begun."""
    linear, clean = Linear(Chosen([0, 1, 2, 3, 4], [5, 6])), Linear(Chosen([5, 6]))
    before = linear.weights()
    drawn = linear.mechanism.draw(PATIENTS)
    parts: list[int] = []

    def losses(patients: NDArray[np.int64]) -> Tensor:
        parts.append(len(patients))
        if len(parts) == 2:
            raise error
        return linear.losses(patients)

    with pytest.raises(type(error)):
        linear.mechanism.step(linear.optimiser, drawn, losses, 2)
    assert parts == [2, 2]
    assert np.array_equal(linear.weights(), before)
    assert all(p.grad is None for p in linear.model.parameters())
    assert linear.mechanism.steps_left == 8
    with pytest.raises(MechanismError, match="the last draw"):
        linear.mechanism.step(linear.optimiser, drawn, linear.losses, 2)
    linear.step()
    clean.step()
    assert np.array_equal(linear.weights(), clean.weights())


def test_a_loss_that_is_reduced_is_refused() -> None:
    """A mean over the batch would shrink each gradient by the number drawn: nobody would be clipped."""
    linear = Linear(Chosen([0, 1, 2]))
    with pytest.raises(ClipError, match="one loss a row"):
        linear.mechanism.step(
            linear.optimiser, linear.mechanism.draw(PATIENTS), lambda patients: linear.losses(patients).mean(), 9
        )


def test_physical_patients_must_be_positive() -> None:
    linear = Linear(SecureNoise())
    with pytest.raises(MechanismError, match="physical_patients"):
        linear.step(0)
    assert linear.mechanism.steps_left == 9


def test_noise_is_drawn_ahead_while_gradients_are_made() -> None:
    """The second thread's values are those that are used."""
    source = SecureNoise()
    linear = Linear(source, rate=1.0)
    plain, seen = source.normal, []

    def normal(n: int) -> Tensor:
        assert source._ahead is not None
        made = source._ahead[1].result()
        seen.append(made is plain(n))
        return made

    source.normal = normal  # type: ignore[method-assign]
    linear.step()
    assert seen == [True]


def test_refusals_hold_no_number_that_follows_from_data() -> None:
    """They may travel further than meant: 7 and 11, the drawn and the patients here, are in none of them."""
    linear = Linear(Chosen([0, 1, 2, 3, 4, 5, 6]))
    drawn = linear.mechanism.draw(PATIENTS)
    said = []
    for attempt in (
        lambda: linear.mechanism.draw(PATIENTS),
        lambda: linear.mechanism.step(linear.optimiser, drawn[1:], linear.losses, 4),
        lambda: linear.mechanism.step(linear.optimiser, drawn, lambda p: linear.losses(p)[:-1], 4),
    ):
        with pytest.raises((MechanismError, ClipError)) as caught:
            attempt()
        said.append(str(caught.value))
    assert not any(number in text for text in said for number in ("7", "11", "21"))
