import numpy as np
import pytest
import torch

from fedscan.training.ema import Ema


@pytest.mark.parametrize("half_life", [0.5, 2.0, 30.0])
def test_the_average_is_that_of_plain_numpy(half_life: float) -> None:
    generator = torch.Generator().manual_seed(0)
    models = [{"a": torch.randn(3, 2, generator=generator)} for _ in range(40)]
    ema, wanted = models[0], models[0]["a"].numpy().astype(np.float64)
    for count, model in enumerate(models[1:]):
        ema = Ema(half_life).update(ema, model, count)
        decay = min(0.5 ** (1 / half_life), (count + 1) / (count + 10))
        wanted = (decay * wanted + (1 - decay) * model["a"].numpy().astype(np.float64)).astype(np.float32)
        wanted = wanted.astype(np.float64)
    assert ema["a"].dtype == torch.float32
    np.testing.assert_array_equal(ema["a"].numpy(), wanted.astype(np.float32))


def test_an_old_model_halves_in_a_half_life_once_the_start_is_over() -> None:
    ema = {"a": torch.ones(1)}
    for count in range(1000, 1008):
        ema = Ema(8.0).update(ema, {"a": torch.zeros(1)}, count)
    assert float(ema["a"]) == pytest.approx(0.5, rel=1e-6)


def test_half_life_zero_is_the_newest_model_and_the_input_is_left_alone() -> None:
    old, new = {"a": torch.ones(2)}, {"a": torch.zeros(2)}
    result = Ema(0.0).update(old, new, 5)
    assert torch.equal(result["a"], new["a"])
    assert result["a"] is not new["a"]
    assert torch.equal(old["a"], torch.ones(2))
