"""fedscan.diffusion.schedule against MONAI's schedules of the same names."""

import math

import pytest
import torch
from monai.networks.schedulers import DDPMScheduler

from fedscan.diffusion.schedule import Schedule
from fedscan.plan import DiffusionPlan

NAMES = ["cosine", "linear_beta", "scaled_linear_beta", "sigmoid_beta"]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("steps", [50, 1000])
def test_as_monai(name: str, steps: int) -> None:
    ours = Schedule.from_plan(DiffusionPlan(schedule=name, num_train_timesteps=steps, prediction="sample"))
    theirs = DDPMScheduler(num_train_timesteps=steps, schedule=name).alphas_cumprod
    assert ours.abar.dtype == torch.float64
    assert ours.steps == steps
    # theirs is a float32 product: its own rounding is all that may differ
    torch.testing.assert_close(ours.abar.float(), theirs, rtol=1e-3, atol=5e-7)
    torch.testing.assert_close(ours.abar.sqrt().float(), theirs.sqrt(), rtol=5e-4, atol=5e-7)


@pytest.mark.parametrize(
    ("name", "signal"),
    [("cosine", 4.9e-5), ("linear_beta", 0.0064), ("sigmoid_beta", 0.0063), ("scaled_linear_beta", 0.027)],
)
def test_terminal_signal(name: str, signal: float) -> None:
    schedule = Schedule.from_plan(DiffusionPlan(schedule=name))
    assert schedule.terminal_signal == pytest.approx(signal, rel=0.02)


def test_first_step_in_double_precision() -> None:
    """1 - abar_0 is 4e-5: a float32 table has it to three digits only, half precision as 0."""
    s = 8e-3
    exact = 1 - (math.cos((0.001 + s) / (1 + s) * math.pi / 2) / math.cos(s / (1 + s) * math.pi / 2)) ** 2
    abar = Schedule.from_plan(DiffusionPlan()).abar
    assert float(1 - abar[0]) == pytest.approx(exact, rel=1e-10)


def test_values_of_t_are_checked() -> None:
    schedule = Schedule.from_plan(DiffusionPlan())
    schedule.check(torch.tensor([0, 999]))
    schedule.check(torch.empty(0, dtype=torch.int64))
    for bad in ([-1, 5], [5, 1000]):
        with pytest.raises(ValueError, match=rf"0\.\.999, got {min(bad)}\.\.{max(bad)}"):
            schedule.check(torch.tensor(bad))
    with pytest.raises(TypeError, match="int64"):
        schedule.check(torch.tensor([0.5]))
    with pytest.raises(TypeError, match="int64"):
        schedule.check(torch.tensor(3))


def test_coefficients_are_a_unit_circle() -> None:
    schedule = Schedule.from_plan(DiffusionPlan())
    t = torch.arange(1000)
    assert schedule.signal(t).dtype == torch.float32
    torch.testing.assert_close(schedule.signal(t) ** 2 + schedule.noise(t) ** 2, torch.ones(1000))


def test_a_schedule_must_fall() -> None:
    with pytest.raises(ValueError, match="must fall"):
        Schedule(torch.tensor([0.5, 0.6], dtype=torch.float64))
    with pytest.raises(TypeError, match="float64"):
        Schedule(torch.tensor([0.6, 0.5]))
