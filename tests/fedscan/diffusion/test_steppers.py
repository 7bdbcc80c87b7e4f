"""fedscan.diffusion.steppers: updates against their formulas, MONAI and quadrature."""

import math

import numpy as np
import pytest
import torch
from monai.networks.schedulers import DDIMScheduler, DDPMScheduler
from scipy.integrate import quad
from torch import Tensor

from fedscan.diffusion import steppers
from fedscan.diffusion.schedule import Schedule
from fedscan.plan import DiffusionPlan

SCHEDULE = Schedule.from_plan(DiffusionPlan(schedule="linear_beta"))


def pair(seed: int = 0) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(seed)
    return torch.randn(2, 1, 8, 8, generator=g), torch.rand(2, 1, 8, 8, generator=g) * 2 - 1


@pytest.mark.parametrize(("variance", "theirs"), [("posterior", "fixed_small"), ("beta", "fixed_large")])
def test_ddpm_step_as_monai(variance: str, theirs: str) -> None:
    x, x0 = pair()
    scheduler = DDPMScheduler(schedule="linear_beta", variance_type=theirs, prediction_type="sample")
    for t in (999, 500, 1):
        wanted, _ = scheduler.step(x0, t, x, generator=torch.Generator().manual_seed(4))
        noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(4))
        got = steppers.ddpm(SCHEDULE, variance)(x, x0, t, t - 1, lambda noise=noise: noise)
        torch.testing.assert_close(got, wanted, rtol=0, atol=2e-4)  # theirs takes 1 - abar in float32
    assert torch.equal(steppers.ddpm(SCHEDULE, variance)(x, x0, 0, None, lambda: x), x0)


def test_ddim_step_as_monai_where_its_times_are_its_steps() -> None:
    x, x0 = pair()
    scheduler = DDIMScheduler(schedule="linear_beta", prediction_type="sample")
    scheduler.set_timesteps(1000)
    for t in (999, 500, 1):
        wanted, _ = scheduler.step(x0, t, x, eta=0.0)
        got = steppers.ddim(SCHEDULE, 0.0)(x, x0, t, t - 1, lambda: x)
        torch.testing.assert_close(got, wanted, rtol=0, atol=2e-5)


def test_trap_monai_ddim_steps_past_its_own_times() -> None:
    """With 10 steps MONAI asks at 999 and then at 888, but moves to 899's level; ours moves to where it asks next."""
    x, x0 = pair()
    scheduler = DDIMScheduler(schedule="linear_beta", prediction_type="sample")
    scheduler.set_timesteps(10)
    first, second = (int(t) for t in scheduler.timesteps[:2])
    theirs, _ = scheduler.step(x0, first, x, eta=0.0)
    ours = steppers.ddim(SCHEDULE, 0.0)
    assert first - second != 100
    torch.testing.assert_close(theirs, ours(x, x0, first, first - 100, lambda: x), rtol=0, atol=2e-5)
    assert not torch.allclose(theirs, ours(x, x0, first, second, lambda: x), atol=1e-3)


def test_ancestral_ddim_is_ddpm_with_the_posterior_variance() -> None:
    x, x0 = pair()
    noise = pair(1)[0]
    a = steppers.ddim(SCHEDULE, 1.0)(x, x0, 800, 300, lambda: noise)
    b = steppers.ddpm(SCHEDULE, "posterior")(x, x0, 800, 300, lambda: noise)
    torch.testing.assert_close(a, b, rtol=0, atol=1e-5)


def test_first_order_solvers_are_ddim_and_ancestral_ddpm() -> None:
    """With one estimate the exponential integral is DDIM's formula (Lu et al. 2022), or its stochastic twin."""
    x, x0 = pair()
    noise = pair(1)[0]
    plain = steppers.multistep(SCHEDULE, 1, corrector=False, stochastic=False)(x, x0, 800, 300, lambda: noise)
    torch.testing.assert_close(plain, steppers.ddim(SCHEDULE, 0.0)(x, x0, 800, 300, lambda: noise), rtol=0, atol=1e-5)
    random = steppers.multistep(SCHEDULE, 1, corrector=False, stochastic=True)(x, x0, 800, 300, lambda: noise)
    ancestral = steppers.ddpm(SCHEDULE, "posterior")(x, x0, 800, 300, lambda: noise)
    torch.testing.assert_close(random, ancestral, rtol=0, atol=1e-5)


@pytest.mark.parametrize("rate", [1.0, 2.0])
@pytest.mark.parametrize("h", [0.05, 0.7, 5.0])
def test_integral_weights_against_quadrature(rate: float, h: float) -> None:
    nodes = [h, 0.0, -0.4]
    weights = steppers.integral_weights(nodes, h, rate)
    for coefficients in ([1.0], [0.3, -2.0], [0.5, 1.0, 0.25]):
        p = np.polynomial.Polynomial(coefficients)
        wanted, _ = quad(lambda u, p=p: rate * math.exp(rate * (u - h)) * p(u), 0.0, h, epsabs=1e-12)
        got = sum(w * p(node) for w, node in zip(weights, nodes, strict=True))
        assert got == pytest.approx(wanted, rel=1e-7, abs=1e-10)
