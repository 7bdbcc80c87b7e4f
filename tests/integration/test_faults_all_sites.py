"""All sites fail in one round: the run stops with its last good model, and goes on when the cause is mended."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from fedscan.federation import federation_file, job_folder, kits, processes, records, remote_run
from fedscan.federation.local_run import Progress
from fedscan.federation.verdict import Verdict
from fedscan.training import model_file

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]

SITES = ("hosp-a", "hosp-b", "hosp-c")
ROUNDS, STEPS, TRIES = 3, 2, 2
FAILS_IN = 1
STOPPED = f"round {FAILS_IN + 1} failed {TRIES} times: 0 good answers, the plan needs 3"


class Failing:
    """A federation whose sites fail in that round for as long as a cause lies in a folder."""

    def __init__(self, lab: Any, causes: Path) -> None:
        self.lab, self.causes = lab, causes

    def begin(self, cause: str) -> None:
        (self.causes / cause).write_text(str(FAILS_IN))

    def mend(self) -> None:
        for path in self.causes.iterdir():
            path.unlink()


@pytest.fixture(scope="module")
def failing(
    tmp_path_factory: pytest.TempPathFactory, make_site: Callable[..., Path], lab: Callable[..., Any]
) -> Iterator[Failing]:
    folder = tmp_path_factory.mktemp("all")
    causes = folder / "causes"
    causes.mkdir()
    sites = {name: make_site(folder, name, "max_epsilon=10000") for name in SITES}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(Path(__file__).parent / "failing_sites"))
        patch.setenv("FEDSCAN_TEST_CAUSES", str(causes))
        with lab(folder / "lab", sites) as running:
            yield Failing(running, causes)


class Run:
    """Of the lead's."""

    def __init__(self, failing: Failing, folder: Path, job: Path, cause: str, mended_at: str = "") -> None:
        self.failing, self.job, self.run = failing, job, folder / "RUN"
        self.mended_at = mended_at
        failing.begin(cause)
        self.before = self._in_all()
        self.lines: list[str] = []
        self.mended = 0.0

    def listen(self, progress: Progress) -> None:
        print(time.strftime("%X"), progress.text, flush=True)
        self.lines.append(progress.text)
        if self.mended_at and self.mended_at in progress.text and not self.mended:
            self.mend()

    def mend(self) -> None:
        self.failing.mend()
        self.mended = time.monotonic()

    def start(self, *, until_done: bool = False) -> Verdict:
        kit = self.failing.lab.federation.kit(kits.LEAD)
        return remote_run.run(self.job, kit, self.run, self.listen, until_done=until_done)

    def _in_all(self) -> dict[str, int]:
        return {name: self.failing.lab.steps_charged(name) for name in SITES}

    def charged(self) -> dict[str, int]:
        """Steps, by each site."""
        return {name: steps - self.before[name] for name, steps in self._in_all().items()}

    def events(self) -> list[str]:
        return [record.event for record in records.read(self.run / "rounds.jsonl")]

    def refused(self) -> list[dict[str, str | None]]:
        found = [r.sites for r in records.read(self.run / "rounds.jsonl") if r.event == "repeat"]
        return [{name: entry.refused for name, entry in sites.items()} for sites in found]


@pytest.fixture
def make_run(
    failing: Failing, private_settings: Callable[..., list[str]], repository: Path, tmp_path: Path
) -> Iterator[Callable[..., Run]]:
    def make(cause: str, mended_at: str = "") -> Run:
        more = (f"rounds={ROUNDS}", f"training.local_steps={STEPS}", f"tries_per_round={TRIES}", "min_responses=3")
        template = repository / "jobs" / "ct_fedavg"
        settings = private_settings(*SITES, settings=more, answer_after_s=15.0)
        job_folder.new(template, tmp_path / "job", settings, SITES)
        return Run(failing, tmp_path, tmp_path / "job", cause, mended_at)

    yield make
    failing.mend()


def test_all_trainers_die_the_run_stops_with_its_last_good_model_and_resumes(
    failing: Failing, make_run: Callable[..., Run]
) -> None:
    run = make_run("dies")
    judged = run.start()
    assert judged.ended == "stopped"
    assert not judged.good
    assert any(STOPPED in text for text in judged.failings), judged.failings
    assert run.lines.count("round asked again: 0 good answers, the plan needs 3") == TRIES
    assert run.events() == ["started", "asked", "round", *["asked", "repeat"] * TRIES, "stopped"]
    assert run.refused() == [dict.fromkeys(SITES, "refused by policy")] * TRIES
    assert model_file.load_model(run.run / "model.safetensors").provenance["rounds_done"] == FAILS_IN
    # What a dead child might have trained stays paid; it is started once more in each try, and may be ready in time.
    paid = run.charged()
    assert all(STEPS * (1 + TRIES) <= steps <= STEPS * (1 + 2 * TRIES) for steps in paid.values()), paid
    for name in SITES:
        assert any("trainer" in reason for reason in failing.lab.reasons(name))
    run.mend()
    judged = remote_run.resume(run.run, run.listen)
    print(f"mended, resumed and done in {time.monotonic() - run.mended:.0f} s")
    assert judged.good, judged.failings
    assert judged.rounds_done == ROUNDS
    assert run.charged() == {name: steps + STEPS * (ROUNDS - 1) for name, steps in paid.items()}
    assert processes.belonging_to(failing.lab.folder)


def test_answers_that_are_kept_are_given_by_the_next_job_and_paid_once(make_run: Callable[..., Run]) -> None:
    """By the supervisor alone: it resumes, and the cause ends meanwhile."""
    run = make_run("loses", mended_at="the job ended")
    judged = run.start(until_done=True)
    print(f"mended and done in {time.monotonic() - run.mended:.0f} s")
    assert judged.good, judged.failings
    assert any(line.startswith("the job ended") and STOPPED in line for line in run.lines)
    file = federation_file.read(run.run)
    assert file is not None
    assert len(file.jobs) == 2
    assert run.refused() == [dict.fromkeys(SITES, "refused by policy")] * TRIES
    assert judged.sites["hosp-a"].asked == ROUNDS + TRIES
    assert run.charged() == dict.fromkeys(SITES, STEPS * ROUNDS), "asked three times for the round, paid for once"
