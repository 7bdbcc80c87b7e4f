"""A verdict follows from a run's records alone: what NVFlare would call COMPLETED may be worthless, and the reverse."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from fedscan.federation import run_lines, verdict
from fedscan.federation.records import Event, RoundRecord, SiteEntry
from fedscan.federation.verdict import Verdict
from fedscan.plan import Plan

PLAN = Plan.model_validate({"name": "trial", "model": {"preset": "tiny"}, "rounds": 3, "min_responses": 2})
SITES = ("a", "b", "c")
SHA = "f" * 64


def good(weight: float, norm: float = 1.0) -> SiteEntry:
    return SiteEntry(answered=True, weight=weight, update_norm=norm)


def record(event: Event, number: int = 0, plan: Plan = PLAN, **fields: object) -> RoundRecord:
    return RoundRecord.model_validate(
        {"event": event, "time": "t", "run_id": "r" * 32, "plan_digest": plan.digest, "round": number} | fields
    )


def one_round(number: int, answers: dict[str, SiteEntry] | None = None, **fields: object) -> RoundRecord:
    answers = answers or {site: good(1 / 3) for site in SITES}
    told = {"asked": SITES, "sites": answers, "loss": 1.0 / (number + 1), "model_digest": "d" * 64, "attempt": 1}
    return record("round", number, **told | fields)


def whole(*rounds: RoundRecord) -> list[RoundRecord]:
    return [record("started"), *(rounds or [one_round(n) for n in range(3)]), record("finished", 3)]


def judge(records: Sequence[RoundRecord], plan: Plan = PLAN, sha256: str | None = SHA, **more: object) -> Verdict:
    return verdict.verdict(plan, records, model_sha256=sha256, **more)  # type: ignore[arg-type]


def test_a_run_with_all_its_rounds_is_good_and_tells_who_took_part() -> None:
    judged = judge(whole(), named=SITES)
    assert (judged.good, judged.failings, judged.reservations) == (True, (), ())
    assert (judged.ended, judged.rounds_done, judged.rounds_planned) == ("finished", 3, 3)
    assert {site: (share.asked, share.answered) for site, share in judged.sites.items()} == dict.fromkeys(SITES, (3, 3))
    assert judged.rounds[1].weights == dict.fromkeys(SITES, 1 / 3)


def test_whatever_nvflare_says_decides_nothing() -> None:
    assert judge(whole(), nvflare_status="FINISHED:ABNORMAL").good
    assert not judge(whole()[:2], nvflare_status="FINISHED:COMPLETED").good


@pytest.mark.parametrize(
    ("records", "words"),
    [
        ([], "no round was begun"),
        (whole()[:-1], "the server's job was lost"),
        ([record("started"), one_round(0), record("stopped", 1, reason="aborted")], "the run stopped: aborted"),
        ([record("started"), one_round(0), record("finished", 1)], "1 of 3 rounds are done; the first missing one is"),
        (whole(one_round(0), one_round(2)), "missing one is round 2"),
        (
            whole(one_round(0, {"a": good(1.0)}), one_round(1), one_round(2)),
            "round 1 holds 1 answers, the plan needs 2",
        ),
        (
            whole(*(one_round(n, {s: good(1 / 3, norm=0.0) for s in SITES}) for n in range(3))),
            "every update was zero",
        ),
        (
            whole(one_round(0, {s: good(0.5) for s in SITES}), one_round(1), one_round(2)),
            "do not add up to 1 in round 1",
        ),
        (whole(one_round(0), one_round(1), one_round(2, model_digest=None)), "no digest of its model"),
    ],
)
def test_a_worthless_run_is_not_good(records: list[RoundRecord], words: str) -> None:
    judged = judge(records)
    assert not judged.good
    assert any(words in text for text in judged.failings), judged.failings


def test_a_finished_run_without_its_model_file_is_not_good() -> None:
    assert judge(whole(), sha256=None).failings == ("the model file is not there",)


def test_records_of_another_plan_or_run_are_not_counted_silently() -> None:
    other = PLAN.model_copy(update={"seed": 5})
    records = [*whole(), record("started", plan=other)]
    assert judge(records).failings == ("1 of 6 records are of another plan",)
    mixed = [r.model_copy(update={"run_id": "s" * 32}) if r.event == "finished" else r for r in whole()]
    assert judge(mixed).failings == ("the records are of more than one run",)


def test_who_refused_and_what_was_rejected_is_told_with_why() -> None:
    nan = SiteEntry(answered=False, refused="weights: not finite")
    late = SiteEntry(answered=False, refused="no answer in time")
    entries = {"a": good(0.5), "b": good(0.5), "c": nan}
    repeat = record("repeat", 1, asked=SITES, sites={"a": good(1.0), "b": late, "c": late}, attempt=1, reason="too few")
    judged = judge(whole(one_round(0, entries), repeat, one_round(1, entries, attempt=2), one_round(2)))
    assert judged.good
    assert judged.sites["c"].refusals == {"weights: not finite": 2, "no answer in time": 1}
    assert (judged.sites["c"].asked, judged.sites["c"].answered) == (4, 1)
    assert [(r.round, r.attempt, r.site) for r in judged.rejected] == [
        (0, 1, "c"),
        (1, 1, "b"),
        (1, 1, "c"),
        (1, 2, "c"),
    ]
    assert judged.reservations == (
        "c answered in 1 of 3 rounds (no answer in time; weights: not finite)",
        "asked more than once: round 2",
    )


def test_a_site_that_took_no_part_is_named_whatever_the_quorum() -> None:
    entries = {"a": good(0.5), "b": good(0.5)}
    records = whole(*(one_round(n, entries, asked=("a", "b")) for n in range(3)))
    judged = judge(records, named=SITES, refused_at_deployment={"c": "refused by policy"})
    assert judged.good
    assert judged.sites["c"].refusals == {"at deployment: refused by policy": 1}
    assert (
        "c took no part: the model has learnt nothing from it (at deployment: refused by policy)" in judged.reservations
    )


def test_a_loss_that_did_not_fall_is_said() -> None:
    judged = judge(whole(one_round(0), one_round(1), one_round(2, loss=2.0)))
    assert judged.good
    assert judged.reservations == ("the loss did not fall: 1 in the first round, 2 in the last",)


def test_a_round_that_a_crash_took_is_redone_and_counted_once() -> None:
    lost = one_round(1, {"a": good(1.0), "b": SiteEntry(answered=False, refused="no answer in time")})
    judged = judge(whole(one_round(0), lost, record("started", 1), one_round(1), one_round(2)))
    assert judged.good
    assert judged.rounds[1].tries == 2
    assert judged.sites["b"].answered == 3


def test_stamps_are_reservations() -> None:
    records = [record("started", stamps=("no policy, no ledger",)), *whole()[1:]]
    assert judge(records).stamps == ("no policy, no ledger",)
    assert "no policy, no ledger" in judge(records).reservations


def test_of_a_private_run_every_site_has_its_epsilon_by_how_often_it_was_asked() -> None:
    from fedscan.federation.run_privacy import spent

    privacy = {
        "noise_multiplier": 2.0,
        "delta": 1e-5,
        "from_scratch": True,
        "sites": {s: {"sample_rate": 0.25, "expected_patients_per_step": 30.0} for s in "ab"},
    }
    raw = PLAN.model_dump(mode="json") | {"privacy": privacy, "weighting": "uniform", "init_sha256": None}
    raw["training"] |= {"local_epochs": None, "local_steps": 10}
    plan = Plan.model_validate(raw)
    asked = [record("asked", n, plan, asked=("a", "b")) for n in range(3)] + [record("asked", 2, plan, asked=("a",))]
    rounds = [r.model_copy(update={"plan_digest": plan.digest, "loss": None}) for r in whole()]
    for r in rounds:
        r.sites.pop("c", None)
    judged = judge([*asked, *rounds], plan)
    wanted = spent(plan, {"a": 4, "b": 3})["sites"]
    assert judged.sites["a"].epsilon == wanted["a"]["epsilon"] > wanted["b"]["epsilon"] == judged.sites["b"].epsilon
    assert (judged.sites["a"].asked, judged.delta) == (4, 1e-5)


def test_a_private_run_of_which_a_server_says_that_it_asked_strangers_is_not_good() -> None:
    """And whoever watches or fetches it is told so."""
    raw = PLAN.model_dump(mode="json") | {"weighting": "uniform", "init_sha256": None}
    sites = {s: {"sample_rate": 0.25, "expected_patients_per_step": 30.0} for s in "abc"}
    raw["privacy"] = {"noise_multiplier": 2.0, "delta": 1e-5, "from_scratch": True, "sites": sites}
    raw["training"] |= {"local_epochs": None, "local_steps": 10}
    plan = Plan.model_validate(raw)
    rounds = [r.model_copy(update={"plan_digest": plan.digest}) for r in whole()]
    asked = record("asked", 0, plan, asked=("a", "stranger"))
    assert "stranger" not in run_lines.outlook([asked, *rounds], plan)
    judged = judge([asked, *rounds], plan)
    assert judged.failings == ("asked sites that the plan does not know: stranger",)
    assert judged.sites["stranger"].epsilon is None


def test_the_print_out_says_it_in_words_and_the_file_reads_back(tmp_path: Path) -> None:
    judged = judge(whole()[:3], nvflare_status="FINISHED:COMPLETED", sha256=None)
    said = "\n".join(verdict.lines(judged))
    assert said.startswith("trial: NOT good, 2 of 3 rounds")
    assert "failing: 2 of 3 rounds are done" in said
    assert "a: in 2 rounds, asked 2 times" in said
    assert "NVFlare's own status: FINISHED:COMPLETED" in said
    (tmp_path / "verdict.json").write_text(judged.model_dump_json())
    assert verdict.read(tmp_path / "verdict.json") == judged
    (tmp_path / "verdict.json").write_text("{")
    assert verdict.read(tmp_path / "verdict.json") is None
