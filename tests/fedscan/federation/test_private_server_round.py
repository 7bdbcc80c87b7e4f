"""The server's part of a private round: strict answers, public weights, records without data, heads that return."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any

import pytest
import torch

from fedscan.federation.messages import REFUSED_BY_POLICY, LedgerHead
from fedscan.federation.server_round import RunStoppedError, ServerRound
from fedscan.federation.site_heads import FILE, SiteHeads
from fedscan.plan import Plan
from fedscan.training.checkpoints import Checkpoint
from fedscan.training.weights import Weights

RUN = "0" * 32
MAC = "a" * 64


def weights(value: float) -> Weights:
    return {"a": torch.full((2, 2), value), "b": torch.full((3,), value)}


@pytest.fixture
def heads(tmp_path: Path) -> SiteHeads:
    return SiteHeads(tmp_path / FILE)


def new_round(heads: SiteHeads, **changes: Any) -> ServerRound:
    sampling = {"s1": 10.0, "s2": 30.0}
    plan = Plan.model_validate(
        {
            "weighting": "declared",
            "ema": {"half_life_rounds": 0},
            "training": {"local_steps": 2},
            "privacy": {
                "noise_multiplier": 1.0,
                "delta": 1e-5,
                "from_scratch": True,
                "sites": {s: {"sample_rate": 0.1, "expected_patients_per_step": n} for s, n in sampling.items()},
            },
        }
        | changes
    )
    return ServerRound(plan, RUN, Checkpoint(0, weights(1.0), weights(1.0), 0), ["s1", "s2"], heads=heads)


def answer(r: ServerRound, site: str, count: int = 5, **changes: Any) -> dict[str, Any]:
    meta = r.task(site).model_dump(exclude={"fedscan", "deadline_s", "ledger", "revocations"})
    return meta | {"weight": {"s1": 100.0, "s2": 300.0}[site], "ledger": {"count": count, "mac": MAC}} | changes


def test_weights_are_the_plans_public_ones(heads: SiteHeads) -> None:
    r = new_round(heads)
    assert r.receive("s1", answer(r, "s1"), weights(1.0)) is None
    assert r.receive("s2", answer(r, "s2"), weights(2.0)) is None
    state, record = r.finish()
    assert state.weights["b"][0].item() == pytest.approx(1.0 + 0.25 * 1.0 + 0.75 * 2.0)
    assert {site: entry.weight for site, entry in record.sites.items()} == {"s1": 0.25, "s2": 0.75}


def test_the_record_holds_nothing_that_a_site_says_of_its_data(heads: SiteHeads) -> None:
    r = new_round(heads)
    r.receive("s1", answer(r, "s1"), weights(1.0))
    r.refuse("s2", REFUSED_BY_POLICY)
    _, record = r.finish()
    told = record.model_dump(exclude_none=True)
    assert "loss" not in told
    assert set(told["sites"]["s1"]) == {"answered", "weight", "bytes_received", "update_norm", "update_digest"}
    assert told["sites"]["s2"] == {"answered": False, "refused": REFUSED_BY_POLICY}


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"loss": 0.5}, "it has a loss and should not"),
        ({"loss": math.nan}, "loss"),
        ({"examples": 24, "patients": 12}, "examples, patients"),
        ({"seconds": 1.0}, "seconds"),
        ({"ledger": None}, "ledger"),
        ({"ledger": {"count": 1, "mac": "short"}}, "ledger.mac"),
        ({"ledger": {"count": 1, "mac": MAC, "note": 17}}, "ledger.note"),
        ({"weight": 101.0}, "public"),
        ({"weight": 1.0}, "public"),
        ({"weight": math.inf}, "weight"),
        ({"round_number": 1}, "another round"),
        ({"model_digest": "f" * 64}, "another model"),
    ],
)
def test_an_answer_that_says_more_less_or_something_else_is_refused(
    heads: SiteHeads, change: dict[str, Any], word: str
) -> None:
    r = new_round(heads)
    assert word in str(r.receive("s1", answer(r, "s1", **change), weights(1.0)))
    assert (r.accepted, heads.of("s1")) == (0, None)


def test_a_noised_loss_is_recorded_where_the_plan_asks_for_one(heads: SiteHeads) -> None:
    privacy = new_round(heads).plan.privacy
    assert privacy is not None
    r = new_round(heads, privacy=privacy.model_dump() | {"loss": {"noise_multiplier": 20.0}})
    assert r.receive("s1", answer(r, "s1"), weights(1.0)) == "it has a loss and should not, or lacks one"
    assert r.receive("s1", answer(r, "s1", loss=0.1), weights(1.0)) is None
    assert r.receive("s2", answer(r, "s2", loss=-0.02), weights(1.0)) is None
    _, record = r.finish()
    assert [record.sites[site].loss for site in ("s1", "s2")] == [0.1, -0.02]
    assert record.loss == pytest.approx(0.25 * 0.1 - 0.75 * 0.02)


def test_a_plain_answer_is_none_of_a_private_round(heads: SiteHeads) -> None:
    r = new_round(heads)
    plain = r.task("s1").model_dump(exclude={"fedscan", "deadline_s", "ledger", "revocations"}) | {
        "examples": 10,
        "patients": 2,
        "steps": 3,
        "loss": 0.5,
        "seconds": 1.0,
        "unit": "patient",
        "values": "hu",
        "field_mm": 360.0,
    }
    assert "malformed" in str(r.receive("s1", plain, weights(1.0)))


def test_each_site_gets_back_its_own_last_head_and_no_other(heads: SiteHeads) -> None:
    first = new_round(heads)
    assert first.task("s1").ledger is None
    first.receive("s1", answer(first, "s1", count=5), weights(0.1))
    first.receive("s2", answer(first, "s2", count=9), weights(0.1))
    second = new_round(heads)
    assert second.task("s1").ledger == LedgerHead(count=5, mac=MAC)
    assert second.task("s2").ledger == LedgerHead(count=9, mac=MAC)


def test_who_is_asked_is_recorded_without_a_word_on_answers(heads: SiteHeads) -> None:
    record = new_round(heads).asked_record()
    assert (record.event, record.asked, record.sites) == ("asked", ("s1", "s2"), {})


def test_a_head_that_cannot_be_written_stops_the_run_and_asks_nobody_again(
    heads: SiteHeads, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fsync(_: int) -> None:
        raise OSError(28, "No space left on device")

    r = new_round(heads)
    with monkeypatch.context() as broken:
        broken.setattr(os, "fsync", fsync)
        reason = r.receive("s1", answer(r, "s1"), weights(1.0))
    assert reason == "the server cannot keep an answer: No space left on device"
    with pytest.raises(RunStoppedError, match="the server cannot keep an answer"):
        r.settle()
