from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch

from fedscan.plan import ModelPlan, Plan
from fedscan.training import weights as w


def _some(seed: int, scale: float = 1.0) -> w.Weights:
    generator = torch.Generator().manual_seed(seed)
    return {name: scale * torch.randn(shape, generator=generator) for name, shape in SHAPES.items()}


SHAPES = {"conv.weight": (4, 3, 3, 3), "conv.bias": (4,), "scale": ()}


def test_initial_weights_follow_from_the_plans_seed_alone(make_plan: Callable[..., Plan]) -> None:
    torch.manual_seed(1)
    first = w.initial_weights(make_plan(seed=3))
    torch.manual_seed(2)
    assert w.digest(first) == w.digest(w.initial_weights(make_plan(seed=3, rounds=5)))
    assert w.digest(first) != w.digest(w.initial_weights(make_plan(seed=4)))
    assert {t.dtype for t in first.values()} == {torch.float32}


@pytest.mark.parametrize("preset", ["tiny", "small"])
def test_shapes_without_memory_are_those_of_the_network(preset: str) -> None:
    model = ModelPlan(preset=preset, classes=("a", "b"))  # type: ignore[arg-type]
    shapes = w.shapes_of(model)
    real = w.initial_weights(Plan(model=model))
    assert {n: (t.shape, t.dtype) for n, t in shapes.items()} == {n: (t.shape, t.dtype) for n, t in real.items()}
    assert all(t.device.type == "meta" for t in shapes.values())


def test_a_difference_put_back_is_the_new_model() -> None:
    old, new = _some(0), _some(1)
    update = w.difference(new, old)
    for name, tensor in w.apply_update(old, update).items():
        torch.testing.assert_close(tensor, new[name])
        assert update[name].dtype == torch.float32


def test_shares_sum_to_one_and_take_the_plans_weighting(make_plan: Callable[..., Plan]) -> None:
    assert w.shares({"b": 3.0, "a": 1.0}) == {"a": 0.25, "b": 0.75}
    assert list(w.shares({"b": 3.0, "a": 1.0})) == ["a", "b"]
    for weighting, wanted in (("examples", 12.0), ("patients", 3.0), ("uniform", 1.0)):
        assert w.contribution_weight(make_plan(weighting=weighting), 12, 3) == wanted
    with pytest.raises(ValueError, match="weights of 1 sites"):
        w.shares({"a": 0.0})


def test_a_good_update_has_no_faults() -> None:
    assert w.check_update(_some(1), _some(0)) == []


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        (lambda u: u.pop("scale"), "lacks scale"),
        (lambda u: u.update(other=torch.ones(1)), "has unknown other"),
        (lambda u: u.update({"x\n" * 99: torch.ones(1)}), r"has unknown \(odd\)"),
        (lambda u: u.update(scale=torch.ones(1)), r"has shape \[1\], wanted \[\], at scale"),
        (lambda u: u.update(scale=torch.ones((), dtype=torch.float64)), "has torch.float64, wanted torch.float32, at"),
        (lambda u: u.update(scale=torch.tensor(math.nan)), "not finite at scale"),
        (lambda u: u["conv.bias"].__setitem__(2, -math.inf), "not finite at conv.bias"),
        (lambda u: u.update(scale=1.0), "no dense CPU tensor at scale"),
        (lambda u: u.update(scale=torch.ones((), device="meta")), "no dense CPU tensor at scale"),
        (lambda u: u.update({"conv.bias": torch.ones(4).to_sparse()}), "no dense CPU tensor at conv.bias"),
    ],
)
def test_a_bad_update_is_told_what_is_wrong(fault: Callable[[w.Weights], object], said: str) -> None:
    update = _some(1)
    fault(update)
    reasons = w.check_update(update, _some(0))
    assert len(reasons) == 1
    with pytest.raises(AssertionError, match=said):
        raise AssertionError(reasons[0])


def test_reasons_come_all_at_once_and_name_five() -> None:
    reference = {f"t{k:02d}": torch.ones(2) for k in range(20)}
    update = {f"t{k:02d}": torch.full((2,), math.nan) for k in range(8)} | {"z": torch.ones(1)}
    reasons = w.check_update(update, reference)
    assert [r.split()[0] for r in reasons] == ["lacks", "has", "has"]
    assert reasons[2] == "has values that are not finite at t00, t01, t02, t03, t04 and 3 more"


def test_the_digest_sees_names_shapes_types_and_every_bit() -> None:
    base = {"a": torch.zeros(4), "b": torch.ones(2, 2)}
    changed = [
        {"a": base["a"], "c": base["b"]},
        {"a": base["a"], "b": base["b"].reshape(4)},
        {"a": -base["a"], "b": base["b"]},
        {"a": base["a"].to(torch.int32), "b": base["b"]},
        {"a": base["a"]},
    ]
    assert len({w.digest(x) for x in [base, *changed]}) == 6
    assert w.digest({"b": base["b"], "a": base["a"]}) == w.digest(base)
    channels_last = torch.randn(2, 3, 4, 4)
    other = channels_last.contiguous(memory_format=torch.channels_last)
    assert w.digest({"a": channels_last}) == w.digest({"a": other})


def test_the_norm_is_over_all_tensors() -> None:
    assert w.update_norm({"a": torch.tensor([3.0]), "b": torch.full((4, 4), 1.0)}) == pytest.approx(5.0)
