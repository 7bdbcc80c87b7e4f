from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import nn

from fedscan.plan import Plan
from fedscan.training.optimiser import build_optimiser, learning_rate, state_of


def _adamw(w: np.ndarray, gradients: list[np.ndarray], lr: float, decay: float) -> np.ndarray:
    """Loshchilov and Hutter 2019, algorithm 2, in float64."""
    m, v = np.zeros_like(w), np.zeros_like(w)
    for step, g in enumerate(gradients, 1):
        m, v = 0.9 * m + 0.1 * g, 0.99 * v + 0.01 * g * g
        w = w - lr * decay * w - lr * (m / (1 - 0.9**step)) / (np.sqrt(v / (1 - 0.99**step)) + 1e-8)
    return w


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("split", [0, 1, 3])
def test_steps_are_adamws_also_when_the_state_went_through_our_hands(
    make_plan: Callable[..., Plan], split: int, channels_last: bool
) -> None:
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(4, 3, 3, 2, generator=generator)
    if channels_last:
        start = start.contiguous(memory_format=torch.channels_last)
    gradients = [torch.randn(4, 3, 3, 2, generator=generator) for _ in range(6)]
    parameters = {"w": nn.Parameter(start.clone())}
    training = make_plan(weight_decay=0.1, learning_rate=0.01).training
    optimiser = build_optimiser(training, parameters, None)
    for step, gradient in enumerate(gradients):
        if step == split:
            optimiser = build_optimiser(training, parameters, state_of(optimiser, parameters, step))
        parameters["w"].grad = gradient.clone(memory_format=torch.preserve_format).to(
            memory_format=torch.channels_last if channels_last else torch.contiguous_format
        )
        optimiser.step()
    wanted = _adamw(start.double().numpy(), [g.double().numpy() for g in gradients], 0.01, 0.1)
    np.testing.assert_allclose(parameters["w"].detach().numpy(), wanted, rtol=1e-5, atol=1e-6)


def test_a_state_is_a_copy_and_zero_where_nothing_was_learnt(make_plan: Callable[..., Plan]) -> None:
    parameters = {"w": nn.Parameter(torch.ones(3)), "unused": nn.Parameter(torch.ones(2))}
    optimiser = build_optimiser(make_plan(optimiser="adam").training, parameters, None)
    parameters["w"].grad = torch.ones(3)
    optimiser.step()
    state = state_of(optimiser, parameters, 1)
    kept = state.first["w"].clone()
    optimiser.step()
    assert torch.equal(state.first["w"], kept)
    assert torch.equal(state.first["unused"], torch.zeros(2))
    assert state.steps == 1


def test_the_rate_warms_up_over_the_optimisers_life(make_plan: Callable[..., Plan]) -> None:
    plan = make_plan(warmup_steps=4, learning_rate=0.01)
    rates = [learning_rate(plan, step, 0.0) for step in range(6)]
    assert rates == pytest.approx([0.0025, 0.005, 0.0075, 0.01, 0.01, 0.01])
    assert learning_rate(make_plan(warmup_steps=0, learning_rate=0.01), 0, 0.0) == 0.01


def test_a_cosine_falls_to_a_tenth_over_all_rounds(make_plan: Callable[..., Plan]) -> None:
    plan = make_plan(warmup_steps=0, learning_rate=0.01, decay="cosine")
    assert learning_rate(plan, 0, 0.0) == pytest.approx(0.01)
    assert learning_rate(plan, 0, 0.5) == pytest.approx(0.0055)
    assert learning_rate(plan, 0, 1.0) == pytest.approx(0.001)
    rates = [learning_rate(plan, 0, share) for share in np.linspace(0, 1, 20)]
    assert rates == sorted(rates, reverse=True)
    assert all(math.isfinite(rate) for rate in rates)
