"""A site without guard and gate that answers with anything: each lie costs its own answer, and the run goes on."""

from __future__ import annotations

import contextlib
import functools
import re
import runpy
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import pytest
from weak_kit import weaken

from fedscan.federation import job_folder, kits, processes, records, remote_run
from fedscan.federation.local_run import Progress
from fedscan.federation.verdict import Verdict
from fedscan.training import model_file

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]

LIAR, HONEST = "hosp-b", ("hosp-a", "hosp-c")
LYING_SITE = Path(__file__).parent / "lying_site"
NAMES = [lie.__name__ for lie in runpy.run_path(str(LYING_SITE / "sitecustomize.py"))["LIES"]]
REASONS = {
    "nan": r"has values that are not finite",
    "shapes": r"has shape \[\d+\], wanted",
    "missing": r"lacks ",
    "huge": r"more than 10 times the median",
    "stale": r"stale answer: it belongs to another round",
    "record": r"answer record is malformed",
    "bytes_for_tensors": r"its answer is no update",
    "bytes_in_tensors": r"is no dense CPU tensor at",
    "no_update": r"its answer is no update",
    "no_shareable": r"site answered EXECUTION_RESULT_ERROR",
    "unknown": r"has unknown more",
    "large": r"its answer cannot be read",
    "many": r"its answer cannot be read",
    "large_message": r"its answer cannot be read",
    "truncated": r"its answer cannot be read",
    "payload": r"its answer cannot be read",
}
MIB = 2**20


@dataclass
class Lied:
    """A run in which one site lied, and what its server needed."""

    run: Path
    verdict: Verdict
    lines: list[str]
    server_mib: dict[str, list[tuple[int, float]]] = field(
        default_factory=lambda: {"runner_process": [], "server_train": []}
    )
    """Of the server's job process and its parent, by process id, over the run."""

    def rounds(self) -> dict[str, records.RoundRecord]:
        """By the lie; the first honest one and the last are `honest`."""
        done = records.effective_rounds(self.run / "rounds.jsonl")
        return {NAMES[r.round]: r for r in done if r.round is not None}


def watch_memory(folder: Path, into: dict[str, list[tuple[int, float]]], ended: threading.Event) -> None:
    while not ended.wait(0.5):
        for process in processes.belonging_to(folder):
            with contextlib.suppress(psutil.NoSuchProcess):
                words, mib = process.cmdline(), process.memory_info().rss / MIB
                for kind, found in into.items():
                    if any(part.endswith(f"server.{kind}") for part in words):
                        found.append((process.pid, mib))


@pytest.fixture(scope="module")
def lied(
    tmp_path_factory: pytest.TempPathFactory, stores: dict[str, Path], lab: Callable[..., Any], repository: Path
) -> Lied:
    folder = tmp_path_factory.mktemp("lies")
    settings = [
        "model.preset=tiny",
        f"rounds={len(NAMES)}",
        "training.local_steps=2",
        "training.batch_size=4",
        "training.warmup_steps=1",
        "min_responses=2",
        "tries_per_round=1",
        "round_timeout_s=30",
        "aggregation.max_norm_over_median=10",
    ]
    job_folder.new(repository / "jobs" / "ct_fedavg", folder / "job", settings, [LIAR, *HONEST])
    made = Lied(folder / "RUN", None, [])  # type: ignore[arg-type]

    def listen(progress: Progress) -> None:
        print(time.strftime("%X"), progress.text, flush=True)
        made.lines.append(progress.text)

    ended = threading.Event()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(LYING_SITE))
        patch.setenv("FEDSCAN_TEST_LIAR", LIAR)
        with lab(folder / "lab", stores, change=functools.partial(weaken, site=LIAR)) as running:
            watcher = threading.Thread(target=watch_memory, args=(folder, made.server_mib, ended))
            watcher.start()
            try:
                made.verdict = remote_run.run(folder / "job", running.federation.kit(kits.LEAD), made.run, listen)
            finally:
                ended.set()
                watcher.join()
            print([(NAMES[r.round], r.seconds, r.sites[LIAR].refused) for r in made.rounds().values()])
    return made


@pytest.mark.parametrize("lie", REASONS)
def test_a_lie_costs_its_own_answer_and_is_recorded_with_its_reason(lied: Lied, lie: str) -> None:
    record = lied.rounds()[lie]
    assert not record.sites[LIAR].answered
    assert re.search(REASONS[lie], record.sites[LIAR].refused or "")
    assert all(record.sites[site].answered for site in HONEST)


def test_an_answer_that_broke_on_its_way_is_sent_again_and_taken(lied: Lied) -> None:
    record = lied.rounds()["payload_once"]
    assert record.sites[LIAR].answered
    assert record.seconds is not None
    assert record.seconds < 20, "within the round's time"


def test_random_frames_before_an_honest_answer_change_nothing(lied: Lied) -> None:
    assert all(entry.answered for entry in lied.rounds()["frames"].sites.values())


def test_the_run_ends_well_and_the_site_may_answer_again(lied: Lied) -> None:
    assert lied.verdict.good, lied.verdict.failings
    assert lied.rounds()["honest"].round == len(NAMES) - 1
    assert lied.rounds()["honest"].sites[LIAR].answered
    assert model_file.load_model(lied.run / "model.safetensors").provenance["rounds_done"] == len(NAMES)
    for name in HONEST:
        assert lied.verdict.sites[name].answered == len(NAMES)
    assert lied.verdict.sites[LIAR].answered == len(NAMES) - len(REASONS)


@pytest.mark.parametrize("kind", ["runner_process", "server_train"])
def test_one_process_of_the_server_lived_through_all_of_it_and_gave_back_its_memory(lied: Lied, kind: str) -> None:
    assert len({pid for pid, _ in lied.server_mib[kind]}) == 1
    used = [mib for _, mib in lied.server_mib[kind]]
    began = used[len(used) // 3]
    print(f"{kind}: {began:.0f} MiB, at most {max(used):.0f}, at the end {used[-1]:.0f}")
    assert max(used) < began + 128, "answers of 256 MiB are not taken in"
    assert used[-1] < began + 150
