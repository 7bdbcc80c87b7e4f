"""A certificate ends in the middle of a run: a site's, and the lead's. Open connections stay; new ones are refused."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import short_certificate
import yaml

from fedscan.federation import admin, federation_file, job_folder, kits, processes, records, remote_run
from fedscan.federation.local_run import Progress, RunError
from fedscan.federation.verdict import Verdict

WHY_NOT = short_certificate.why_not()
pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(1500),
    pytest.mark.skipif(WHY_NOT is not None, reason=str(WHY_NOT)),
]
KEPT, ENDING = "hosp-a", "hosp-b"
ANSWER_AFTER_S = 8.0


@pytest.fixture
def running(tmp_path: Path, make_site: Callable[..., Path], lab: Callable[..., Any]) -> Iterator[Any]:
    """Server, hosp-a and a lead at work; hosp-b was not started yet."""
    sites = {name: make_site(tmp_path, name, "max_epsilon=10000") for name in (KEPT, ENDING)}
    with lab(tmp_path / "lab", sites, start=(KEPT,)) as made:
        yield made


class Run:
    """Of the lead's, in a thread."""

    def __init__(self, running: Any, job: Path, run: Path) -> None:
        self.running, self.run = running, run
        self.lines: list[tuple[float, str]] = []
        self.ended: list[Verdict | RunError] = []
        self._thread = threading.Thread(target=self._to_the_end, args=(job,))
        self._thread.start()

    def _to_the_end(self, job: Path) -> None:
        kit = self.running.federation.kit(kits.LEAD)
        try:
            self.ended.append(remote_run.run(job, kit, self.run, self.listen))
        except RunError as error:
            print(time.strftime("%X"), error, flush=True)
            self.ended.append(error)

    def listen(self, progress: Progress) -> None:
        print(time.strftime("%X"), progress.text, flush=True)
        self.lines.append((time.monotonic(), progress.text))

    def records(self) -> list[records.RoundRecord]:
        """The server's own."""
        file = federation_file.read(self.run) if self.run.is_dir() else None
        path = self.running.folder / "runs" / file.run_id / "rounds.jsonl" if file else None
        return list(records.read(path)) if path and path.exists() else []

    def rounds(self, site: str, since: datetime) -> list[bool]:
        """Whether this site answered, in the rounds that ended after that time."""
        done = [r for r in self.records() if r.event == "round" and datetime.fromisoformat(r.time) > since]
        return [r.sites[site].answered for r in done]

    def end(self) -> Verdict | RunError:
        self._thread.join(timeout=900)
        assert self.ended, self.lines[-5:]
        return self.ended[-1]


def until(done: Callable[[], bool], limit_s: float = 240.0, every_s: float = 0.2) -> float:
    began = time.monotonic()
    while not done():
        assert time.monotonic() - began < limit_s, "it did not come about in time"
        time.sleep(every_s)
    return time.monotonic() - began


@pytest.fixture
def start(
    running: Any, private_settings: Callable[..., list[str]], repository: Path, tmp_path: Path
) -> Callable[..., Run]:
    def begin(*settings: str) -> Run:
        more = (*settings, "min_responses=1", "round_timeout_s=25", "tries_per_round=20")
        job = tmp_path / "job"
        template = repository / "jobs" / "ct_fedavg"
        made = private_settings(KEPT, ENDING, settings=more, answer_after_s=ANSWER_AFTER_S)
        job_folder.new(template, job, made, (KEPT, ENDING))
        return Run(running, job, tmp_path / "RUN")

    return begin


def fedscan(*words: str) -> str:
    done = subprocess.run([sys.executable, "-m", "fedscan", *words], capture_output=True, text=True, check=False)
    return done.stdout


def _of(running: Any, name: str) -> list[Any]:
    kit = str(running.federation.kit(name).resolve())
    return [p for p in processes.belonging_to(running.folder) if kit in p.cmdline()]


def test_a_sites_certificate_ends_and_is_renewed_within_one_run(running: Any, start: Callable[..., Run]) -> None:
    federation = running.federation
    end = short_certificate.let_end(federation, ENDING, 100.0)
    running.start(ENDING)
    admin.wait_for_sites(running.session, (KEPT, ENDING), lambda: None)
    run = start("rounds=26")
    until(lambda: any(r.event == "round" for r in run.records()))
    assert datetime.now(UTC) < end, "this machine is too slow for the test"
    until(lambda: len(run.rounds(ENDING, since=end)) >= 2)
    assert run.rounds(ENDING, since=end) == [True, True], "what is connected stays connected"

    port = int(yaml.safe_load((federation.folder / "project.yml").read_text())["participants"][0]["fed_learn_port"])
    done = len(run.rounds(KEPT, since=end))
    until(lambda: len(run.rounds(KEPT, since=end)) > done, every_s=0.005)
    time.sleep(0.05)  # the site fetches the model of the next round: what breaks now NVFlare waits for
    cut_at = datetime.now(UTC)
    assert short_certificate.end_connections(_of(running, ENDING), port) >= 1
    until(lambda: run.rounds(ENDING, since=cut_at)[-2:] == [False, False])
    assert run.rounds(KEPT, since=cut_at).count(False) == 0
    kit = federation.kit(ENDING)
    checked, doctor = fedscan("site", "check", str(kit)), fedscan("site", "doctor", str(kit))
    print(checked, doctor)
    assert "startup/client.crt ended on" in checked
    assert "refused this site's certificate" in checked
    assert "server-hangs-up" in doctor

    short_certificate.renew(federation, ENDING)
    renewed_at, began = datetime.now(UTC), time.monotonic()
    until(lambda: any(run.rounds(ENDING, since=renewed_at)))
    print(f"answers again {time.monotonic() - began:.0f} s after the renewed kit lay there, without a restart")
    judged = run.end()
    assert isinstance(judged, Verdict)
    assert judged.good, judged.failings
    assert judged.sites[KEPT].answered == 26


def test_the_leads_certificate_ends_the_run_goes_on_and_the_lead_is_told(
    running: Any, start: Callable[..., Run], tmp_path: Path
) -> None:
    federation = running.federation
    running.start(ENDING)
    admin.wait_for_sites(running.session, (KEPT, ENDING), lambda: None)
    running.session.close()
    end = short_certificate.let_end(federation, kits.LEAD, 45.0)
    run = start("rounds=8")
    told = run.end()
    assert datetime.now(UTC) > end, "the run was done before"
    assert isinstance(told, RunError)
    assert "certificate ended on" in str(told)
    assert run.lines[-1][1].endswith("trying again"), run.lines[-1]
    until(lambda: len(run.rounds(KEPT, since=end)) >= 2)
    assert all(run.rounds(ENDING, since=end)), "sites go on with a job that was signed in time"
    short_certificate.renew(federation, kits.LEAD)
    judged = remote_run.watch(tmp_path / "RUN", run.listen)
    assert judged is not None
    assert judged.good, judged.failings
    assert all(share.answered == 8 for share in judged.sites.values())
