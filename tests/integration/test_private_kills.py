"""kill -9 at random moments of private training: the ledger never holds less than what was trained or left.

Most kills hit a site's job process and its trainer child, without NVFlare, over two jobs in one ledger; the server is
this test. What really happened is known from outside: every step is noted by `site_side/sitecustomize.py`, every answer
by the server that got it.
"""

from __future__ import annotations

import os
import random
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from asking_server import ROUNDS, SITE, STEPS, plan_of
from ledger_checks import check_left, check_steps, steps_noted
from site_lives import Hospital, Starter

from fedscan.privacy.event import round_event
from fedscan.privacy.site_file import Site

KILLS, QUICK_KILLS = 200, 8
KILLS_A_SITE = 25
"""Then the site must come to the end of its jobs undisturbed, and a new site, with a ledger of its own, is next."""


@pytest.fixture(scope="module")
def starter(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Starter]:
    plan = tmp_path_factory.mktemp("starter") / "plan.json"
    plan.write_text(plan_of(0).model_dump_json())
    one = Starter(plan)
    yield one
    one.end()


@pytest.mark.timeout(3500)
@pytest.mark.parametrize("kills", [QUICK_KILLS, pytest.param(KILLS, marks=pytest.mark.slow)])
def test_no_step_is_uncharged_and_no_answer_unpaid_whenever_a_site_is_killed(
    kills: int, starter: Starter, make_site: Callable[..., Path]
) -> None:
    kills = int(os.environ.get("FEDSCAN_TEST_KILLS", kills))
    seed = int(os.environ.get("FEDSCAN_TEST_SEED", random.SystemRandom().randrange(10**6)))
    print(f"seed {seed}: FEDSCAN_TEST_SEED={seed} draws the same moments")
    rng, left = random.Random(seed), kills
    lasted: list[float] = []
    total: Counter[str] = Counter()
    hit: Counter[str] = Counter()
    while left:
        with ExitStack() as stack:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="kills-")))  # sockets need short paths
            hospital = Hospital(folder, make_site(folder, SITE, "max_epsilon=10000"), starter, rng, lasted)
            if not lasted:
                hospital.live(0)
            budget = min(left, KILLS_A_SITE)
            while hospital.server.job is not None:
                done = hospital.live(budget)
                budget, left = budget - done, left - done
            _check_end(hospital)
            total, hit = total + hospital.kills, hit + hospital.hit
            print(f"{kills - left} of {kills} kills, {len(hospital.server.left)} answers", flush=True)
    print(f"seed {seed}: {sum(total.values())} kills: {dict(total)}; hit: {dict(hit)}")
    assert sum(total.values()) == kills


def _check_end(hospital: Hospital) -> None:
    """Both jobs came to their end, and the real ledger, not a copy, says the same."""
    ledger = Site.open(hospital.site_json).open_ledger()
    check_left(ledger, hospital.server.left)
    check_steps(ledger, steps_noted(hospital.steps))
    noted = Counter(step["charge"] for step in steps_noted(hospital.steps))
    for answer in hospital.server.left:
        assert noted[answer.record.ledger.count] == STEPS, "the steps of an answer were not seen: this test is blind"
    for job in hospital.server.jobs:
        rounds = {a.record.round_number for a in hospital.server.left if a.record.run_id == job.run_id and a.sha256}
        assert rounds == set(range(ROUNDS))
        assert round_event(job.plan, SITE) in ledger.events()
    assert list(hospital.state.glob("*/.*.part")) == [], "what a killed writer left lies about for ever"
    answers = {a.sha256 for a in hospital.server.left if a.sha256}
    assert len(answers) <= len({a.record.ledger.count for a in hospital.server.left})
    assert all("trainer child" in reason for reason in hospital.server.refused)
