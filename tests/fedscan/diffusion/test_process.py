"""fedscan.diffusion.process: as MONAI where MONAI is right, and right where it is not."""

from typing import Any

import pytest
import torch
from monai.networks.schedulers import DDIMScheduler, DDPMScheduler
from torch import Tensor

from fedscan.diffusion.network import build_network
from fedscan.diffusion.process import (
    add_noise,
    loss_per_slice,
    loss_weight,
    target,
    to_epsilon,
    to_x0,
    velocity,
)
from fedscan.diffusion.schedule import Schedule
from fedscan.plan import DiffusionPlan, ModelPlan

NAMES = ["cosine", "linear_beta", "scaled_linear_beta", "sigmoid_beta"]
PREDICTIONS = ["sample", "v_prediction", "epsilon"]
T = torch.tensor([0, 1, 250, 700, 990])


def batch(seed: int = 0) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(seed)
    return torch.rand(5, 1, 16, 16, generator=g) * 2 - 1, torch.randn(5, 1, 16, 16, generator=g)


def schedule(name: str = "cosine") -> Schedule:
    return Schedule.from_plan(DiffusionPlan(schedule=name))


@pytest.mark.parametrize("name", NAMES)
def test_noising_and_velocity_as_monai(name: str) -> None:
    x0, noise = batch()
    theirs = DDPMScheduler(schedule=name)
    torch.testing.assert_close(
        add_noise(schedule(name), x0, noise, T), theirs.add_noise(x0, noise, T), rtol=0, atol=1e-4
    )
    torch.testing.assert_close(
        velocity(schedule(name), x0, noise, T), theirs.get_velocity(x0, noise, T), rtol=0, atol=1e-4
    )


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_the_target_leads_back_to_the_slice_and_the_noise(prediction: Any) -> None:
    x0, noise = batch()
    s = schedule("linear_beta")
    x = add_noise(s, x0, noise, T)
    back = to_x0(s, prediction, target(s, prediction, x0, noise, T), x, T)
    torch.testing.assert_close(back, x0, rtol=0, atol=2e-4)  # epsilon divides by sqrt(abar) = 0.0066
    torch.testing.assert_close(to_epsilon(s, x0, x, T)[2:], noise[2:], rtol=0, atol=1e-4)


def test_errors_of_the_three_meanings_are_one_error() -> None:
    """|v error|^2 alpha^2 = |epsilon error|^2 and |x0 error|^2 = (1 - alpha^2) |v error|^2."""
    x0, noise = batch()
    s, t = schedule("linear_beta"), torch.tensor([50, 200, 400, 600, 900])
    x = add_noise(s, x0, noise, t)
    wrong = velocity(s, x0, noise, t) + 0.3
    clean = to_x0(s, "v_prediction", wrong, x, t)
    alpha = s.signal(t).view(-1, 1, 1, 1)
    v_error = (wrong - velocity(s, x0, noise, t)).square()
    epsilon_error = (to_epsilon(s, clean, x, t) - noise).square()
    torch.testing.assert_close(v_error * alpha**2, epsilon_error, rtol=2e-3, atol=1e-5)
    torch.testing.assert_close((clean - x0).square(), (1 - alpha**2) * v_error, rtol=2e-3, atol=1e-5)


@pytest.mark.parametrize("weighting", ["v", "epsilon", "min_snr"])
def test_a_weighting_is_the_same_loss_in_whatever_the_network_says(weighting: Any) -> None:
    x0, noise = batch()
    s, t = schedule("linear_beta"), torch.tensor([200, 300, 400, 500, 600])
    x = add_noise(s, x0, noise, t)
    clean = x0 + 0.1 * torch.randn(x0.shape, generator=torch.Generator().manual_seed(3))
    losses = []
    for prediction in PREDICTIONS:
        plan = DiffusionPlan(schedule="linear_beta", prediction=prediction, loss_weighting=weighting, weight_floor=1e-6)
        said = target(s, prediction, clean, to_epsilon(s, clean, x, t), t)
        losses.append(loss_per_slice(lambda *_, said=said: said, s, plan, x0, t, noise))
    torch.testing.assert_close(losses[0], losses[1], rtol=2e-3, atol=0)
    torch.testing.assert_close(losses[0], losses[2], rtol=2e-3, atol=0)


def test_weights_by_hand() -> None:
    s, t = schedule(), torch.arange(1000)
    abar = s.abar.float()
    for prediction, weighting, wanted in (
        ("sample", "uniform", torch.ones(1000)),
        ("sample", "v", 1 / (1 - abar).clamp(min=0.05)),
        ("sample", "epsilon", abar / (1 - abar).clamp(min=0.05)),
        ("sample", "min_snr", (s.abar / (1 - s.abar)).float().clamp(max=5)),
        ("v_prediction", "v", torch.ones(1000)),
        ("v_prediction", "epsilon", abar),  # SNR / (1 + SNR): the paper's
    ):
        weight = loss_weight(s, DiffusionPlan(prediction=prediction, loss_weighting=weighting), t)
        assert weight.dtype == torch.float32
        torch.testing.assert_close(weight, wanted, rtol=1e-5, atol=1e-7)
    assert float(loss_weight(s, DiffusionPlan(weight_floor=0.2), torch.tensor([0]))) == pytest.approx(5.0)


def test_loss_is_unreduced_float32_and_known_for_a_fresh_network() -> None:
    """A fresh network says 0, so its loss is the weight times the mean square of the target."""
    g = torch.Generator().manual_seed(1)
    x0, noise = torch.rand(3, 1, 64, 64, generator=g) * 2 - 1, torch.randn(3, 1, 64, 64, generator=g)
    t = torch.tensor([0, 500, 999])
    network = build_network(ModelPlan(preset="tiny"), g)
    plan = DiffusionPlan()
    for precision in ("fp32", "bf16"):
        loss = loss_per_slice(network, schedule(), plan, x0, t, noise, precision=precision)
        assert loss.shape == (3,)
        assert loss.dtype == torch.float32
        assert loss.requires_grad
        wanted = x0.square().mean((1, 2, 3)) / (1 - schedule().abar[t]).clamp(min=0.05).float()
        torch.testing.assert_close(loss.detach(), wanted)


def test_labels_reach_the_network() -> None:
    seen = []

    def network(x: Tensor, t: Tensor, labels: Tensor | None = None) -> Tensor:
        seen.append(labels)
        return x

    x0, noise = batch()
    loss_per_slice(network, schedule(), DiffusionPlan(), x0, T, noise, torch.arange(5))
    assert seen[0].tolist() == [0, 1, 2, 3, 4]


def test_trap_steps_out_of_range() -> None:
    """MONAI takes t = -1 for the last step and says nothing."""
    x0, noise = batch()
    bad = torch.tensor([-1, 0, 1, 2, 3])
    DDPMScheduler().add_noise(x0, noise, bad)
    with pytest.raises(ValueError, match=r"t must lie in 0\.\.999, got -1\.\.3"):
        add_noise(schedule(), x0, noise, bad)
    with pytest.raises(ValueError, match=r"t must lie in 0\.\.999, got -1\.\.3"):
        loss_per_slice(lambda x, t, labels=None: x, schedule(), DiffusionPlan(), x0, bad, noise)


def test_trap_half_precision_spoils_the_schedule_for_good() -> None:
    """MONAI casts its table to the batch's type; ours refuses the batch, and its table stays float64."""
    x0, noise = batch()
    theirs = DDPMScheduler(schedule="cosine")
    theirs.add_noise(x0.bfloat16(), noise.bfloat16(), T)
    assert float(theirs.alphas_cumprod[0]) == 1.0  # for good: 1 - abar_0 is 0 from now on
    ours = schedule()
    before = ours.abar.clone()
    for half in (torch.bfloat16, torch.float16, torch.float64):
        with pytest.raises(TypeError, match="must be float32"):
            add_noise(ours, x0.to(half), noise.to(half), T)
    assert ours.abar.dtype == torch.float64
    assert torch.equal(ours.abar, before)


def test_trap_no_state_in_schedules() -> None:
    """MONAI's schedulers are modules whose tables neither move nor are saved; ours is a table."""
    assert not DDIMScheduler().state_dict()
    assert not isinstance(schedule(), torch.nn.Module)


def test_formulas_run_under_vmap() -> None:
    """A patient's loss is taken under vmap; checks of values would raise there."""
    x0, noise = batch()
    s = schedule()
    each = torch.func.vmap(lambda x, n, t: target(s, "v_prediction", x[None], n[None], t[None])[0])(x0, noise, T)
    torch.testing.assert_close(each, velocity(s, x0, noise, T))
