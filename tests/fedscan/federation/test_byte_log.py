"""The site's byte log: on disk before a byte leaves, a line a minute, sums by channel."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from fedscan.federation import byte_log
from fedscan.federation.byte_log import EVERY_S, FOLDER, INSIDE, PARENT, ByteLog


class Clock:
    """Seconds that a test moves on."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_counts_by_channel_and_whether_they_left(tmp_path: Path) -> None:
    log = ByteLog("job-1")
    log.write_to(tmp_path)
    for _ in range(3):
        log.count("server_command/get_task", "server", 100)
    log.count("admin/x", INSIDE, 50)
    log.count("patients/x", "server", 70, blocked=True)
    found = {(t.channel, t.to, t.messages, t.bytes, t.blocked) for t in byte_log.totals(byte_log.read(tmp_path))}
    assert found == {
        ("server_command/get_task", "server", 3, 300, False),
        ("admin/x", INSIDE, 1, 50, False),
        ("patients/x", "server", 1, 70, True),
    }
    assert byte_log.left(byte_log.totals(byte_log.read(tmp_path))) == 300


def test_a_line_a_minute_and_nothing_twice(tmp_path: Path) -> None:
    clock = Clock()
    log = ByteLog(PARENT, clock)
    log.write_to(tmp_path)
    for _ in range(10):
        log.count("task/heart_beat", "server", 1000)
        clock.now += EVERY_S / 4
    lines = list(byte_log.read(tmp_path))
    assert [line.rows[0].messages for line in lines] == [4, 4, 2]
    assert sum(t.bytes for t in byte_log.totals(lines)) == 10_000
    assert len((tmp_path / FOLDER / "parent.jsonl").read_bytes().splitlines()) == 3


def test_what_was_counted_before_its_folder_was_known_is_there(tmp_path: Path) -> None:
    clock = Clock()
    log = ByteLog(PARENT, clock)
    log.count("connection/hello", "server", 10)
    clock.now += 10 * EVERY_S
    log.count("task/register", "server", 20)
    log.write_to(tmp_path)
    log.write_to(tmp_path)
    assert byte_log.left(byte_log.totals(byte_log.read(tmp_path))) == 30


def test_a_file_is_the_owners_and_a_new_process_goes_on_in_it(tmp_path: Path) -> None:
    first = ByteLog(PARENT)
    first.write_to(tmp_path)
    first.count("a/b", "server", 1)
    path = tmp_path / FOLDER / "parent.jsonl"
    assert path.stat().st_mode & 0o777 == 0o600
    second = ByteLog(PARENT)  # while the first one lives
    second.write_to(tmp_path)
    second.count("a/b", "server", 2)
    assert len(list((tmp_path / FOLDER).iterdir())) == 2
    assert byte_log.left(byte_log.totals(byte_log.read(tmp_path))) == 3


def test_a_line_that_a_power_failure_cut_off_does_not_spoil_the_next(tmp_path: Path) -> None:
    (tmp_path / FOLDER).mkdir()
    (tmp_path / FOLDER / "parent.jsonl").write_text('{"since":"20')
    log = ByteLog(PARENT)
    log.write_to(tmp_path)
    log.count("a/b", "server", 5)
    assert byte_log.left(byte_log.totals(byte_log.read(tmp_path))) == 5


def test_no_file_but_a_plain_one_below_the_folder_is_written(tmp_path: Path) -> None:
    (tmp_path / FOLDER).mkdir()
    (tmp_path / FOLDER / "parent.jsonl").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OSError, match="symbolic"):
        ByteLog(PARENT).write_to(tmp_path)
    log = ByteLog("../../x/y")
    log.write_to(tmp_path)
    log.count("a/b", "server", 5)
    assert [path.name for path in (tmp_path / FOLDER).iterdir() if not path.is_symlink()] == [".._.._x_y.jsonl"]


KILLED = """
import os, signal, sys
from pathlib import Path
from fedscan.federation.byte_log import ByteLog
log = ByteLog("parent")
log.write_to(Path(sys.argv[1]))
for size in range(1, 101):
    log.count(f"a/{size % 7}", "server", size)
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_killed_process_leaves_nothing_uncounted(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path)], check=False, timeout=120)
    assert done.returncode == -signal.SIGKILL
    assert byte_log.left(byte_log.totals(byte_log.read(tmp_path))) == sum(range(1, 101))


def test_of_one_process_alone(tmp_path: Path) -> None:
    for name, size in (("parent", 1), ("job-1", 10)):
        log = ByteLog(name)
        log.write_to(tmp_path)
        log.count("a/b", "server", size)
    assert byte_log.left(byte_log.totals(byte_log.read(tmp_path), "job-1")) == 10
    assert json.loads(json.dumps(byte_log.as_dict(byte_log.totals(byte_log.read(tmp_path)))))["left_bytes"] == 11
    assert os.listdir(tmp_path / FOLDER)
