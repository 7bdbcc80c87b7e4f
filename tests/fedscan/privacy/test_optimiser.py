"""fedscan.privacy.optimiser against Opacus' DPOptimizer and DP-SGD written out, and what it refuses."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from opacus.optimizers import DPOptimizer
from torch import Tensor, nn

from fedscan.privacy import optimiser as optimiser_module
from fedscan.privacy.clipping import TOLERANCE, ClipError
from fedscan.privacy.noise import SecureNoise
from fedscan.privacy.optimiser import PatientOptimiser

CLIP, DIVISOR, SIGMA = 1.5, 7.5, 2.0
PATIENTS = 6
SHAPES = [(8, 4, 3, 3), (8,), (5, 1000), (), (1,)]


class Given:
    """Noise that a test decides on."""

    reproducible = True

    def __init__(self, normal: Callable[[int], Tensor] | None = None) -> None:
        self._normal = normal or (lambda n: torch.zeros(n, dtype=torch.float64))

    def uniform(self, n: int) -> NDArray[np.float64]:
        raise AssertionError("an optimiser draws no patients")

    def normal(self, n: int) -> Tensor:
        return self._normal(n)


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def parameters() -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    return [nn.Parameter(torch.randn(shape, generator=generator)) for shape in SHAPES]


def gradients(step: int, patients: int = PATIENTS) -> list[Tensor]:
    """[patients, *shape] each; about half of the patients are longer than CLIP, one thirty times the others."""
    generator = torch.Generator().manual_seed(100 + step)
    scale = torch.linspace(0.01, 0.06, patients)
    scale[patients // 2] *= 30
    return [torch.randn(patients, *s, generator=generator) * scale.view(-1, *[1] * len(s)) for s in SHAPES]


def hand_over(of: list[nn.Parameter], samples: list[Tensor]) -> None:
    for parameter, sample in zip(of, samples, strict=True):
        parameter.grad_sample = sample.clone()  # type: ignore[attr-defined]


def build(of: list[nn.Parameter], noise: Given | SecureNoise | None = None, lr: float = 1.0) -> PatientOptimiser:
    return PatientOptimiser(
        torch.optim.SGD(of, lr=lr),
        noise_multiplier=SIGMA,
        max_grad_norm=CLIP,
        expected_patients=DIVISOR,
        noise=noise or Given(),
    )


def take(optimiser: PatientOptimiser, of: list[nn.Parameter], samples: list[Tensor]) -> None:
    optimiser.begin(len(samples[0]))
    optimiser.expect(len(samples[0]), more=False)
    hand_over(of, samples)
    optimiser.step()


def flat(values: list[Tensor]) -> NDArray[np.float64]:
    return np.concatenate([v.detach().numpy().astype(np.float64).ravel() for v in values])


def by_hand(samples: list[Tensor]) -> NDArray[np.float64]:
    """The sum over patients of their clipped gradients, float64 [values], one patient after the other."""
    total = np.zeros(sum(math.prod(shape) for shape in SHAPES))
    for patient in range(len(samples[0])):
        one = flat([sample[patient] for sample in samples])
        total += one * min(1.0, CLIP / (np.linalg.norm(one) + 1e-6))
    return total


def test_without_noise_it_is_opacus_optimizer_to_1e_7() -> None:
    """Three steps of AdamW with the fixed divisor; gradients and parameters, some patients clipped and some not."""
    own, theirs = parameters(), parameters()
    ours = PatientOptimiser(
        torch.optim.AdamW(own, lr=0.01, fused=True),
        noise_multiplier=SIGMA,
        max_grad_norm=CLIP,
        expected_patients=DIVISOR,
        noise=Given(),
    )
    opacus = DPOptimizer(
        torch.optim.AdamW(theirs, lr=0.01, fused=True),
        noise_multiplier=0.0,
        max_grad_norm=CLIP,
        expected_batch_size=DIVISOR,  # type: ignore[arg-type]
    )
    for step in range(3):
        take(ours, own, gradients(step))
        hand_over(theirs, gradients(step))
        opacus.step()
        one, other = flat([p.grad for p in own]), flat([p.grad for p in theirs])  # type: ignore[misc]
        assert np.abs(one - other).max() < 1e-7
        assert np.abs(one).max() > 0.01
        ours.zero_grad()
        opacus.zero_grad()
    assert np.abs(flat(list(own)) - flat(list(theirs))).max() < 1e-7 * 10  # float32 of values up to 3
    norms = np.linalg.norm([flat([s[p] for s in gradients(0)]) for p in range(PATIENTS)], axis=1)
    assert 0 < (norms > CLIP).sum() < PATIENTS


def test_the_sum_is_dp_sgd_by_hand_and_noised() -> None:
    """The optimiser takes its noise for small parameters first."""
    sizes = [math.prod(shape) for shape in SHAPES]
    noise = torch.randn(sum(sizes), dtype=torch.float64, generator=torch.Generator().manual_seed(9))
    of = parameters()
    take(build(of, Given(lambda n: noise)), of, gradients(0))
    order = sorted(range(len(sizes)), key=lambda at: sizes[at])
    parts = dict(zip(order, noise.split([sizes[at] for at in order]), strict=True))
    by_parameter = flat([parts[at] for at in range(len(sizes))])
    wanted = (by_hand(gradients(0)) + SIGMA * CLIP * (1 + TOLERANCE) * by_parameter) / DIVISOR
    assert np.abs(flat([p.grad for p in of]) - wanted).max() < 1e-7  # type: ignore[misc]


def test_sum_and_noise_are_float64_and_rounded_once() -> None:
    """To the bit: noise in float32, or a sum rounded before it, would leave other low bits (Mironov 2012)."""
    noise = torch.randn(1000, dtype=torch.float64, generator=torch.Generator().manual_seed(9))
    sample = torch.randn(3, 1000, generator=torch.Generator().manual_seed(8)) / 1000
    of = [nn.Parameter(torch.zeros(1000))]
    take(build(of, Given(lambda n: noise)), of, [sample])
    exact = (sample.double().sum(0) + SIGMA * CLIP * (1 + TOLERANCE) * noise) / DIVISOR
    assert of[0].grad is not None
    assert torch.equal(of[0].grad, exact.float())


def test_secure_noise_has_the_plans_standard_deviation() -> None:
    of = [nn.Parameter(torch.zeros(400, 500))]
    take(build(of, SecureNoise()), of, [torch.zeros(3, 400, 500)])
    assert of[0].grad is not None
    assert float(of[0].grad.std()) == pytest.approx(SIGMA * CLIP / DIVISOR, rel=0.01)
    assert abs(float(of[0].grad.mean())) < 5 * SIGMA * CLIP / DIVISOR / math.sqrt(200_000)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, 1e30])
def test_a_patient_that_is_not_finite_counts_as_zero_and_is_counted(bad: float) -> None:
    """Also one whose norm is beyond float32. The others are as if it had not been drawn."""
    samples = gradients(0)
    wanted = flat([torch.from_numpy(by_hand([torch.cat([s[:2], s[3:]]) for s in samples]))]) / DIVISOR
    samples[2][2, 4, 17] = bad
    of = parameters()
    optimiser = build(of)
    take(optimiser, of, samples)
    assert np.abs(flat([p.grad for p in of]) - wanted).max() < 1e-7  # type: ignore[misc]
    assert optimiser.not_finite == 1
    take(optimiser, of, gradients(1))
    assert optimiser.not_finite == 1


def test_nobody_finite_is_noise_alone() -> None:
    of = parameters()
    optimiser = build(of, SecureNoise())
    take(optimiser, of, [torch.full_like(s, math.nan) for s in gradients(0)])
    assert np.isfinite(flat([p.grad for p in of])).all()  # type: ignore[misc]
    assert optimiser.not_finite == PATIENTS


def test_gradients_lie_in_memory_as_their_parameters_do() -> None:
    of = [nn.Parameter(torch.randn(8, 4, 3, 3).to(memory_format=torch.channels_last))]
    sample = torch.randn(2, 8, 4, 3, 3) / 100
    take(build(of), of, [sample])
    assert of[0].grad is not None
    assert of[0].grad.stride() == of[0].stride()
    assert torch.allclose(of[0].grad, sample.sum(0) / DIVISOR, atol=1e-7)


def test_parts_add_up_and_only_the_last_moves_the_parameters() -> None:
    of, whole = parameters(), parameters()
    optimiser, samples = build(of), gradients(0)
    before = flat(list(of))
    optimiser.begin(PATIENTS)
    for part, more in ((slice(0, 4), True), (slice(4, 6), False)):
        assert np.array_equal(flat(list(of)), before)
        optimiser.expect(part.stop - part.start, more=more)
        hand_over(of, [s[part] for s in samples])
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
    take(build(whole), whole, samples)
    assert not np.array_equal(flat(list(of)), before)
    assert np.abs(flat(list(of)) - flat(list(whole))).max() < 1e-6


def test_a_skip_signal_that_was_left_over_shifts_nothing() -> None:
    """Opacus keeps the signals in a queue: one too many, and each later step does what was meant for the one before."""
    of = parameters()
    optimiser = build(of)
    optimiser.begin(PATIENTS)
    optimiser.signal_skip_step(True)
    optimiser.expect(PATIENTS, more=False)
    hand_over(of, gradients(0))
    before = flat(list(of))
    optimiser.step()
    assert not np.array_equal(flat(list(of)), before)


@pytest.mark.parametrize("engine", ["loose", "by layer", "not at all"])
def test_a_clip_bug_is_caught_where_it_happens(engine: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Planted: three times too loose; each layer clipped for itself; factors that were forgotten."""
    if engine == "loose":
        right = optimiser_module.clip_factors
        monkeypatch.setattr(optimiser_module, "clip_factors", lambda norms, bound: right(norms, 3 * bound))
    elif engine == "by layer":
        norms = optimiser_module.squared_norms
        monkeypatch.setattr(optimiser_module, "squared_norms", lambda rows: norms(rows[:, :8]))
    else:
        monkeypatch.setattr(optimiser_module, "clip_factors", lambda norms, bound: torch.ones_like(norms))
    of = parameters()
    before = flat(list(of))
    with pytest.raises(ClipError, match="longer than max_grad_norm"):
        take(build(of), of, gradients(0))
    assert np.array_equal(flat(list(of)), before)
    assert all(p.grad is None for p in of)


@pytest.mark.parametrize("rows", [PATIENTS * 4, PATIENTS - 1, 0])
def test_rows_that_are_not_the_drawn_patients_are_refused(rows: int) -> None:
    """Slices handed over as patients would each be clipped to the whole bound."""
    of = parameters()
    optimiser = build(of)
    optimiser.begin(PATIENTS)
    optimiser.expect(PATIENTS, more=False)
    hand_over(of, [torch.zeros(rows, *shape) for shape in SHAPES])
    with pytest.raises(ClipError, match="not the drawn patients"):
        optimiser.step()


def test_a_sum_without_all_drawn_patients_gets_no_noise() -> None:
    of = parameters()
    optimiser = build(of)
    optimiser.begin(PATIENTS + 1)
    optimiser.expect(PATIENTS, more=False)
    hand_over(of, gradients(0))
    with pytest.raises(ClipError, match="exactly the drawn patients"):
        optimiser.step()


def test_a_step_that_nobody_announced_is_refused() -> None:
    """Opacus' own calls would take it."""
    of = parameters()
    optimiser = build(of)
    hand_over(of, gradients(0))
    for call in (optimiser.step, optimiser.pre_step, optimiser.clip_and_accumulate, optimiser.add_noise):
        with pytest.raises(ClipError, match=r"Mechanism\.step"):
            call()
    take(optimiser, of, gradients(0))
    with pytest.raises(ClipError, match="no draw was announced"):
        optimiser.step()


def test_a_sum_without_noise_is_not_handed_over() -> None:
    of = parameters()
    optimiser = build(of)
    optimiser.begin(PATIENTS)
    optimiser.expect(PATIENTS, more=True)
    hand_over(of, gradients(0))
    optimiser.step()
    with pytest.raises(ClipError, match="no noise yet"):
        optimiser.scale_grad()
    assert all(p.grad is None for p in of)


def test_an_unfinished_step_must_be_discarded() -> None:
    of = parameters()
    optimiser = build(of)
    optimiser.begin(PATIENTS)
    optimiser.expect(PATIENTS, more=True)
    hand_over(of, gradients(0))
    optimiser.step()
    with pytest.raises(ClipError, match="not finished"):
        optimiser.begin(PATIENTS)
    optimiser.discard()
    take(optimiser, of, gradients(1))
    assert np.abs(flat([p.grad for p in of]) - by_hand(gradients(1)) / DIVISOR).max() < 1e-7  # type: ignore[misc]


def test_gradients_are_not_used_twice() -> None:
    of = parameters()
    optimiser = build(of)
    optimiser.begin(2 * PATIENTS)
    optimiser.expect(PATIENTS, more=True)
    hand_over(of, gradients(0))
    optimiser.step()
    optimiser.expect(PATIENTS, more=False)
    with pytest.raises(ValueError, match="haven't been cleared"):
        optimiser.step()


@pytest.mark.parametrize("wrong", ["missing", "list"])
def test_every_parameter_needs_gradients_of_one_batch(wrong: str) -> None:
    of = parameters()
    optimiser = build(of)
    optimiser.begin(PATIENTS)
    optimiser.expect(PATIENTS, more=False)
    hand_over(of, gradients(0))
    of[1].grad_sample = None if wrong == "missing" else [of[1].grad_sample]  # type: ignore[attr-defined]
    with pytest.raises(ClipError, match="no per-patient gradient of one batch"):
        optimiser.step()


def test_parameters_of_several_precisions_are_refused() -> None:
    with pytest.raises(ValueError, match="of one precision"):
        build([nn.Parameter(torch.zeros(3)), nn.Parameter(torch.zeros(3, dtype=torch.float64))])


def test_parameters_cannot_slip_past_the_noise() -> None:
    """A parameter that is frozen, or joins later, would be moved by whatever its `grad` holds."""
    of = parameters()
    of[0].requires_grad_(False)
    with pytest.raises(ValueError, match="parameters that train"):
        build(of)
    of = parameters()
    optimiser = build(of)
    of[0].requires_grad_(False)
    with pytest.raises(ClipError, match="parameters of the optimiser changed"):
        optimiser.begin(1)
    of[0].requires_grad_(True)
    optimiser.original_optimizer.add_param_group({"params": [nn.Parameter(torch.zeros(2))]})
    with pytest.raises(ClipError, match="parameters of the optimiser changed"):
        optimiser.begin(1)


@pytest.mark.parametrize("noise", [torch.zeros(3, dtype=torch.float64), torch.zeros(1)])
def test_noise_of_another_form_is_refused(noise: Tensor) -> None:
    """float32 [1] would be broadcast over all values."""
    of = parameters()
    with pytest.raises(ClipError, match="noise must be float64"):
        take(build(of, Given(lambda n: noise)), of, gradients(0))


@pytest.mark.parametrize("value", [0.0, -1.0, math.inf, math.nan])
@pytest.mark.parametrize("name", ["noise_multiplier", "max_grad_norm", "expected_patients"])
def test_numbers_that_protect_nobody_are_refused(name: str, value: float) -> None:
    numbers = {"noise_multiplier": SIGMA, "max_grad_norm": CLIP, "expected_patients": DIVISOR, name: value}
    with pytest.raises(ValueError, match=name):
        PatientOptimiser(torch.optim.SGD(parameters(), lr=1.0), noise=Given(), **numbers)


def test_a_closure_or_a_copy_is_refused() -> None:
    optimiser = build(parameters())
    with pytest.raises(ClipError, match="no closure"):
        optimiser.step(lambda: 0.0)
    with pytest.raises(TypeError, match="cannot be copied"):
        copy.deepcopy(optimiser)
