"""A site's network is cut, by a pulled plug and by a silent drop, for less and for more than the round's time-out."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

import cut_network
import pytest
from cut_network import LINK_DOWN, SILENT, CutFederation

from fedscan.federation import federation_file, job_folder, kits, records

WHY_NOT = cut_network.why_not()
pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(1500),
    pytest.mark.skipif(WHY_NOT is not None, reason=str(WHY_NOT)),
]
SITES = ("hosp-a", "hosp-b")
ROUNDS, STEPS = 4, 2
CUT_IN = 1


@pytest.fixture(scope="module")
def federation(tmp_path_factory: pytest.TempPathFactory, make_site: Callable[..., Path]) -> Iterator[CutFederation]:
    folder = tmp_path_factory.mktemp("cut")
    sites = {name: make_site(folder, name, "max_epsilon=10000") for name in SITES}
    with cut_network.running(folder / "federation", sites) as made:
        yield made


class Cut:
    """A run during which hosp-b's cable is cut once, after it was asked for a round; what came of it."""

    def __init__(self, federation: CutFederation, job: Path, run: Path) -> None:
        self.federation, self.run = federation, run
        self.before = {name: federation.steps_charged(name) for name in SITES}
        self.lines: list[tuple[float, str]] = []
        words = ("job", "run", str(job), "--kit", str(federation.kit(kits.LEAD)), "--out", str(run), "--until-done")
        self.command = federation.command(*words)
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        assert self.command.stdout is not None
        for line in self.command.stdout:
            self.lines.append((time.monotonic(), line.strip()))
            print(f"{time.strftime('%X')} {line.strip()}", flush=True)

    def records(self) -> list[records.RoundRecord]:
        """The server's own, while the run goes on."""
        file = federation_file.read(self.run) if self.run.is_dir() else None
        path = self.federation.folder / "runs" / file.run_id / "rounds.jsonl" if file else None
        return list(records.read(path)) if path and path.exists() else []

    def wait_for(self, seen: Callable[[records.RoundRecord], bool], timeout_s: float = 300.0) -> float:
        deadline = time.monotonic() + timeout_s
        while not any(seen(record) for record in self.records()):
            assert self.command.poll() is None, self.lines[-5:]
            assert time.monotonic() < deadline, "it did not happen in time"
            time.sleep(0.1)
        return time.monotonic()

    def cut(self, how: str, seconds: float) -> float:
        """For so long, from the moment that hosp-b had charged the round; returns when the cable was whole again."""
        self.wait_for(lambda record: record.event == "asked" and record.round == CUT_IN)
        while self.charged("hosp-b") <= CUT_IN * STEPS:
            time.sleep(0.1)
        self.federation.wire.cut(how)
        time.sleep(seconds)
        self.federation.wire.mend()
        return time.monotonic()

    def end(self) -> None:
        assert self.command.wait(timeout=600) == 0, self.lines[-5:]
        self._reader.join()

    def charged(self, name: str) -> int:
        return self.federation.steps_charged(name) - self.before[name]

    def answered(self, name: str) -> list[bool]:
        done = records.effective_rounds(self.run / "rounds.jsonl")
        return [name in r.sites and r.sites[name].answered for r in done]


@pytest.fixture
def start(
    federation: CutFederation, private_settings: Callable[..., list[str]], repository: Path, tmp_path: Path
) -> Callable[..., Cut]:
    def begin(*settings: str) -> Cut:
        more = (f"rounds={ROUNDS}", f"training.local_steps={STEPS}", "tries_per_round=20", *settings)
        job = tmp_path / "job"
        template = repository / "jobs" / "ct_fedavg"
        job_folder.new(template, job, private_settings(*SITES, settings=more, answer_after_s=12.0), SITES)
        return Cut(federation, job, tmp_path / "RUN")

    return begin


def said(cut: Cut) -> str:
    return "\n".join(line for _, line in cut.lines)


@pytest.mark.parametrize("how", [LINK_DOWN, SILENT])
def test_a_cut_that_is_shorter_than_the_rounds_time_out_costs_seconds_and_no_answer(
    how: str, start: Callable[..., Cut]
) -> None:
    cut = start("round_timeout_s=200", "min_responses=2")
    whole = cut.cut(how, 30.0)
    done = cut.wait_for(lambda record: record.event == "round" and record.round == CUT_IN)
    print(f"{how}, shorter: the round ended {done - whole:.1f} s after the cable was whole", flush=True)
    cut.end()
    assert [r.event for r in records.read(cut.run / "rounds.jsonl")].count("repeat") == 0
    for name in SITES:
        assert cut.answered(name) == [True] * ROUNDS
        assert cut.charged(name) == ROUNDS * STEPS


@pytest.mark.parametrize("how", [LINK_DOWN, SILENT])
def test_after_a_longer_cut_the_site_gives_its_kept_answer_and_pays_once(how: str, start: Callable[..., Cut]) -> None:
    cut = start("round_timeout_s=30", "min_responses=2")
    whole = cut.cut(how, 40.0)
    done = cut.wait_for(lambda record: record.event == "round" and record.round == CUT_IN)
    print(f"{how}, longer: the round ended {done - whole:.1f} s after the cable was whole", flush=True)
    cut.end()
    assert "round asked again: 1 good answers, the plan needs 2" in said(cut)
    assert "no answer in time" in said(cut)
    for name in SITES:
        assert cut.answered(name) == [True] * ROUNDS
        assert cut.charged(name) == ROUNDS * STEPS, "the same model: the kept answer, without a second charge"


def test_where_the_quorum_holds_the_others_go_on_and_the_site_comes_back_by_itself(start: Callable[..., Cut]) -> None:
    """Longer than the server's heartbeat time-out of 60 s, after which the site counts as gone."""
    cut = start("rounds=16", "round_timeout_s=20", "min_responses=1")
    cut.cut(SILENT, 80.0)
    whole = datetime.now(UTC)
    cut.end()
    later = [r for r in records.effective_rounds(cut.run / "rounds.jsonl") if datetime.fromisoformat(r.time) > whole]
    back = next(r for r in later if r.sites["hosp-b"].answered)
    took = datetime.fromisoformat(back.time) - whole
    print(f"hosp-b answered {cut.answered('hosp-b')}: {took} after the cable was whole", flush=True)
    assert cut.answered("hosp-a") == [True] * 16
    assert cut.charged("hosp-a") == 16 * STEPS
    assert not cut.answered("hosp-b")[CUT_IN]
    assert any(cut.answered("hosp-b")[CUT_IN + 1 :])
