"""`server clean`: what runs and jobs left goes by age, nothing at work does, and a run's witnesses stay."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from filelock import FileLock

from fedscan.federation import kit_files, site_heads, verdict
from fedscan.federation.places import SERVER_CONFIG, Retention
from fedscan.federation.server_clean import clean, with_days
from fedscan.federation.server_shelf import ShelfError, places_of, set_places

DAY_S = 86400.0
RUN, OTHER = "a" * 32, "b" * 32
JOB, SECOND = (f"{digit * 8}-1111-2222-3333-444455556666" for digit in "01")


@pytest.fixture
def kit(tmp_path: Path) -> Path:
    """As provisioned, as far as it matters here."""
    folder = tmp_path / "server"
    (folder / "startup").mkdir(parents=True)
    (folder / "startup" / "fed_server.json").write_text("{}")
    (folder / "local").mkdir()
    (folder / "local" / "server.json").write_text(json.dumps(kit_files.server_places()))
    return folder


def age(path: Path, days: float) -> None:
    then = time.time() - days * DAY_S
    for one in [*path.rglob("*"), path]:
        os.utime(one, (then, then))


def run(kit: Path, name: str = RUN, days: float = 400.0, updates: bool = False) -> Path:
    folder = kit / "runs" / name
    (folder / "checkpoints").mkdir(parents=True)
    (folder / "checkpoints" / "round-00003.safetensors").write_bytes(b"x" * 5000)
    for file in (verdict.FILE, site_heads.FILE, "rounds.jsonl", "model.safetensors", ".server.lock"):
        (folder / file).write_text("{}")
    if updates:
        (folder / "updates").mkdir()
        (folder / "updates" / "00000.safetensors").write_bytes(b"x" * 5000)
    age(folder, days)
    return folder


def job(kit: Path, name: str = JOB, days: float = 31.0, status: str = "FINISHED:COMPLETED", of: str = RUN) -> Path:
    folder = kit / kit_files.JOB_STORE / name
    folder.mkdir(parents=True)
    (folder / "meta").write_text(json.dumps({"status": status}))
    (folder / "scheduled").write_text("")
    (folder / "workspace").write_bytes(b"x" * 5000)
    with zipfile.ZipFile(folder / "data", "w") as packed:
        packed.writestr(f"job/app_server/config/{SERVER_CONFIG}", json.dumps({"submission": {"run_id": of}}))
    age(folder, days)
    return folder


@pytest.fixture
def up(kit: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A process that looks like the server's parent."""
    command = [sys.executable, "-c", "import sys; print(1, flush=True); sys.stdin.read()"]
    command += ["-m", "nvflare.private.fed.app.server.server_train", "-m", str(kit)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        yield process
        process.kill()


def whys(kit: Path, **options: bool) -> dict[Path, str]:
    return {one.path: one.why for one in clean(kit, **options).kept}


def test_by_its_own_days_old_goes_young_stays_and_what_witnesses_stays(kit: Path) -> None:
    old, young = run(kit), run(kit, OTHER, 364)
    stored, fresh = job(kit), job(kit, SECOND, 29)
    cleaned = clean(kit)
    assert sorted(one.path for one in cleaned.removed) == sorted([old, stored])
    assert sorted(path.name for path in old.iterdir()) == sorted([".server.lock", site_heads.FILE, verdict.FILE])
    assert (young / "model.safetensors").exists()
    assert (stored.exists(), fresh.exists()) == (False, True)
    told = whys(kit)
    assert told[young] == "finished 364.0 days ago, kept for 365"
    assert told[old] == "verdict, and the sites' ledger heads"
    assert clean(kit).removed == ()


def test_days_are_the_operators(kit: Path) -> None:
    folder = run(kit, days=8)
    file = kit / "local" / "server.json"
    file.write_text(json.dumps(kit_files.server_places() | {"retention": {"runs_days": 7}}))
    assert [one.path for one in clean(kit, dry_run=True).removed] == [folder]
    assert (folder / "model.safetensors").exists(), "a dry run"
    assert not clean(kit, with_days(places_of(kit).retention, 9, None)).removed
    set_places(kit, kit.parent / "elsewhere")
    assert places_of(kit).retention == Retention(runs_days=7), "other places, the same days"
    assert not clean(kit).removed, "what lies elsewhere stays there"


@pytest.mark.parametrize("wrong", [{"runs_days": -1}, {"runs_day": 7}, {"jobs_days": "never"}, []])
def test_days_that_are_none_remove_nothing(kit: Path, wrong: object) -> None:
    folder = run(kit)
    (kit / "local" / "server.json").write_text(json.dumps(kit_files.server_places() | {"retention": wrong}))
    with pytest.raises(ShelfError, match=r"server\.json"):
        clean(kit)
    assert (folder / "model.safetensors").exists()


def test_a_run_at_work_is_never_touched(kit: Path) -> None:
    folder = run(kit, updates=True)
    with FileLock(folder / ".server.lock"):
        age(folder, 400)
        assert clean(kit).removed == ()
        assert set(whys(kit).values()) == {"it runs"}
    age(folder, 400)
    assert {one.path for one in clean(kit).removed} == {folder, folder / "updates"}


@pytest.mark.parametrize("status", ["SUBMITTED", "RUNNING", "DISPATCHED", ""])
def test_a_run_whose_continuation_waits_is_never_touched(kit: Path, status: str) -> None:
    folder, other = run(kit), run(kit, OTHER)
    stored = job(kit, days=900, status=status)
    assert [one.path for one in clean(kit).removed] == [other]
    assert whys(kit)[folder] == "it runs"
    assert whys(kit)[stored] == "it has not ended"


@pytest.mark.parametrize("broken", ["meta", "data"])
def test_a_waiting_job_that_cannot_be_read_may_be_of_any_run(kit: Path, broken: str) -> None:
    run(kit)
    stored = job(kit, status="SUBMITTED")
    (stored / broken).write_bytes(b"no")
    age(stored, 900)
    assert all(one.path.parent.name != "runs" for one in clean(kit).removed) or broken == "meta"
    assert stored.exists()


def test_what_a_kill_left_of_a_round_goes_the_run_stays(kit: Path) -> None:
    folder = run(kit, days=1, updates=True)
    (folder / verdict.FILE).unlink()
    age(folder, 1)
    assert [one.path for one in clean(kit).removed] == [folder / "updates"]
    assert (folder / "checkpoints" / "round-00003.safetensors").exists()
    age(folder, 1)
    assert whys(kit)[folder].endswith("kept for 365; it may be resumed")


def test_a_servers_scheduler_never_meets_half_an_entry(kit: Path, up: subprocess.Popen[bytes]) -> None:
    """In mid-scan an entry without meta ends the scheduler's thread: while the server is up, entries stay."""
    stored = job(kit)
    assert [one.path for one in clean(kit).removed] == [stored]
    assert sorted(path.name for path in stored.iterdir()) == ["meta", "scheduled"]
    age(stored, 31)
    assert "it goes when the server is stopped" in whys(kit)[stored]
    up.kill()
    up.wait()
    clean(kit)
    assert not stored.exists()


def test_what_killed_jobs_left_and_what_a_stopped_command_left(kit: Path) -> None:
    left, snapshot = kit / JOB, kit / kit_files.SNAPSHOT_STORE / SECOND
    for folder in (left, snapshot):
        (folder / "inner").mkdir(parents=True)
        age(folder, 31)
    half = kit / "runs" / f".removing-{RUN}"
    half.mkdir(parents=True)
    (kit / kit_files.JOB_STORE).mkdir()
    run(kit, OTHER, 1)
    assert {one.path for one in clean(kit).removed} == {left, snapshot}
    assert not half.exists()


def test_links_are_not_followed_and_other_names_are_not_ours(kit: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    age(outside, 900)
    (kit / "runs").mkdir()
    (kit / "runs" / RUN).symlink_to(outside)
    (kit / "runs" / "notes").mkdir()
    age(kit / "runs" / "notes", 900)
    assert clean(kit).removed == ()
    assert outside.exists()


def test_runs_that_cannot_be_told_apart_are_left_and_said(kit: Path, tmp_path: Path) -> None:
    places = {"run_folder": str(tmp_path / "one"), "shelf": "shelf"}
    (kit / "local" / "server.json").write_text(json.dumps(places))
    assert "look after it by hand" in whys(kit)[tmp_path / "one"]


@pytest.mark.parametrize(
    "packed_config", ["[" * 100_000, json.dumps({"submission": {"run_id": OTHER}}) + " " * (1 << 21)]
)
def test_a_job_that_is_packed_with_ill_will_ends_no_cleaning(kit: Path, packed_config: str) -> None:
    """Nested without end, or much longer than any job: no run is known to be free of it, and the rest goes."""
    kept, waiting, ended = run(kit), job(kit, SECOND, status="SUBMITTED"), job(kit)
    with zipfile.ZipFile(waiting / "data", "w", zipfile.ZIP_DEFLATED) as packed:
        packed.writestr(f"job/app_server/config/{SERVER_CONFIG}", packed_config)
    cleaned = clean(kit)
    assert [one.path for one in cleaned.removed] == [ended]
    assert (kept / "model.safetensors").exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="needs a process of another user")
def test_another_users_process_is_no_server(kit: Path) -> None:
    """Whoever has an account here can give a process any command line: it would keep everything for ever."""
    old, stored = run(kit), job(kit)
    command = [sys.executable, "-c", "import sys; print(1, flush=True); sys.stdin.read()"]
    command += ["-m", "nvflare.private.fed.app.server.runner_process", "-m", str(kit), "-n", JOB]
    with subprocess.Popen(
        ["/bin/sh", "-c", "echo; read x", *command], stdin=subprocess.PIPE, stdout=subprocess.PIPE, user=65534
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        try:
            assert sorted(one.path for one in clean(kit).removed) == sorted([old, stored])
        finally:
            process.kill()
