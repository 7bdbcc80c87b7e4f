"""fedscan.privacy.noised_loss: what is cut, what is noised, and what a patient can change."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedscan.privacy.clipping import ClipError
from fedscan.privacy.noise import SecureNoise
from fedscan.privacy.noised_loss import NoisedLoss
from fedscan.privacy_plan import LossPlan

EXPECTED = 4.0


class Silent:
    """No noise."""

    reproducible = True

    def uniform(self, n: int) -> NDArray[np.float64]:
        raise AssertionError("a loss draws nobody")

    def normal(self, n: int) -> Tensor:
        return torch.zeros(n, dtype=torch.float64)


def quiet(max_loss: float = 1.0) -> NoisedLoss:
    return NoisedLoss(LossPlan(noise_multiplier=5.0, max_loss=max_loss), EXPECTED, Silent())


def test_it_is_the_mean_over_steps_of_each_patients_mean_over_rows_by_the_public_divisor() -> None:
    loss = quiet()
    loss.add(torch.tensor([0.1, 0.2, 0.3, 0.6]), patients=2)  # rows 0 and 2 are of the first
    loss.add(torch.tensor([0.5, 0.1], dtype=torch.bfloat16), patients=1)
    loss.end_step()
    loss.end_step()  # nobody was drawn
    assert loss.value == pytest.approx((0.2 + 0.4 + 0.3) / EXPECTED / 2, abs=1e-3)


@pytest.mark.parametrize("hostile", [1e30, -1e30, math.nan, math.inf, -math.inf, 1.0, 0.0])
def test_no_patient_changes_a_step_by_more_than_max_loss(hostile: float) -> None:
    with_it, without = quiet(0.7), quiet(0.7)
    with_it.add(torch.tensor([0.3, hostile]), patients=2)
    without.add(torch.tensor([0.3]), patients=1)
    for loss in (with_it, without):
        loss.end_step()
    difference = with_it.value - without.value
    assert -1e-9 <= difference <= 0.7 / EXPECTED + 1e-6
    assert difference == pytest.approx(
        min(max(hostile, 0.0), 0.7) / EXPECTED if math.isfinite(hostile) else 0, abs=1e-6
    )


def test_the_noise_has_the_plans_size_in_every_step_with_or_without_patients() -> None:
    plan, noise, steps = LossPlan(noise_multiplier=5.0, max_loss=0.5), SecureNoise(), 4
    values = []
    for _ in range(4000):
        loss = NoisedLoss(plan, EXPECTED, noise)
        for step in range(steps):
            if step == 0:
                loss.add(torch.tensor([0.4]), patients=1)
            loss.end_step()
        values.append(loss.value)
    std = 5.0 * 0.5 / EXPECTED / math.sqrt(steps)
    assert np.std(values) == pytest.approx(std, rel=0.05)
    assert np.mean(values) == pytest.approx(0.1 / steps, abs=4 * std / math.sqrt(len(values)))


def test_after_a_failed_step_there_is_no_loss_and_none_before_a_first() -> None:
    loss = quiet()
    with pytest.raises(ClipError, match="no loss"):
        loss.value  # noqa: B018 - it raises
    loss.add(torch.tensor([0.3]), patients=1)
    loss.discard()
    loss.end_step()
    with pytest.raises(ClipError, match="no loss"):
        loss.value  # noqa: B018 - it raises


def test_low_bits_do_not_leave() -> None:
    loss = quiet()
    loss.add(torch.tensor([0.123456789123]), patients=1)
    loss.end_step()
    assert loss.value == round(0.123456789123 / EXPECTED, 6)


def test_a_broken_source_of_noise_stops_it() -> None:
    class Broken(Silent):
        def normal(self, n: int) -> Tensor:
            return torch.zeros(n, dtype=torch.float32)

    with pytest.raises(ClipError, match="float64"):
        NoisedLoss(LossPlan(noise_multiplier=5.0), EXPECTED, Broken()).end_step()
