"""`site clean`: folders of finished jobs go whole, a live job's never, and what stays is told."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from fedscan.federation import kept_answer, retention
from fedscan.federation.kept_answer import Kept
from fedscan.federation.messages import PrivateAnswer
from fedscan.federation.site_clean import clean, job_folders
from fedscan.plan import Plan, Submission
from fedscan.privacy.site_file import Site

Command = Callable[..., tuple[int, str]]
OLD, NEW, LIVE = (f"{digit * 8}-1111-2222-3333-444455556666" for digit in "012")
RUN, OTHER_RUN = "a" * 32, "b" * 32
DAY_S = 86400.0


def age(path: Path, days: float) -> None:
    """All of a folder was last touched then."""
    then = time.time() - days * DAY_S
    for one in [*path.rglob("*"), path]:
        os.utime(one, (then, then), follow_symlinks=False)


def job(kit: Path, name: str, days: float, run: str = RUN) -> Path:
    config = kit / name / "app_hosp-a/config/config_fed_client.json"
    config.parent.mkdir(parents=True)
    submission = Submission.new(run_id=run).model_dump(mode="json")
    config.write_text(json.dumps({"plan": Plan().model_dump(mode="json"), "submission": submission}))
    (kit / name / "log.txt").write_text("x" * 2000)
    age(kit / name, days)
    return kit / name


def state(kit: Path, run: str, days: float) -> Path:
    folder = Site.open(kit).state / run
    folder.mkdir()
    (folder / "round-00003.safetensors").write_bytes(b"x" * 1000)
    age(folder, days)
    return folder


def test_old_goes_young_stays_and_all_is_told(installed: Path) -> None:
    old, new = job(installed, OLD, 31), job(installed, NEW, 29)
    cleaned = clean(installed)
    assert (old.exists(), new.exists()) == (False, True)
    assert [item.path for item in cleaned.removed] == [old]
    assert 0.002 < cleaned.removed[0].megabytes < 0.006
    whys = {item.path.name: item.why for item in cleaned.kept}
    assert whys[NEW] == "finished 29.0 days ago, kept for 30"
    assert whys["ledger.jsonl"] == "what was spent stays spent"
    assert Site.open(installed).open_ledger().events() == []
    assert clean(installed, 20).removed[0].path == new
    assert clean(installed, 0).removed == ()


def test_a_dry_run_removes_nothing(installed: Path) -> None:
    old = job(installed, OLD, 31)
    assert [item.path for item in clean(installed, dry_run=True).removed] == [old]
    assert old.exists()


def test_nothing_younger_than_an_hour_goes_however_few_days_are_kept(installed: Path) -> None:
    """Its process may be about to start."""
    young = job(installed, NEW, 0.5 / 24)
    assert clean(installed, 0).removed == ()
    assert young.exists()


def test_one_young_file_keeps_its_folder(installed: Path) -> None:
    old = job(installed, OLD, 40)
    os.utime(old / "log.txt")
    assert clean(installed).removed == ()


WORKER = "import sys; print('up', flush=True); sys.stdin.read()"


def test_a_live_jobs_folder_and_run_are_never_touched(installed: Path) -> None:
    live, old = job(installed, LIVE, 90), job(installed, OLD, 90, OTHER_RUN)
    its_state, other_state = state(installed, RUN, 90), state(installed, OTHER_RUN, 90)
    words = ["-m", "nvflare.private.fed.app.client.worker_process", "-m", str(installed), "-w", "x", "-n", LIVE]
    process = subprocess.Popen([sys.executable, "-c", WORKER, *words], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        assert process.stdout is not None
        process.stdout.readline()
        cleaned = clean(installed, 0)
        assert {item.path for item in cleaned.removed} == {old, other_state}
        assert live.exists()
        assert its_state.exists()
        assert {item.why for item in cleaned.kept if item.path in (live, its_state)} == {"it runs"}
        state(installed, OTHER_RUN, 90)
        (live / "app_hosp-a/config/config_fed_client.json").unlink()  # which run it is cannot be known: all stay
        age(live, 90)
        assert clean(installed, 0).removed == ()
    finally:
        process.communicate(timeout=30)
    assert {item.path for item in clean(installed, 0).removed} == {live, its_state, other_state}


def test_an_answer_that_may_be_asked_for_again_stays(installed: Path) -> None:
    folder = state(installed, RUN, 90)
    answer = PrivateAnswer.model_construct()
    submission = Submission.new()
    kept_answer.keep(folder, Kept(answer, 1, {}), submission.expires)
    age(folder, 90)
    cleaned = clean(installed)
    assert cleaned.removed == ()
    assert any("may be asked for again" in item.why for item in cleaned.kept)
    kept_answer.keep(folder, Kept(answer, 1, {}), "2020-01-01T00:00:00+00:00")
    age(folder, 90)
    assert [item.path for item in clean(installed).removed] == [folder]


def test_only_folders_of_jobs_and_no_links(installed: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "scan.dcm").write_bytes(b"x")
    (installed / OLD).symlink_to(outside)
    (installed / "transfer" / "x").mkdir(parents=True)
    (installed / "backup-2026").mkdir()
    linked = job(installed, NEW, 60)
    (linked / "data").symlink_to(outside)
    for path in (installed / "transfer", installed / "backup-2026", linked):
        age(path, 60)
    assert job_folders(installed) == [linked]
    assert [item.path for item in clean(installed, 1).removed] == [linked]
    assert (outside / "scan.dcm").exists()
    assert (installed / OLD).is_symlink()
    assert (installed / "transfer" / "x").exists()


def test_what_a_stopped_clean_left_goes_with_the_next(installed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old = job(installed, OLD, 60)

    def stop(path: Path) -> None:
        raise OSError(5, "Input/output error", str(path))

    with monkeypatch.context() as patched:
        patched.setattr(shutil, "rmtree", stop)
        with pytest.raises(OSError, match="Input/output"):
            clean(installed)
    assert not old.exists()
    left = installed / f".removing-{OLD}"
    assert left.exists()
    clean(installed)
    assert not left.exists()


def test_the_command(installed: Path, command: Command) -> None:
    old = job(installed, OLD, 60)
    code, output = command("site", "clean", installed, "--dry-run")
    assert code == 0, output
    assert f"would be removed: folder of a job, 0.0 MB (finished 60.0 days ago): {old}" in output
    report = json.loads(command("site", "clean", installed, "--keep-days", 90, "--json")[1])
    assert report["removed"] == []
    assert report["kept"][0]["path"] == str(old)
    code, output = command("site", "clean", installed)
    assert code == 0, output
    assert "1 folders removed" in output
    assert command("site", "clean", installed / "local")[0] == 1


def test_files_that_go_while_they_are_looked_at_end_no_cleaning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a job at work."""
    (tmp_path / "stays").write_bytes(b"x" * 1000)
    walk = os.walk

    def also(path: Path) -> Iterator[tuple[str, list[str], list[str]]]:
        for root, inner, files in walk(path):
            yield root, [*inner, "gone"], [*files, "went"]

    monkeypatch.setattr(os, "walk", also)
    assert retention.item(tmp_path, "what", "why").megabytes == 0.001
    assert retention.verdict(False, tmp_path, 0.0, tmp_path.stat().st_mtime + 4000.0)[0]
    assert retention.verdict(False, tmp_path / "all went", 0.0, 1e12) == (False, "it was touched within the last hour")
