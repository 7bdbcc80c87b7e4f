"""fedscan.diffusion.samplers on exact denoisers (what is wrong then is the sampler's), and slice by slice."""

import itertools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from monai.networks.schedulers import DDPMScheduler
from torch import Tensor

from fedscan.diffusion.network import build_network
from fedscan.diffusion.samplers import Settings, sample, slice_generator, step_times
from fedscan.diffusion.schedule import Schedule
from fedscan.plan import DiffusionPlan, ModelPlan

GAUSSIANS = [(-1.0, 0.5), (-0.5, 0.2), (0.0, 1.0), (0.3, 0.1)]
AIR = ((0.6, -1.0, 0.02), (0.4, 0.1, 0.15))
SLICES = 8


def schedule(name: str) -> Schedule:
    return Schedule.from_plan(DiffusionPlan(schedule=name))


def mixture(s: Schedule, parts: tuple[tuple[float, float, float], ...]) -> Callable[..., Tensor]:
    """E[x0 | x_t] for independent pixels of a mixture of (share, mean, deviation)."""

    def denoise(x: Tensor, t: Tensor, labels: Tensor | None = None) -> Tensor:
        a = float(s.abar[int(t[0])])
        logs, means = [], []
        for share, mean, deviation in parts:
            variance = a * deviation**2 + 1 - a
            off = x - math.sqrt(a) * mean
            logs.append(math.log(share) - 0.5 * math.log(variance) - off**2 / (2 * variance))
            means.append(mean + math.sqrt(a) * deviation**2 / variance * off)
        return (torch.softmax(torch.stack(logs), 0) * torch.stack(means)).sum(0)

    return denoise


def as_v(s: Schedule, denoise: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """The same denoiser, saying v."""

    def say(x: Tensor, t: Tensor, labels: Tensor | None = None) -> Tensor:
        a = float(s.abar[int(t[0])])
        return (math.sqrt(a) * x - denoise(x, t)) / math.sqrt(1 - a)

    return say


def draw(
    s: Schedule, denoise: Any, settings: Settings, prediction: Any = "sample", slices: int = SLICES, size: int = 64
) -> Tensor:
    generators = [slice_generator(3, i) for i in range(slices)]
    return sample(denoise, s, prediction, generators, settings, size=size)


FAITHFUL = {
    # sampler: bound on the mean's error, bound on the deviation's (share). The standard error is 0.004 of either.
    # The posterior variance is exact for a point and loses spread of narrow data: 0.096 for 0.1, also with 1000 steps.
    "ddpm": (Settings(sampler="ddpm", clip=False), 0.015, 0.045),
    "ddpm beta": (Settings(sampler="ddpm", variance="beta", clip=False), 0.015, 0.02),
    "sa_solver 30": (Settings(sampler="sa_solver", steps=30, clip=False), 0.015, 0.025),
    "sa_solver 25": (Settings(sampler="sa_solver", steps=25, clip=False), 0.015, 0.035),
    "dpmpp 30": (Settings(sampler="dpmpp", steps=30, clip=False), 0.015, 0.06),
    "ddim 200": (Settings(sampler="ddim", steps=200, clip=False), 0.015, 0.07),
}


@pytest.mark.parametrize("name", ["cosine", "linear_beta"])
@pytest.mark.parametrize("sampler", FAITHFUL)
def test_mean_and_deviation_come_out(name: str, sampler: str) -> None:
    """Exact denoisers of the four Gaussians at once, two slices each."""
    s = schedule(name)
    settings, mean_within, share_within = FAITHFUL[sampler]
    mean, deviation = (torch.tensor(column).repeat_interleave(2) for column in zip(*GAUSSIANS, strict=True))

    def denoise(x: Tensor, t: Tensor, labels: Tensor | None = None) -> Tensor:
        a = float(s.abar[int(t[0])])
        m, variance = mean.view(-1, 1, 1, 1), deviation.view(-1, 1, 1, 1) ** 2
        return m + math.sqrt(a) * variance / (a * variance + 1 - a) * (x - math.sqrt(a) * m)

    out = draw(s, denoise, settings, size=128).view(4, -1)
    for values, (wanted_mean, wanted_deviation) in zip(out, GAUSSIANS, strict=True):
        assert float(values.mean()) == pytest.approx(wanted_mean, abs=mean_within)
        assert float(values.std()) == pytest.approx(wanted_deviation, rel=share_within)


def test_v_prediction_draws_the_same() -> None:
    s = schedule("cosine")
    denoise = mixture(s, ((1.0, -1.0, 0.5),))
    settings = Settings(steps=25, clip=False)
    a, b = draw(s, denoise, settings, slices=1), draw(s, as_v(s, denoise), settings, "v_prediction", slices=1)
    torch.testing.assert_close(a, b, rtol=0, atol=1e-2)


def test_trap_monai_ddpm_with_fewer_steps_is_noise_and_ours_is_not() -> None:
    """MONAI steps by 1 whatever the times are: mean -0.14 instead of -1. Ours goes to the true next level."""
    s = schedule("linear_beta")
    denoise = mixture(s, ((1.0, -1.0, 0.5),))
    theirs = DDPMScheduler(schedule="linear_beta", prediction_type="sample", clip_sample=False)
    theirs.set_timesteps(50)
    g = torch.Generator().manual_seed(0)
    x = torch.randn(SLICES, 1, 64, 64, generator=g)
    for t in theirs.timesteps:
        x, _ = theirs.step(denoise(x, t[None]), int(t), x, generator=g)
    assert float(x.mean()) > -0.3
    ours = draw(s, denoise, Settings(sampler="ddpm", steps=50, clip=False))
    assert float(ours.mean()) == pytest.approx(-1.0, abs=0.02)


@pytest.mark.parametrize("name", ["cosine", "linear_beta"])
def test_few_steps_draw_air_and_tissue_as_ddpm_does(name: str) -> None:
    """60 % air, sharp at -1; tissue around 0.1: shares and spreads of 1000 steps in 25."""
    s = schedule(name)
    denoise = mixture(s, AIR)
    long, short = draw(s, denoise, Settings(sampler="ddpm")), draw(s, denoise, Settings(sampler="sa_solver", steps=25))
    for out in (long, short):
        assert float((out < -0.6).float().mean()) == pytest.approx(0.6, abs=0.015)
        assert float(out[out < -0.6].mean()) == pytest.approx(-1.0, abs=0.02)
        assert float(out[out > -0.6].std()) == pytest.approx(0.15, abs=0.025)
        assert float(out.min()) >= -1.0


def brightness(s: Schedule, mean: float, deviation: float) -> Callable[..., Tensor]:
    """Exact denoiser of flat slices whose one brightness is N(mean, deviation^2)."""

    def denoise(x: Tensor, t: Tensor, labels: Tensor | None = None) -> Tensor:
        a = float(s.abar[int(t[0])])
        precision = a * x[0].numel() * deviation**2
        off = x.mean((1, 2, 3), keepdim=True) / math.sqrt(a) - mean
        return (mean + precision / (precision + 1 - a) * off).expand_as(x)

    return denoise


@pytest.mark.parametrize("sampler", ["sa_solver", "ddim"])
def test_terminal_signal_greys_the_air_unless_it_is_negligible(sampler: Any) -> None:
    """Brightness N(-0.6, 0.2^2) comes out as it is with cosine, and grey with scaled_linear_beta, which ends at 0.027.

    Probability flow, exactly: mean (1 - r 64 d / sqrt(r^2 64^2 d^2 + 1 - r^2)), r the terminal signal.
    """
    settings = Settings(sampler=sampler, steps=30 if sampler == "sa_solver" else 200, clip=False)
    means = {}
    for name in ("cosine", "scaled_linear_beta"):
        s = schedule(name)
        out = draw(s, brightness(s, -0.6, 0.2), settings, slices=96)
        means[name] = float(out.mean())
        if name == "cosine":
            assert float(out.mean((1, 2, 3)).std()) == pytest.approx(0.2, abs=0.045)
    assert means["cosine"] == pytest.approx(-0.6, abs=0.06)
    if sampler == "ddim":
        r = schedule("scaled_linear_beta").terminal_signal
        wanted = -0.6 * (1 - r * 12.8 / math.sqrt((r * 12.8) ** 2 + 1 - r**2))
        assert means["scaled_linear_beta"] == pytest.approx(wanted, abs=0.06)
        assert wanted > -0.45


@pytest.mark.parametrize("sampler", ["sa_solver", "dpmpp", "ddim", "ddpm"])
@pytest.mark.parametrize("steps", [1, 2, 7, 30, 50])
def test_times_fall_from_the_last_step_to_the_first(sampler: Any, steps: int) -> None:
    for s in (schedule("cosine"), Schedule.from_plan(DiffusionPlan(num_train_timesteps=50))):
        times = step_times(s, Settings(sampler=sampler, steps=steps))
        assert len(times) == steps
        assert times[0] == s.steps - 1
        assert all(a > b for a, b in itertools.pairwise(times))
        assert steps == 1 or times[-1] == 0


def test_defaults() -> None:
    s = schedule("cosine")
    assert len(step_times(s, Settings())) == 25
    assert step_times(s, Settings(sampler="ddpm")) == list(range(999, -1, -1))
    with pytest.raises(ValueError, match="at most 1000"):
        step_times(s, Settings(steps=1001))


def trained_like(classes: tuple[str, ...] = ()) -> torch.nn.Module:
    network = build_network(ModelPlan(preset="tiny", classes=classes, size=32), torch.Generator().manual_seed(0))
    g = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=g))
    return network


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("sampler", ["sa_solver", "ddpm"])
def test_a_slice_is_the_same_to_the_bit_however_many_are_drawn(precision: Any, sampler: Any) -> None:
    s, network = schedule("cosine"), trained_like(("a", "b"))

    def drawn(indices: range) -> Tensor:
        labels = torch.tensor([i % 3 for i in indices])
        generators = [slice_generator(5, i) for i in indices]
        settings = Settings(sampler=sampler, steps=4)
        return sample(network, s, "sample", generators, settings, size=32, labels=labels, precision=precision, batch=4)

    whole = drawn(range(10))
    parts = torch.cat([drawn(range(3)), drawn(range(3, 4)), drawn(range(4, 10))])
    assert whole.shape == (10, 1, 32, 32)
    assert torch.equal(whole, parts)
    assert torch.equal(whole, drawn(range(10)))
    assert len({row.numpy().tobytes() for row in whole}) == 10


def test_generators_are_keyed_by_seed_and_index() -> None:
    keys = [(0, 1), (1, 0), (1, 11), (11, 1), (111, 0), (0, 2)]
    first = {torch.randn(4, generator=slice_generator(*key)).numpy().tobytes() for key in keys}
    assert len(first) == len(keys)
    again = [torch.randn(4, generator=slice_generator(7, 3)) for _ in range(2)]
    assert torch.equal(again[0], again[1])


def test_guidance_and_labels() -> None:
    s = schedule("cosine")

    def denoise(x: Tensor, t: Tensor, labels: Tensor | None = None) -> Tensor:
        say = torch.full_like(x, 0.1) if labels is None else 0.1 + 0.2 * labels.view(-1, 1, 1, 1).float()
        return say.expand_as(x)

    labels = torch.tensor([0, 1, 2])
    generators = [slice_generator(0, i) for i in range(3)]
    out = sample(denoise, s, "sample", generators, Settings(steps=3, guidance=2.0), size=8, labels=labels)
    # (1 + w) label - w none; the last is 0.1 + 3 * 0.4 = 1.3, clipped
    np.testing.assert_allclose(out.mean((1, 2, 3)), [0.1, 0.7, 1.0], atol=1e-6)
    with pytest.raises(ValueError, match="guidance needs labels"):
        sample(denoise, s, "sample", generators, Settings(guidance=1.0), size=8)
    with pytest.raises(ValueError, match=r"labels must be int64 \[3\]"):
        sample(denoise, s, "sample", generators, Settings(), size=8, labels=torch.tensor([0, 1]))


def test_clipping_is_optional() -> None:
    s = schedule("cosine")
    far = mixture(s, ((1.0, -1.5, 0.1),))
    assert float(draw(s, far, Settings(), slices=1).min()) == -1.0
    assert float(draw(s, far, Settings(clip=False), slices=1).mean()) == pytest.approx(-1.5, abs=0.02)


def test_progress_empty_draw_and_no_gradient() -> None:
    s, calls = schedule("cosine"), []
    network = trained_like()
    generators = [slice_generator(0, i) for i in range(3)]
    settings = Settings(steps=2)
    out = sample(network, s, "sample", generators, settings, size=32, batch=2, progress=lambda *a: calls.append(a))
    assert calls == [(1, 4), (2, 4), (3, 4), (4, 4)]
    assert not out.requires_grad
    assert sample(network, s, "sample", [], settings, size=32).shape == (0, 1, 32, 32)


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"sampler": "pndm"}, "sampler must be one of"),
        ({"steps": 0}, "steps must be at least 1, got 0"),
        ({"eta": 1.5}, r"eta must lie in 0\.\.1"),
        ({"variance": "learned"}, "variance must be"),
        ({"guidance": float("nan")}, "guidance must be finite"),
    ],
)
def test_settings_are_checked(wrong: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        Settings(**wrong)
