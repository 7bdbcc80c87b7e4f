"""A site without guard and gate sends answers again, old ones, another's and another job's: none counts, each is noted.

Two runs of one plan in one federation; what the site does stands in `replaying_site/sitecustomize.py`.
"""

from __future__ import annotations

import functools
import runpy
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from watched import WatchedServer
from weak_kit import weaken

from fedscan.federation import job_folder, records, turned_away
from fedscan.federation.audit_log import Event
from fedscan.federation.verdict import Verdict
from fedscan.federation.verdict import read as read_verdict

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

REPLAYER, VICTIM, THIRD = "hosp-b", "hosp-a", "hosp-c"
REPLAYING_SITE = Path(__file__).parent / "replaying_site"
ACTS = [act.__name__ for act in runpy.run_path(str(REPLAYING_SITE / "sitecustomize.py"))["ACTS"]]
TURNED_AWAY = {
    "twice": turned_away.AGAIN,
    "an_old_one_before_it": turned_away.AGAIN,
    "one_of_another_job_before_it": turned_away.OTHER_JOB,
    "one_for_another_site_before_it": turned_away.OTHER_SITE,
    "of_a_task_that_never_was": turned_away.NO_TASK,
}
OTHER_ROUND, OTHER_RUN = (f"stale answer: it belongs to another {what}" for what in ("round", "run"))


@dataclass(frozen=True)
class Ran:
    """One run, as its server saw it."""

    rounds: list[records.RoundRecord]
    verdict: Verdict
    refused: list[Event]
    """In the server's chained log, which holds."""

    def of(self, act: str) -> records.RoundRecord:
        return self.rounds[ACTS.index(act)]


@pytest.fixture(scope="module")
def ran(
    tmp_path_factory: pytest.TempPathFactory, stores: dict[str, Path], lab: Callable[..., Any], repository: Path
) -> list[Ran]:
    folder = tmp_path_factory.mktemp("replays")
    settings = ["model.preset=tiny", "training.local_steps=2", "training.batch_size=4", "training.warmup_steps=1"]
    settings += ["min_responses=2", "tries_per_round=1", "round_timeout_s=60", f"rounds={len(ACTS)}"]
    jobs = [folder / "first" / "job", folder / "second" / "job"]
    for job in jobs:
        job_folder.new(repository / "jobs" / "ct_fedavg", job, settings, sorted(stores))
    (folder / "shared").mkdir()
    found = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(REPLAYING_SITE))
        patch.setenv("FEDSCAN_TEST_REPLAYS", str(folder / "shared"))
        patch.setenv("FEDSCAN_TEST_REPLAYER", REPLAYER)
        patch.setenv("FEDSCAN_TEST_VICTIM", VICTIM)
        with lab(folder / "lab", stores, change=functools.partial(weaken, site=REPLAYER)) as running:
            for job in jobs:
                server = WatchedServer(running)
                running.run(job)
                run = running.run_folder(job)
                verdict = read_verdict(run / "verdict.json")
                assert verdict is not None
                found.append(Ran(records.effective_rounds(run / "rounds.jsonl"), verdict, server.refused()))
                print([(act, r.sites[REPLAYER]) for act, r in zip(ACTS, found[-1].rounds, strict=False)])
    return found


@pytest.mark.parametrize("act", TURNED_AWAY)
def test_an_answer_that_no_task_waits_for_is_turned_away_and_the_sites_own_is_taken(ran: list[Ran], act: str) -> None:
    record = ran[0].of(act)
    assert record.sites[REPLAYER].also_refused == (TURNED_AWAY[act],)
    assert all(record.sites[site].answered for site in (REPLAYER, VICTIM, THIRD))
    assert all(record.sites[site].also_refused is None for site in (VICTIM, THIRD))
    digests = {record.sites[site].update_digest for site in (REPLAYER, VICTIM, THIRD)}
    assert len(digests) == 3, "the victim's answer is its own"
    assert record.sites[REPLAYER].update_digest != ran[0].of("honest").sites[REPLAYER].update_digest


@pytest.mark.parametrize(
    ("run", "act", "reason"), [(0, "an_old_one_in_its_place", OTHER_ROUND), (1, "honest", OTHER_RUN)]
)
def test_an_answer_of_another_round_or_run_is_refused_and_the_quorum_goes_on(
    ran: list[Ran], run: int, act: str, reason: str
) -> None:
    record = ran[run].of(act)
    assert (record.sites[REPLAYER].answered, record.sites[REPLAYER].refused) == (False, reason)
    assert record.sites[REPLAYER].weight is None
    assert all(record.sites[site].answered for site in (VICTIM, THIRD))


def test_all_rounds_are_done_and_the_verdict_names_each_of_them(ran: list[Ran]) -> None:
    assert [one.verdict.rounds_done for one in ran] == [len(ACTS)] * 2
    told = {(r.round, r.reason) for r in ran[0].verdict.rejected if r.site == REPLAYER}
    wanted = {(ACTS.index(act), reason) for act, reason in TURNED_AWAY.items()}
    assert told == wanted | {(ACTS.index("an_old_one_in_its_place"), OTHER_ROUND)}
    assert [(r.round, r.site, r.reason) for r in ran[1].verdict.rejected] == [(0, REPLAYER, OTHER_RUN)]
    assert {r.site for r in ran[0].verdict.rejected} == {REPLAYER}


def test_each_is_in_the_servers_chained_log(ran: list[Ran]) -> None:
    for one in ran:
        answers = [(event.who, event.text) for event in one.refused if event.text.startswith("answer, ")]
        assert answers == [
            (rejected.site, f"answer, round {rejected.round} of run {one.verdict.run_id}: {rejected.reason}")
            for rejected in one.verdict.rejected
        ]
        assert all(event.job for event in one.refused if event.text.startswith("answer, "))
