"""A disk that is full, at a site and at the server: nothing is trained unpaid, nothing damaged is written, and the run
goes on when there is room again."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import small_disk

from fedscan.federation import federation_file, job_folder, kits, records, remote_run
from fedscan.federation.local_run import Progress
from fedscan.federation.verdict import Verdict
from fedscan.privacy.site_file import Site
from fedscan.training import checkpoints

WHY_NOT = small_disk.why_not()
pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(1500),
    pytest.mark.skipif(WHY_NOT is not None, reason=str(WHY_NOT)),
]
SITES = ("hosp-a", "hosp-b")
ROUNDS, STEPS = 3, 2
DISKS = {"site": 24, "ledger": 4, "runs": 48}
"""MiB: all files of hosp-b, but its ledger and anchor; these; and what the server keeps of runs."""


class Small:
    """A federation with three small disks."""

    def __init__(self, lab: Any, disks: dict[str, Path]) -> None:
        self.lab, self.disks = lab, disks

    def charged(self, name: str) -> int:
        return sum(event.steps for event in Site.open(self.lab.sites[name]).open_ledger().events())

    def charged_after_the_first_round(self, name: str, run_id: str) -> int:
        """In the first one a trainer that loads for too long may cost a charge, on a busy machine."""
        ledger = Site.open(self.lab.sites[name]).open_ledger()
        paid = [ledger.paid_for(line.number) for line in ledger.lines]
        mine = [one.charge for one in paid if one is not None and one.charge.run_id == run_id]
        return sum(charge.event.steps for charge in mine if charge.round_number > 0)


@pytest.fixture(scope="module")
def small(
    tmp_path_factory: pytest.TempPathFactory, make_site: Callable[..., Path], lab: Callable[..., Any]
) -> Iterator[Small]:
    folder = tmp_path_factory.mktemp("disks")
    places = {"site": folder / "b", "ledger": folder / "ledger", "runs": folder / "lab" / "runs"}
    with (
        small_disk.mounted(places["site"], DISKS["site"]),
        small_disk.mounted(places["ledger"], DISKS["ledger"]),
        small_disk.mounted(places["runs"], DISKS["runs"]),
    ):
        homes = {"hosp-a": folder / "a", "hosp-b": places["site"]}
        sites = {name: make_site(homes[name], name, "max_epsilon=10000") for name in SITES}
        move_ledger(sites["hosp-b"], places["ledger"])
        with lab(folder / "lab", sites) as running:
            yield Small(running, places)


def move_ledger(site_json: Path, to: Path) -> None:
    """With its anchor, to a disk of their own."""
    site = Site.open(site_json)
    for path in [*site_json.parent.glob("ledger.jsonl*"), site.file.anchor]:
        shutil.move(path, to / path.name)
    file = json.loads(site_json.read_text())
    file |= {"ledger": str(to / site.file.ledger.name), "anchor": str(to / site.file.anchor.name)}
    site_json.write_text(json.dumps(file))
    Site.open(site_json).open_ledger()


class Run:
    """Of the lead's, in a thread; what was said is kept."""

    def __init__(self, small: Small, job: Path, run: Path) -> None:
        self.small, self.run = small, run
        self.kit = small.lab.federation.kit(kits.LEAD)
        self.lines: list[str] = []
        self.before = {name: small.charged(name) for name in SITES}
        self.verdicts: list[Verdict] = []
        self._thread = threading.Thread(target=self._to_the_end, args=(job,))
        self._thread.start()

    def _to_the_end(self, job: Path) -> None:
        self.verdicts.append(remote_run.run(job, self.kit, self.run, self.listen))

    def listen(self, progress: Progress) -> None:
        print(time.strftime("%X"), progress.text, flush=True)
        self.lines.append(progress.text)

    @property
    def folder(self) -> Path:
        file = federation_file.read(self.run)
        assert file is not None
        return self.small.disks["runs"] / file.run_id

    def records(self) -> list[records.RoundRecord]:
        return list(records.read(self.folder / "rounds.jsonl"))

    def wait_for(self, seen: Callable[[records.RoundRecord], bool], count: int = 1) -> None:
        wait_until(lambda: self.run.exists() and federation_file.read(self.run) is not None)
        wait_until(lambda: sum(map(seen, self.records())) >= count or not self._thread.is_alive())
        assert sum(map(seen, self.records())) >= count, self.lines[-5:]

    def end(self) -> Verdict:
        self._thread.join(timeout=600)
        assert self.verdicts, self.lines[-5:]
        return self.verdicts[-1]

    def charged(self, name: str) -> int:
        return self.small.charged(name) - self.before[name]


def wait_until(done: Callable[[], bool], timeout_s: float = 300.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not done():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.1)


@pytest.fixture
def start(
    small: Small, private_settings: Callable[..., list[str]], repository: Path, tmp_path: Path
) -> Callable[[], Run]:
    def begin() -> Run:
        more = (f"rounds={ROUNDS}", f"training.local_steps={STEPS}", "tries_per_round=30", "min_responses=2")
        job = tmp_path / "job"
        template = repository / "jobs" / "ct_fedavg"
        job_folder.new(template, job, private_settings(*SITES, settings=more, answer_after_s=10.0), SITES)
        return Run(small, job, tmp_path / "RUN")

    return begin


def is_round(number: int) -> Callable[[records.RoundRecord], bool]:
    return lambda record: record.event == "round" and record.round == number


def is_repeat(record: records.RoundRecord) -> bool:
    return record.event == "repeat"


def fedscan(*words: str) -> str:
    done = subprocess.run([sys.executable, "-m", "fedscan", *words], capture_output=True, text=True, check=False)
    return done.stdout


@pytest.mark.parametrize("which", ["site", "ledger"])
def test_a_site_on_a_full_disk_refuses_keeps_its_budget_and_is_back_when_there_is_room(
    which: str, small: Small, start: Callable[[], Run]
) -> None:
    run, kit = start(), small.lab.federation.kit("hosp-b")
    run.wait_for(is_round(0))
    small_disk.fill(small.disks[which])
    try:
        run.wait_for(is_repeat)
        run.wait_for(is_repeat, 2)
        checked = fedscan("site", "check", str(kit))
    finally:
        small_disk.make_room(small.disks[which])
    began = time.monotonic()
    run.wait_for(is_round(1))
    print(f"{which}: the round ended {time.monotonic() - began:.1f} s after there was room")
    judged = run.end()
    refused = [record.sites["hosp-b"].refused for record in run.records() if is_repeat(record)]
    print(refused, {name: run.charged(name) for name in SITES}, small.lab.reasons("hosp-b"))
    doctor = fedscan("site", "doctor", str(kit))
    print(checked, doctor)
    assert "error: disk: 0.0 GB are free" in checked
    # A line of refusals.jsonl still fits into a full disk where the file's last block has room.
    logs = [path.read_text(errors="replace") for path in kit.glob("*/log.txt")]
    unnoted = any("a round is refused, and why cannot be noted: No space left on device" in log for log in logs)
    print(f"could not be noted: {unnoted}", small.lab.reasons("hosp-b"))
    assert "disk-full" in doctor if unnoted else "refused-disk" in doctor
    assert judged.good, judged.failings
    charged = {name: small.charged_after_the_first_round(name, run.folder.name) for name in SITES}
    assert charged["hosp-a"] == (ROUNDS - 1) * STEPS
    assert (ROUNDS - 1) * STEPS <= charged["hosp-b"] <= ROUNDS * STEPS, "at most the round in flight is lost"


def test_a_server_on_a_full_disk_stops_with_its_reason_and_resumes(small: Small, start: Callable[[], Run]) -> None:
    run = start()
    run.wait_for(is_round(0))
    small_disk.fill(small.disks["runs"])
    try:
        judged = run.end()
        whole = checkpoints.list_rounds(run.folder / "checkpoints")
        print(judged.failings, whole, sorted(p.name for p in run.folder.iterdir()))
    finally:
        small_disk.make_room(small.disks["runs"])
    assert judged.ended == "stopped"
    assert any("No space left on device" in text for text in judged.failings)
    plan = job_folder.read_plan(run.run / "job")
    for rounds_done in whole:
        checkpoints.load(run.folder / "checkpoints", rounds_done, plan, run.folder.name)
    began = time.monotonic()
    judged_again = remote_run.resume(run.run, run.listen)
    print(f"resumed and done in {time.monotonic() - began:.1f} s", judged_again.failings)
    assert judged_again.good, judged_again.failings
    for name in SITES:
        assert small.charged_after_the_first_round(name, run.folder.name) == (ROUNDS - 1) * STEPS
