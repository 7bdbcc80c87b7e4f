"""The server's judgement of answers, and what a round comes to."""

from __future__ import annotations

import errno
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fedscan.federation.kept_updates import KeptUpdates
from fedscan.federation.server_round import RunStoppedError, ServerRound
from fedscan.plan import Plan
from fedscan.training.checkpoints import Checkpoint
from fedscan.training.update_codec import encode
from fedscan.training.weights import Weights

RUN = "0" * 32


def weights(value: float) -> Weights:
    return {"a": torch.full((2, 2), value), "b": torch.full((3,), value)}


def new_round(**changes: Any) -> ServerRound:
    plan = Plan.model_validate({"min_responses": 2, "ema": {"half_life_rounds": 0}} | changes)
    return ServerRound(plan, RUN, Checkpoint(0, weights(1.0), weights(1.0), 0), ["s1", "s2", "s3"])


def answer(r: ServerRound, **changes: Any) -> dict[str, Any]:
    meta = r.task("a").model_dump(exclude={"fedscan", "deadline_s", "ledger", "revocations"})
    return (
        meta
        | {"examples": 10, "patients": 2, "steps": 3, "loss": 0.5, "seconds": 1.0}
        | {
            "unit": "patient",
            "values": "hu",
            "field_mm": 360.0,
        }
        | changes
    )


def test_the_new_model_is_the_weighted_sum_whoever_answers_first() -> None:
    results = []
    for order in (["s1", "s2", "s3"], ["s3", "s1", "s2"]):
        r = new_round()
        for site in order:
            number = int(site[1])
            assert r.receive(site, answer(r, examples=10 * number), weights(0.1 * number)) is None
        state, record = r.finish()
        results.append(state.weights)
        assert record.loss == pytest.approx(0.5)
        assert {s: e.weight for s, e in record.sites.items()} == pytest.approx({"s1": 1 / 6, "s2": 2 / 6, "s3": 3 / 6})
    for name, tensor in results[0].items():
        assert torch.equal(tensor, results[1][name])
        wanted = 1.0 + (1 * np.float32(0.1) + 2 * np.float32(0.2) + 3 * np.float32(0.3)) / 6
        assert tensor.flatten()[0].item() == pytest.approx(wanted, rel=1e-6)
    assert state.rounds_done == 1


@pytest.mark.parametrize(
    ("weighting", "shares"), [("examples", (0.25, 0.75)), ("patients", (0.8, 0.2)), ("uniform", (0.5, 0.5))]
)
def test_the_plan_chooses_the_weights(weighting: str, shares: tuple[float, float]) -> None:
    r = new_round(weighting=weighting)
    r.receive("s1", answer(r, examples=10, patients=8), weights(1.0))
    r.receive("s2", answer(r, examples=30, patients=2), weights(2.0))
    state, record = r.finish()
    assert (record.sites["s1"].weight, record.sites["s2"].weight) == pytest.approx(shares)
    assert state.weights["b"][0].item() == pytest.approx(1.0 + shares[0] + 2 * shares[1])


def without(name: str) -> Callable[[Weights], Weights]:
    return lambda w: {k: v for k, v in w.items() if k != name}


BAD_UPDATES: dict[str, tuple[Callable[[Weights], Any], str]] = {
    "missing": (without("b"), "b"),
    "extra": (lambda w: w | {"c": torch.zeros(1)}, "c"),
    "misshapen": (lambda w: w | {"b": torch.zeros(4)}, "b"),
    "nan": (lambda w: w | {"b": torch.tensor([0.0, math.nan, 0.0])}, "finite"),
    "inf": (lambda w: w | {"b": torch.tensor([0.0, math.inf, 0.0])}, "finite"),
    "dtype": (lambda w: w | {"b": torch.zeros(3, dtype=torch.int64)}, "b"),
    "no tensor": (lambda w: w | {"b": [0.0, 0.0, 0.0]}, "b"),
    "no mapping": (lambda w: [1, 2], "mapping"),
}


@pytest.mark.parametrize("kind", BAD_UPDATES)
def test_a_bad_update_is_refused_with_its_reason_and_the_round_goes_on(kind: str) -> None:
    spoil, word = BAD_UPDATES[kind]
    r = new_round()
    reason = r.receive("s1", answer(r), spoil(weights(9.0)))
    assert reason is not None
    assert word in reason
    r.receive("s2", answer(r), weights(0.5))
    assert not r.is_enough
    r.receive("s3", answer(r), weights(0.5))
    state, record = r.finish()
    assert torch.equal(state.weights["a"], torch.full((2, 2), 1.5))
    assert record.sites["s1"].refused == reason


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"round_number": 1}, "another round"),
        ({"plan_digest": "f" * 64}, "another plan"),
        ({"run_id": "f" * 32}, "another run"),
        ({"model_digest": "f" * 64}, "another model"),
        ({"protocol": 0}, "protocol 0, this end 1"),
        ({"protocol": 2, "of a later": "field"}, "protocol 2, this end 1"),
        ({"protocol": 1.0}, "an unknown one"),
        ({"protocol": "9\nrefused"}, "an unknown one"),
        ({"examples": 0}, "examples"),
        ({"examples": 10**6 + 0.5}, "examples"),
        ({"loss": math.nan}, "loss"),
        ({"surprise": 1}, "surprise"),
    ],
)
def test_a_stale_or_malformed_answer_is_refused(change: dict[str, Any], word: str) -> None:
    r = new_round()
    reason = r.receive("s1", answer(r, **change), weights(1.0))
    assert reason is not None
    assert word in reason
    assert r.accepted == 0


def test_nobody_answers_for_another_or_twice() -> None:
    r = new_round()
    assert r.receive("stranger", answer(r), weights(1.0)) == "site was not asked"
    assert r.receive("s1", answer(r), weights(1.0)) is None
    assert r.receive("s1", answer(r), weights(5.0)) == "site has answered already"
    r.receive("s2", answer(r), weights(1.0))
    state, record = r.finish()
    assert state.weights["b"][0].item() == 2.0
    assert record.sites["s1"].answered
    assert record.sites["s3"].refused == "no answer in time"


def test_too_few_answers_make_no_model() -> None:
    r = new_round()
    r.receive("s1", answer(r), weights(1.0))
    with pytest.raises(ValueError, match="needs 2"):
        r.finish()


class _Wayward(torch.Tensor):
    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise RuntimeError("not in my name")


class _Boaster(dict[str, torch.Tensor]):
    def __contains__(self, name: object) -> bool:
        return True

    def __getitem__(self, name: str) -> torch.Tensor:
        return weights(1.0)[name]


@pytest.mark.parametrize(
    ("update", "word"),
    [
        (weights(0.0) | {"a": torch.zeros(2, 2).as_subclass(_Wayward)}, "no dense CPU tensor at a"),
        (weights(0.0) | {"a": torch._neg_view(torch.zeros(2, 2))}, "no dense CPU tensor at a"),
        (_Boaster(), "lacks a, b"),
    ],
)
def test_tensors_and_mappings_that_act_for_themselves_are_refused(update: Any, word: str) -> None:
    r = new_round()
    assert word in str(r.receive("s1", answer(r), update))


def test_a_view_of_far_more_memory_is_kept_as_its_values_alone() -> None:
    r = new_round(min_responses=1)
    much = torch.full((10_000,), 0.5, requires_grad=True)
    assert r.receive("s1", answer(r), {"a": much[:4].view(2, 2), "b": much[:1].expand(3)}) is None
    state, _ = r.finish()
    assert all(torch.equal(state.weights[name], tensor) for name, tensor in weights(1.5).items())


@pytest.mark.parametrize("field", ["examples", "patients", "steps"])
def test_counts_beyond_all_sense_are_refused(field: str) -> None:
    r = new_round()
    assert field in str(r.receive("s1", answer(r, **{field: 10**400}), weights(0.0)))


def test_finite_updates_whose_sum_is_not_stop_the_run_and_leave_the_last_good_model() -> None:
    r = new_round()
    huge = 3.0e38
    r.state.weights["b"].fill_(huge)
    r = ServerRound(r.plan, RUN, r.state, ["s1", "s2", "s3"])
    for site in ("s1", "s2"):
        assert r.receive(site, answer(r), weights(huge)) is None
    with pytest.raises(RunStoppedError, match="would not be finite"):
        r.finish()


def test_an_update_a_hundred_times_too_large_is_refused_when_all_have_answered() -> None:
    r = new_round()
    for site, size in (("s1", 0.1), ("s2", 10.0), ("s3", 0.1)):
        assert r.receive(site, answer(r), weights(size)) is None
    r.settle()
    assert r.accepted == 2
    state, record = r.finish()
    assert "10 times the median" in (record.sites["s2"].refused or "")
    assert record.sites["s2"].weight is None
    torch.testing.assert_close(state.weights["a"], torch.full((2, 2), 1.1))


def test_who_was_refused_at_the_end_cannot_come_back_nor_take_anothers_place(tmp_path: Path) -> None:
    r = new_round()
    for site, size in (("s1", 10.0), ("s2", 0.1), ("s3", 0.2)):
        r.receive(site, answer(r), weights(size))
    r.settle()
    assert r.receive("s1", answer(r), weights(9.0)) == "the round is over"
    state, _ = r.finish()
    torch.testing.assert_close(state.weights["a"], torch.full((2, 2), 1.15))
    kept = KeptUpdates(tmp_path / "updates")
    for site in ("s1", "s2", "s3"):
        kept.keep(site, weights(float(site[1])))
    kept.drop("s1")
    kept.keep("s4", weights(4.0))
    with kept.reading() as tensor_of:
        assert [tensor_of(site, "b")[0].item() for site in ("s2", "s3", "s4")] == [2.0, 3.0, 4.0]


def test_a_bound_on_the_norm_is_kept_by_each_update() -> None:
    r = new_round(aggregation={"max_update_norm": 1.0})
    assert "max_update_norm" in (r.receive("s1", answer(r), weights(0.5)) or "")
    assert r.receive("s2", answer(r), weights(0.3)) is None


def test_refusing_the_too_large_can_leave_too_few() -> None:
    r = new_round(min_responses=3)
    for site, size in (("s1", 0.1), ("s2", 10.0), ("s3", 0.1)):
        r.receive(site, answer(r), weights(size))
    assert r.is_enough
    r.settle()
    assert not r.is_enough


@pytest.mark.parametrize(("method", "wanted"), [("median", 2.0), ("trimmed_mean", 2.0), ("mean", 13.0 / 3)])
def test_the_plan_chooses_how_updates_become_a_model(method: str, wanted: float) -> None:
    r = new_round(weighting="uniform", aggregation={"method": method, "trim_share": 0.34})
    for site, size in (("s1", 1.0), ("s2", 2.0), ("s3", 10.0)):
        r.receive(site, answer(r), weights(size))
    r.settle()
    state, _ = r.finish()
    assert state.weights["a"][0, 0].item() == pytest.approx(1.0 + wanted)


def test_updates_of_eight_bits_are_taken_in_their_one_form() -> None:
    r = new_round(update_precision="int8", min_responses=1)
    wire = encode(weights(0.5), "int8")
    refused = [
        weights(0.5),
        without("a.scale")(wire),
        wire | {"a.scale": torch.full((2,), math.inf)},
        wire | {"a.scale": torch.full((2,), 3e38)},
        wire | {"b.scale": torch.zeros(3)},
        wire | {"a": wire["a"].float()},
    ]
    assert all(r.receive("s1", answer(r), update) is not None for update in refused)
    assert r.receive("s2", answer(r), wire) is None
    state, record = r.finish()
    torch.testing.assert_close(state.weights["a"], torch.full((2, 2), 1.5))
    assert record.sites["s2"].bytes_received == 7 + 4 * 3


def test_updates_wait_in_private_files_and_leave_none(tmp_path: Path) -> None:
    folder = tmp_path / "updates"
    folder.mkdir()
    (folder / "00000.safetensors").write_text("left by a killed server")
    plan = Plan.model_validate({"ema": {"half_life_rounds": 0}})
    r = ServerRound(plan, RUN, Checkpoint(0, weights(1.0), weights(1.0), 0), ["s1", "s2"], updates=KeptUpdates(folder))
    for site in ("s1", "s2"):
        r.receive(site, answer(r), weights(0.5))
    files = sorted(folder.iterdir())
    assert [file.stat().st_mode & 0o777 for file in files] == [0o600, 0o600]
    assert folder.stat().st_mode & 0o777 == 0o700
    state, _ = r.finish()
    assert state.weights["b"][0].item() == 1.5
    assert not folder.exists()


def test_a_full_disk_at_the_server_stops_the_run_and_asks_nobody_again(tmp_path: Path) -> None:
    class Full(KeptUpdates):
        def keep(self, site: str, update: Weights) -> None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    state = Checkpoint(0, weights(1.0), weights(1.0), 0)
    r = ServerRound(Plan(), RUN, state, ["s1", "s2"], updates=Full(tmp_path / "updates"))
    assert "No space left" in (r.receive("s1", answer(r), weights(0.5)) or "")
    with pytest.raises(RunStoppedError, match="No space left"):
        r.settle()
