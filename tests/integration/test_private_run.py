"""A private run through real NVFlare processes, each site under its own site.json: what is charged, what is told."""

from __future__ import annotations

import json
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from fedscan.federation import job_folder, kept_answer, local_run, processes, records, wall
from fedscan.federation.messages import REFUSED_BY_POLICY
from fedscan.federation.site_heads import SiteHeads
from fedscan.privacy.accounting import epsilon
from fedscan.privacy.event import round_event
from fedscan.privacy.site_file import Site
from fedscan.training import model_file

pytestmark = pytest.mark.timeout(600)

SITES = ("hosp-a", "hosp-b")
ANSWER_AFTER_S = 15.0


@pytest.fixture(scope="module")
def finished(
    repository: Path,
    tmp_path_factory: pytest.TempPathFactory,
    make_site: Callable[..., Path],
    private_settings: Callable[..., list[str]],
) -> tuple[Path, dict[str, Path]]:
    folder = tmp_path_factory.mktemp("private")
    sites = {name: make_site(folder, name) for name in SITES}
    job_folder.new(
        repository / "jobs" / "ct_fedavg",
        folder / "job",
        private_settings(*SITES, answer_after_s=ANSWER_AFTER_S, settings=("min_responses=2",)),
    )
    local_run.run(folder / "job", sites, folder / "RUN")
    return folder / "RUN", sites


def test_every_round_is_charged_before_its_answer_and_noted(finished: tuple[Path, dict[str, Path]]) -> None:
    run, sites = finished
    plan = job_folder.read_plan(run / "job")
    heads = SiteHeads(run / "site_heads.json")
    for name, path in sites.items():
        ledger = Site.open(path).open_ledger()
        spent = ledger.events()
        assert spent == [round_event(plan, name)] * len(spent)
        assert len(spent) >= 2
        head = heads.of(name)
        assert head is not None
        paid = ledger.paid_for(head.count)
        assert paid is not None
        assert (paid.charge.round_number, paid.charge.plan_digest) == (1, plan.digest)
        assert paid.answer_sha256 is not None


def test_records_tell_who_answered_and_nothing_that_follows_from_data(finished: tuple[Path, dict[str, Path]]) -> None:
    run, _ = finished
    events = [r.event for r in records.read(run / "rounds.jsonl") if r.event != "repeat"]
    assert list(dict.fromkeys(events)) == ["started", "asked", "round", "finished"]
    for record in records.effective_rounds(run / "rounds.jsonl"):
        assert record.loss is None
        assert record.seconds is not None
        assert record.seconds >= ANSWER_AFTER_S
        for entry in record.sites.values():
            told = entry.model_dump(exclude_none=True)
            assert set(told) == {"answered", "weight", "bytes_received", "update_norm", "update_digest"}
            assert entry.weight == 0.5


def test_the_model_file_states_epsilon_by_site_with_unit_delta_and_accountant(
    finished: tuple[Path, dict[str, Path]],
) -> None:
    run, _ = finished
    plan = job_folder.read_plan(run / "job")
    told = model_file.load_model(run / "model.safetensors").provenance
    assert told["sites"] == {name: {"rounds": 2} for name in SITES}
    spent = told["privacy_spent"]
    times = sum(r.event == "asked" for r in records.read(run / "rounds.jsonl"))
    wanted = epsilon([round_event(plan, "hosp-a")] * times, 1e-3)
    assert spent["sites"] == {name: {"rounds": times, "epsilon": pytest.approx(wanted)} for name in SITES}
    assert (spent["unit"], spent["delta"], spent["accountant_version"]) == ("patient", 1e-3, "0.6.0")
    assert f"{wanted:.4g}" in told["privacy"]
    assert told["stamps"] == []


def test_what_a_site_keeps_is_its_own_and_no_answer_stays_after_the_run(
    finished: tuple[Path, dict[str, Path]],
) -> None:
    run, sites = finished
    run_id = json.loads((run / "run.json").read_text())["run_id"]
    for path in sites.values():
        state = Site.open(path).state
        assert not (state / run_id / kept_answer.NAME).exists(), "the server said that the run is complete"
        assert [p for p in state.rglob("*") if stat.S_IMODE(p.stat().st_mode) & 0o077] == []
        out = [e for e in wall.read(state / "wall.jsonl") if e["kind"] == "tensors" and e["direction"] == "out"]
        assert sorted({e["round"] for e in out}) == [0, 1]
        assert json.loads((state / "received_head.json").read_text())["count"] > 0
    assert not (run / "sites").exists()
    assert processes.belonging_to(run) == []


@pytest.mark.slow
def test_a_site_whose_budget_is_spent_refuses_with_a_constant_and_the_other_goes_on(
    repository: Path,
    tmp_path: Path,
    finished: tuple[Path, dict[str, Path]],
    make_site: Callable[..., Path],
    private_settings: Callable[..., list[str]],
) -> None:
    """The first round fits into hosp-a's budget, the second does not."""
    plan = job_folder.read_plan(finished[0] / "job")
    one, two = (epsilon([round_event(plan, "hosp-a")] * n, 1e-3) for n in (1, 2))
    sites = {
        "hosp-a": make_site(tmp_path, "hosp-a", f"max_epsilon={(one + two) / 2}"),
        "hosp-b": make_site(tmp_path, "hosp-b"),
    }
    job_folder.new(repository / "jobs" / "ct_fedavg", tmp_path / "job", private_settings(*SITES, answer_after_s=25.0))
    local_run.run(tmp_path / "job", sites, tmp_path / "RUN")
    first, second = records.effective_rounds(tmp_path / "RUN" / "rounds.jsonl")
    assert first.sites["hosp-a"].answered
    assert (second.sites["hosp-a"].answered, second.sites["hosp-a"].refused) == (False, REFUSED_BY_POLICY)
    assert second.sites["hosp-b"].answered
    assert second.seconds is not None
    assert second.seconds >= 25.0
    site = Site.open(sites["hosp-a"])
    assert sum(event.steps for event in site.open_ledger().events()) == 2
    refused = [json.loads(line) for line in (site.state / "refusals.jsonl").read_text().splitlines()]
    assert [entry["phase"] for entry in refused] == ["round"]
    assert any("budget: the next round would bring epsilon to" in reason for reason in refused[0]["reasons"])


@pytest.mark.slow
def test_a_noised_loss_and_eight_bits_cross_the_wire_from_the_site_that_allows_it_and_no_other(
    repository: Path, tmp_path: Path, make_site: Callable[..., Path], private_settings: Callable[..., list[str]]
) -> None:
    sites = {
        "hosp-a": make_site(tmp_path, "hosp-a", 'answers=["update", "loss"]'),
        "hosp-b": make_site(tmp_path, "hosp-b"),
    }
    eight_bits = ("update_precision=int8",)
    settings = private_settings(
        *SITES, answer_after_s=ANSWER_AFTER_S, settings=eight_bits, loss={"noise_multiplier": 20.0}
    )
    plan = job_folder.new(repository / "jobs" / "ct_fedavg", tmp_path / "job", settings)
    assert plan.privacy is not None
    local_run.run(tmp_path / "job", sites, tmp_path / "RUN")
    rounds = records.effective_rounds(tmp_path / "RUN" / "rounds.jsonl")
    assert len(rounds) == 2
    for record in rounds:
        assert "hosp-b" not in record.sites, "it refused the job when it was deployed"
        assert isinstance(record.sites["hosp-a"].loss, float)
        assert record.loss == pytest.approx(record.sites["hosp-a"].loss)
    assert Site.open(sites["hosp-b"]).open_ledger().events() == []
    assert "policy answers do not allow it" in (Site.open(sites["hosp-b"]).state / "refusals.jsonl").read_text()
    (event, *_) = Site.open(sites["hosp-a"]).open_ledger().events()
    assert event.noise_multiplier == plan.privacy.charged_noise_multiplier < plan.privacy.noise_multiplier
