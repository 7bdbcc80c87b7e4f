"""A ledger whose disk, lock, file or process breaks: training stops, and nothing that was paid is forgotten."""

from __future__ import annotations

import errno
import os
import random
import signal
from pathlib import Path

import pytest
from ledger_bench import KEY, ROUND, Bench, Kept, charge, steps

from fedscan.privacy.ledger import Head, Ledger, LedgerError


def test_a_full_volume_of_the_anchor_stops_training(tmp_path: Path) -> None:
    """The entry is charged, the caller is told that it failed, and the anchor is brought up later."""
    (tmp_path / "anchor").mkdir()
    bench = Bench(tmp_path)
    bench.anchor = tmp_path / "anchor" / "anchor"
    ledger = Ledger.create(bench.path, KEY, bench.anchor)
    ledger.reserve(charge(0))
    bench.anchor.with_name(f".anchor.{os.getpid()}.part").mkdir()  # its writing fails as on a broken disk
    with pytest.raises(OSError):
        ledger.reserve(charge(1))
    with pytest.raises(OSError):
        bench.open()
    bench.anchor.with_name(f".anchor.{os.getpid()}.part").rmdir()
    assert steps(bench.open()) == 2 * ROUND
    ledger.reserve(charge(1))
    assert steps(ledger) == steps(bench.open()) == 3 * ROUND


def test_a_disk_that_fails_to_sync_stops_training_and_forgives_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The line may be on the disk or not. The same instance goes on with what is there."""
    bench = Bench(tmp_path)
    ledger = Ledger.create(bench.path, KEY, bench.anchor)
    ledger.reserve(charge(0))
    inode, sync = bench.path.stat().st_ino, os.fsync

    def fails(file: int) -> None:
        if os.fstat(file).st_ino == inode:
            raise OSError(errno.EIO, "Input/output error")
        sync(file)

    with monkeypatch.context() as broken, pytest.raises(OSError, match="Input/output error"):
        broken.setattr(os, "fsync", fails)
        ledger.reserve(charge(1))
    ledger.reserve(charge(1))
    assert steps(ledger) == steps(bench.open()) == 3 * ROUND


def test_writers_who_got_around_the_lock_are_noticed_before_they_train(tmp_path: Path) -> None:
    """The lock's file was deleted while it was held: two think they are alone."""
    bench = Bench(tmp_path)
    one = Ledger.create(bench.path, KEY, bench.anchor)
    two = bench.open()
    lock = bench.path.with_name("ledger.lock")
    with one.lock():
        lock.unlink()
        with two.lock():
            two.reserve(charge(0))
        with pytest.raises(LedgerError, match="without its lock"):
            one.reserve(charge(0))
    assert steps(bench.open()) == ROUND


def test_a_ledger_swapped_under_an_opened_one_is_read_anew(bench: Bench, kept: Kept) -> None:
    bench.put(kept.ledger, kept.anchor)
    ledger = bench.open()
    shorter = bench.path.with_name("shorter")
    shorter.write_bytes(b"".join(kept.lines[:3]))
    shorter.chmod(0o600)
    os.replace(shorter, bench.path)
    with pytest.raises(LedgerError, match=r"^entry 4: it is missing"):
        ledger.reserve(charge(5))


@pytest.mark.parametrize("kind", ["link", "fifo"])
def test_what_is_no_file_is_not_opened(tmp_path: Path, kind: str) -> None:
    bench = Bench(tmp_path)
    Ledger.create(bench.path, KEY, bench.anchor)
    bench.path.rename(tmp_path / "real")
    if kind == "link":
        bench.path.symlink_to(tmp_path / "real")
    else:
        os.mkfifo(bench.path, 0o600)
    with pytest.raises(LedgerError):
        bench.open()


def _spend_until_killed(bench: Bench, report: int) -> None:
    try:
        ledger = bench.open()
        for number in range(1_000_000):
            entry = ledger.reserve(charge(number))
            os.write(report, f"{entry.number} {entry.head.mac}\n".encode())
            ledger.note_answer(entry.number, f"{number:064x}")
    finally:
        os._exit(1)


def _kills(folder: Path, times: int) -> None:
    bench = Bench(folder)
    Ledger.create(bench.path, KEY, bench.anchor)
    wait = random.Random(0)
    returned: list[Head] = []
    for _ in range(times):
        reader, writer = os.pipe()
        child = os.fork()
        if child == 0:
            _spend_until_killed(bench, writer)
        os.close(writer)
        said = os.read(reader, 100)  # it is at work
        select_s = wait.uniform(0.0, 0.06)
        signal.sigtimedwait([], select_s)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        with os.fdopen(reader, "rb") as pipe:
            said += pipe.read()
        heads = [line.split() for line in said.decode().splitlines()]
        returned += [Head(int(number), mac) for number, mac in heads]
        ledger = bench.open()
        assert len(ledger.events()) >= len(returned)
        assert all(ledger.contains(head) and ledger.paid_for(head.count) for head in returned)
    assert len(returned) >= times


def test_every_reserve_that_returned_outlives_kill_9(tmp_path: Path) -> None:
    _kills(tmp_path, 50)


@pytest.mark.slow
def test_every_reserve_that_returned_outlives_kill_9_at_length(tmp_path: Path) -> None:
    _kills(tmp_path, 500)
