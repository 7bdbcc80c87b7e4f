"""How updates travel: what arrives, in how many bytes, and that what rounding takes away is not lost."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedscan.plan import Plan
from fedscan.training.tensor_file import load_tensors, save_tensors
from fedscan.training.update_codec import ErrorFeedback, Precision, decode, encode, wire_form
from fedscan.training.weights import Weights, check_update, initial_weights

RUN, DIGEST = "0" * 32, "d" * 64


def some(seed: int, scale: float = 1.0) -> Weights:
    generator = torch.Generator().manual_seed(seed)
    shapes = {"conv.weight": (8, 3, 3, 3), "conv.bias": (8,), "alone": ()}
    return {name: torch.randn(shape, generator=generator) * scale for name, shape in shapes.items()}


def size(wire: Weights) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in wire.values())


@pytest.mark.parametrize(("precision", "step"), [("fp32", 0.0), ("bf16", 2.0**-7), ("int8", 1.0 / 127)])
def test_what_arrives_is_what_was_sent_within_a_step_of_its_rows_largest(precision: Precision, step: float) -> None:
    for scale in (1e-30, 1.0, 1e30):
        update = some(0, scale) | {"zeros": torch.zeros(3, 2)}
        wire = encode(update, precision)
        assert check_update(wire, wire_form(update, precision)) == []
        arrived = decode(wire, precision)
        assert check_update(arrived, update) == []
        for name, tensor in update.items():
            rows = tensor.reshape(len(tensor) if tensor.ndim > 1 else 1, -1)
            largest = rows.abs().amax(1, keepdim=True)
            wrong = (arrived[name].reshape(rows.shape) - rows).abs()
            assert bool((wrong <= 0.51 * step * largest).all()), name


@given(st.lists(st.floats(-(2.0**126), 2.0**126, width=32), min_size=1, max_size=8))
def test_no_finite_update_arrives_as_one_that_is_not(values: list[float]) -> None:
    update = {"a": torch.tensor(values, dtype=torch.float32)}
    assert bool(torch.isfinite(decode(encode(update, "int8"), "int8")["a"]).all())


def test_int8_takes_a_quarter_of_the_bytes_and_bf16_half(make_plan: Callable[..., Plan]) -> None:
    update = initial_weights(make_plan(model={"preset": "tiny"}))
    assert size(encode(update, "bf16")) * 2 == size(update)
    assert size(encode(update, "int8")) < 0.28 * size(update)


@pytest.mark.parametrize("folder", [True, False])
@pytest.mark.parametrize("precision", ["bf16", "int8"])
def test_what_rounding_takes_away_is_sent_later(precision: Precision, folder: bool, tmp_path: Path) -> None:
    """The sum of what arrived stays within one step of the sum of what was sent, over however many rounds."""
    feedback = ErrorFeedback(precision, tmp_path / "rests" if folder else None, DIGEST, RUN)
    update = {"a": torch.tensor([1.0, 0.0011, -0.003])}
    arrived = torch.zeros(3)
    for number in range(200):
        arrived += decode(feedback.encode(number, update), precision)["a"]
    assert (arrived - 200 * update["a"]).abs().max().item() < 0.02
    alone = 200 * decode(encode(update, precision), precision)["a"]
    assert (alone - 200 * update["a"]).abs().max().item() > 0.05 or precision == "bf16"


def test_a_round_trained_again_goes_on_from_the_rest_before_it(tmp_path: Path) -> None:
    feedback = ErrorFeedback("int8", tmp_path, DIGEST, RUN)
    sent = [feedback.encode(number, some(number)) for number in range(4)]
    again = ErrorFeedback("int8", tmp_path, DIGEST, RUN).encode(3, some(3))
    assert all(torch.equal(again[name], tensor) for name, tensor in sent[3].items())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["rest-00002.safetensors", "rest-00003.safetensors"]
    assert {path.stat().st_mode & 0o777 for path in tmp_path.iterdir()} == {0o600}


@pytest.mark.parametrize("spoil", ["damaged", "another run", "another form"])
def test_a_rest_that_is_not_this_runs_counts_as_none(spoil: str, tmp_path: Path) -> None:
    feedback = ErrorFeedback("int8", tmp_path, DIGEST, RUN)
    feedback.encode(0, some(0))
    path = tmp_path / "rest-00000.safetensors"
    tensors, metadata = load_tensors(path)
    if spoil == "damaged":
        path.write_bytes(path.read_bytes()[:-5])
    elif spoil == "another run":
        save_tensors(path, tensors, metadata | {"run_id": "1" * 32})
    else:
        save_tensors(path, {"a": torch.zeros(1)}, metadata)
    sent = feedback.encode(1, some(1))
    assert all(torch.equal(sent[name], tensor) for name, tensor in encode(some(1), "int8").items())


def test_float32_travels_as_it_is_and_leaves_no_rest(tmp_path: Path) -> None:
    update: Any = some(0)
    sent = ErrorFeedback("fp32", tmp_path / "rests", DIGEST, RUN).encode(0, update)
    assert all(torch.equal(sent[name], tensor) for name, tensor in update.items())
    assert not (tmp_path / "rests").exists()
