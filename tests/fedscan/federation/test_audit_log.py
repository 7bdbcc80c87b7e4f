"""The chained audit log: each edit, cut and repetition is found; what is not found is said."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from fedscan.federation.audit_log import ANCHOR, FILE, KEY, AuditError, AuditLog, Head

TEXTS = [f"submit_job number {k}" for k in range(6)]


@pytest.fixture
def log(tmp_path: Path) -> AuditLog:
    one = AuditLog(tmp_path)
    for text in TEXTS:
        one.append("command", text, who="lead@coord.org", job="j-1")
    return one


def test_what_was_appended_is_there_in_order(log: AuditLog) -> None:
    found = log.verify()
    assert found.ok
    assert [(event.n, event.text, event.who) for event in found.events] == [
        (k + 1, text, "lead@coord.org") for k, text in enumerate(TEXTS)
    ]
    assert found.head.count == 6


def test_files_are_the_owners_alone(log: AuditLog) -> None:
    for name in (FILE, KEY, ANCHOR):
        assert (log.path.parent / name).stat().st_mode & 0o777 == 0o600
    assert log.path.parent.stat().st_mode & 0o777 == 0o700


def lines(log: AuditLog) -> list[bytes]:
    return log.path.read_bytes().splitlines(keepends=True)


EDITS: dict[str, tuple[Callable[[list[bytes]], list[bytes]], str]] = {
    "a word changed": (lambda all_: [*all_[:2], all_[2].replace(b"number 2", b"number 7"), *all_[3:]], "line 3"),
    "the last word changed": (lambda all_: [*all_[:5], all_[5].replace(b"number 5", b"number 7")], "line 6"),
    "a line taken out": (lambda all_: [*all_[:2], *all_[3:]], "line 3"),
    "the first line taken out": (lambda all_: all_[1:], "line 1"),
    "a line twice": (lambda all_: [*all_[:3], all_[2], *all_[3:]], "line 4"),
    "two lines changed over": (lambda all_: [all_[0], all_[2], all_[1], *all_[3:]], "line 2"),
    "a line put in": (lambda all_: [*all_[:2], b'{"n":3}\n', *all_[2:]], "line 3"),
    "a line of nothing": (lambda all_: [*all_[:2], b"\n", *all_[2:]], "line 3"),
    "the newest lines cut": (lambda all_: all_[:4], "it was cut"),
    "all lines cut": (lambda _: [], "it was cut"),
    "half a line cut": (lambda all_: [*all_[:5], all_[5][:40]], "is cut off"),
}


@pytest.mark.parametrize("edit", EDITS)
def test_each_edit_is_found(log: AuditLog, edit: str) -> None:
    change, words = EDITS[edit]
    log.path.write_bytes(b"".join(change(lines(log))))
    found = log.verify()
    assert not found.ok
    assert words in "; ".join(found.faults)


@pytest.mark.parametrize("edit", EDITS)
def test_the_chain_shows_it_without_the_key_as_well(log: AuditLog, edit: str) -> None:
    """But the last line's word: nothing follows it, and without the key the anchor says nothing."""
    change, _ = EDITS[edit]
    head = log.verify().head
    (log.path.parent / KEY).unlink()
    log.path.write_bytes(b"".join(change(lines(log))))
    assert not AuditLog(log.path.parent.parent).verify(head).ok


def test_the_cut_of_the_newest_lines_with_the_anchor_put_back_is_found_by_a_noted_head_alone(log: AuditLog) -> None:
    """What is not found without help from outside, as the page says."""
    folder = log.path.parent
    before = {path: path.read_bytes() for path in folder.iterdir()}
    head = log.append("refused", "a job with code")
    for path, content in before.items():
        path.write_bytes(content)
    assert log.verify().ok
    assert "it was cut" in "; ".join(log.verify(head).faults)


def test_a_log_made_anew_is_found_by_a_noted_head(log: AuditLog, tmp_path: Path) -> None:
    head = log.verify().head
    other = AuditLog(tmp_path / "other")
    for text in TEXTS:
        other.append("command", text, who="lead@coord.org", job="j-1")
    assert "made anew" in "; ".join(other.verify(head).faults)


def test_a_log_that_was_cut_is_not_continued(log: AuditLog) -> None:
    log.path.write_bytes(b"".join(lines(log)[:4]))
    with pytest.raises(AuditError, match="anchor knows record 6"):
        log.append("start", "again")


@pytest.mark.parametrize("garbage", [b"", b"x", b"x\n", b'{"n":6}'])
def test_a_last_line_made_garbage_is_not_vouched_for(log: AuditLog, garbage: bytes) -> None:
    """Else the next record would say that a power failure did it."""
    log.path.write_bytes(b"".join(lines(log)[:5]) + garbage)
    with pytest.raises(AuditError, match="not continued"):
        log.append("start", "again")


@pytest.mark.parametrize("left", [b'{"n":7,"time":"20', b'{"n":7', b'{"a":1}\n{"b'])
def test_a_line_that_a_power_failure_cut_off_is_vouched_for_by_the_next(log: AuditLog, left: bytes) -> None:
    with log.path.open("ab") as file:
        file.write(left)
    log.append("start", "after the power failure")
    log.append("start", "and on")
    found = log.verify()
    assert found.ok, found.faults
    assert found.events[6].torn == len(left)
    assert found.head.count == 8


def test_a_power_failure_between_line_and_anchor_is_no_fault(log: AuditLog) -> None:
    anchor = log.anchor.read_bytes()
    log.append("start", "not anchored")
    log.anchor.write_bytes(anchor)
    assert log.verify().ok
    log.append("start", "and on")
    assert log.verify().head.count == 8


def test_no_text_breaks_the_line(tmp_path: Path) -> None:
    log = AuditLog(tmp_path)
    log.append("command", 'x\n{"n":9}\r' + "ä" * 1000, who="a\nb\x1b[31m")
    found = log.verify()
    assert found.ok
    assert found.events[0].who == "a?b?[31m"
    assert len(found.events[0].text) == 300


APPEND = """
import sys
from pathlib import Path
from fedscan.federation.audit_log import AuditLog
for k in range(10):
    AuditLog(Path(sys.argv[1])).append("command", f"{sys.argv[2]} {k}")
"""


def test_several_processes_append_at_once(tmp_path: Path) -> None:
    processes = [subprocess.Popen([sys.executable, "-c", APPEND, str(tmp_path), name]) for name in "abc"]
    assert [process.wait(120) for process in processes] == [0, 0, 0]
    found = AuditLog(tmp_path).verify()
    assert found.ok
    assert found.head.count == 30
    assert [event.text for event in found.events if event.text[0] == "b"] == [f"b {k}" for k in range(10)]


def test_an_anchor_on_another_volume(tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    log = AuditLog(tmp_path / "site", elsewhere / ANCHOR)
    log.append("start", "one")
    log.append("start", "two")
    log.path.write_bytes(lines(log)[0])
    assert "it was cut" in "; ".join(log.verify().faults)


@pytest.mark.parametrize("text", ["", "7", "7:ab", "x:" + "0" * 64])
def test_a_head_is_count_and_hash(text: str) -> None:
    with pytest.raises(AuditError, match="COUNT:SHA256"):
        Head.parse(text)


def test_heads_are_read_as_they_are_printed(log: AuditLog) -> None:
    head = log.verify().head
    assert Head.parse(str(head)) == head


def test_a_missing_key_or_anchor_is_said(log: AuditLog) -> None:
    log.anchor.unlink()
    assert "anchor" in "; ".join(log.verify().faults)
    (log.path.parent / KEY).unlink()
    with pytest.raises(AuditError, match="key"):
        log.append("start", "again")
    assert not log.verify().keyed
