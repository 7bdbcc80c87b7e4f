"""A site's clock is an hour ahead, another's an hour behind: what goes by the clock there, and what does not."""

from __future__ import annotations

import contextlib
import json
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import shifted_clock
from shifted_clock import ShiftedClock

from fedscan.federation import admin, job_folder, kits, records, remote_run
from fedscan.plan import Submission

WHY_NOT = shifted_clock.why_not()
pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(1500),
    pytest.mark.skipif(WHY_NOT is not None, reason=str(WHY_NOT)),
]
RIGHT, AHEAD, BEHIND = "hosp-a", "hosp-b", "hosp-c"
HOUR = 3600
OFF = {RIGHT: 0, AHEAD: HOUR, BEHIND: -HOUR}
ANSWER_AFTER_S = 12.0


def fedscan(clock: ShiftedClock, off_s: int, *words: str) -> str:
    """What a command prints by such a clock."""
    with clock.here(off_s):
        done = subprocess.run([sys.executable, "-m", "fedscan", *words], capture_output=True, text=True, check=False)
    return done.stdout


class Wrong:
    """A federation with two wrong clocks. Its kits are two hours old: new ones would not be valid yet."""

    def __init__(self, lab: Any, clock: ShiftedClock) -> None:
        self.lab, self.clock = lab, clock

    def fedscan(self, site: str, *words: str) -> str:
        """A command at the site, by its clock."""
        with self.clock.here(OFF[site]):
            done = subprocess.run(
                [sys.executable, "-m", "fedscan", *words], capture_output=True, text=True, check=False
            )
        print(done.stderr)
        return done.stdout


@pytest.fixture(scope="module")
def clock(tmp_path_factory: pytest.TempPathFactory) -> ShiftedClock:
    return ShiftedClock(tmp_path_factory.mktemp("clock"))


@pytest.fixture(scope="module")
def wrong(
    tmp_path_factory: pytest.TempPathFactory,
    make_site: Callable[..., Path],
    lab: Callable[..., Any],
    clock: ShiftedClock,
) -> Iterator[Wrong]:
    folder = tmp_path_factory.mktemp("clocks")
    sites = {name: make_site(folder, name, "max_epsilon=10000") for name in OFF}
    provision = kits.run_provisioner

    def provisioned_earlier(workspace: Path, *options: str) -> None:
        with clock.here(-2 * HOUR):
            provision(workspace, *options)

    with contextlib.ExitStack() as stack:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(kits, "run_provisioner", provisioned_earlier)
            running = stack.enter_context(lab(folder / "lab", sites, start=(RIGHT,)))
        for name in (AHEAD, BEHIND):
            with clock.here(OFF[name]):
                running.start(name)
        admin.wait_for_sites(running.session, tuple(OFF), lambda: None)
        yield Wrong(running, clock)


@pytest.fixture
def make_job(repository: Path, tmp_path: Path, private_settings: Callable[..., list[str]]) -> Callable[..., Path]:
    def make(name: str = "job") -> Path:
        settings = private_settings(
            *OFF, settings=("rounds=2", "min_responses=3", "tries_per_round=20"), answer_after_s=ANSWER_AFTER_S
        )
        job_folder.new(repository / "jobs" / "ct_fedavg", tmp_path / name, settings, tuple(OFF))
        return tmp_path / name

    return make


def test_a_run_goes_as_ever_and_answers_leave_at_their_time(
    wrong: Wrong, make_job: Callable[..., Path], tmp_path: Path
) -> None:
    kit = wrong.lab.federation.kit(kits.LEAD)
    judged = remote_run.run(make_job(), kit, tmp_path / "RUN", lambda said: print(time.strftime("%X"), said.text))
    assert judged.good, judged.failings
    for record in records.effective_rounds(tmp_path / "RUN" / "rounds.jsonl"):
        assert all(entry.answered for entry in record.sites.values())
        assert record.seconds is not None
        assert ANSWER_AFTER_S - 1 < record.seconds < ANSWER_AFTER_S + 20, "by a clock that nobody sets"
    assert all(wrong.lab.steps_charged(name) >= 4 for name in OFF)
    assert sorted(admin.connected(wrong.lab.session)) == sorted(OFF)


@pytest.mark.parametrize("site", OFF)
def test_the_ledger_and_the_audit_log_hold_the_sites_time_and_stay_in_order(wrong: Wrong, site: str) -> None:
    """The chain goes by order, not by time."""
    kit = wrong.lab.federation.kit(site)
    found = json.loads(wrong.fedscan(site, "audit", "log", "--verify", "--json", str(kit)))
    assert found["ok"], found["faults"]
    newest = datetime.fromisoformat(found["records"][-1]["time"])
    assert OFF[site] - 600 < (newest - datetime.now(UTC)).total_seconds() < OFF[site] + 10


@pytest.mark.parametrize("site", OFF)
def test_site_check_says_that_a_clock_is_wrong(wrong: Wrong, site: str) -> None:
    said = wrong.fedscan(site, "site", "check", str(wrong.lab.federation.kit(site)))
    print([line for line in said.splitlines() if "clock" in line])
    told = re.search(r"error: clock: this machine's clock is (\d+) s apart from the server's", said)
    assert bool(told) is bool(OFF[site])
    assert told is None or abs(int(told[1]) - HOUR) < 10


def _taken(wrong: Wrong, job: Path) -> set[str]:
    """The sites that took a job at its deployment."""
    lines = wrong.lab.run(job)["job_deploy_detail"]
    print(lines)
    return {name for name in OFF if f"{name}: OK" in lines}


@pytest.mark.parametrize(
    ("minutes", "taken"), [(30, {RIGHT, BEHIND}), (-30, {BEHIND})], ids=["expires in 30 minutes", "30 minutes ago"]
)
def test_a_submission_expires_by_the_sites_own_clock(
    minutes: int, taken: set[str], wrong: Wrong, make_job: Callable[..., Path]
) -> None:
    job = make_job()
    expires = datetime.now(UTC).replace(microsecond=0) + timedelta(minutes=minutes)
    job_folder.renew(job, Submission.new().model_copy(update={"expires": expires.isoformat()}))
    assert _taken(wrong, job) == taken
    assert any("submission: it expired at" in reason for reason in wrong.lab.reasons(AHEAD))


def test_a_submission_is_taken_once_whatever_the_clock_says(wrong: Wrong, make_job: Callable[..., Path]) -> None:
    """By the nonce, which is never forgotten: a clock that goes back opens nothing."""
    job = make_job()
    job_folder.renew(job, Submission.new())
    assert _taken(wrong, job) == set(OFF)
    assert _taken(wrong, job) == set()
    for name in OFF:
        assert "its nonce was used before" in wrong.lab.reasons(name)[-1]


def test_quiet_hours_go_by_the_sites_own_clock(wrong: Wrong, make_job: Callable[..., Path]) -> None:
    """All three sites are quiet in the same hour, which is now at one of them."""
    then = datetime.now().astimezone() + timedelta(seconds=HOUR)
    hours = f"{then - timedelta(minutes=20):%H:%M}-{then + timedelta(minutes=20):%H:%M}"
    before = {path: path.read_text() for path in wrong.lab.sites.values()}
    try:
        for path, text in before.items():
            file = json.loads(text)
            file["limits"] = file.get("limits", {}) | {"quiet_hours": [hours]}
            path.write_text(json.dumps(file))
        job = make_job()
        job_folder.renew(job, Submission.new())
        assert _taken(wrong, job) == {RIGHT, BEHIND}
        assert f"quiet_hours: nothing is trained here in {hours}" in wrong.lab.reasons(AHEAD)[-1]
    finally:
        for path, text in before.items():
            path.write_text(text)


def test_to_a_clock_that_is_behind_a_kit_of_this_hour_is_not_valid_yet(
    make_site: Callable[..., Path], lab: Callable[..., Any], clock: ShiftedClock, tmp_path: Path
) -> None:
    """It waits, says so, and goes on by itself once its clock is right."""
    sites = {RIGHT: make_site(tmp_path, RIGHT)}
    with lab(tmp_path / "lab", sites, start=()) as running:
        kit = running.federation.kit(RIGHT)
        with clock.here(-HOUR, "set right"):
            process = running.start(RIGHT)
        console = kit / "console.log"
        until(lambda: "this site's certificate does not hold now" in console.read_text())
        time.sleep(10.0)
        assert admin.connected(running.session) == []
        assert process.poll() is None
        said = fedscan(clock, -HOUR, "site", "check", str(kit))
        assert "certificates: startup/client.crt holds from" in said
        assert "this machine's clock is behind" in said
        assert "shows a certificate that does not hold by this machine's clock" in said
        assert "turn on NTP" in said
        assert "certificate: once" in fedscan(clock, 0, "site", "doctor", str(kit))
        began = time.monotonic()
        clock.set("set right", 0)
        admin.wait_for_sites(running.session, (RIGHT,), lambda: None)
        print(f"in {time.monotonic() - began:.0f} s after its clock was right")
        assert process.poll() is None


def until(done: Callable[[], bool], limit_s: float = 120.0) -> None:
    deadline = time.monotonic() + limit_s
    while not done():
        assert time.monotonic() < deadline, "it did not come about in time"
        time.sleep(0.3)
