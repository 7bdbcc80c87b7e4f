"""`fedscan audit log` and `fedscan audit bytes`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from fedscan.cli.main import app
from fedscan.federation.audit_log import AuditLog
from fedscan.federation.byte_log import ByteLog


@pytest.fixture
def kit(tmp_path: Path) -> Path:
    """A server's kit with two records, in whose folder a byte log lies as well."""
    (tmp_path / "startup").mkdir()
    (tmp_path / "local").mkdir()
    (tmp_path / "startup" / "fed_server.json").write_text("{}")
    log = AuditLog(tmp_path)
    log.append("start", "the parent process started")
    log.append("command", "submit_job job", who="lead@coord.org")
    counted = ByteLog("parent")
    counted.write_to(tmp_path)
    counted.count("task/heart_beat", "server", 1234)
    counted.count("patients/x", "server", 99, blocked=True)
    return tmp_path


def run(*arguments: object) -> tuple[int, str]:
    done = CliRunner().invoke(app, ["audit", *map(str, arguments)])
    return done.exit_code, done.output


def test_a_whole_log_is_said_to_be_so_with_its_head(kit: Path) -> None:
    status, words = run("log", kit, "--verify")
    head = str(AuditLog(kit).verify().head)
    assert status == 0
    assert "2 records, whole and in order" in words
    assert head in words.replace("\n", "")
    assert run("log", kit, "--head", head)[0] == 0


def test_a_fault_is_named_and_the_status_is_one(kit: Path) -> None:
    path = AuditLog(kit).path
    path.write_bytes(path.read_bytes().replace(b"lead@coord.org", b"lead@evil.org0"))
    status, words = run("log", kit, "--verify")
    assert status == 1
    assert "FAULT: line 2" in words
    assert json.loads(run("log", kit, "--json")[1])["ok"] is False


def test_records_are_shown_and_given_to_scripts(kit: Path) -> None:
    assert "submit_job" in run("log", kit)[1]
    told = json.loads(run("log", kit, "--json", "--last", 1)[1])
    assert [record["who"] for record in told["records"]] == ["lead@coord.org"]
    assert (told["ok"], told["keyed"]) == (True, True)


def test_a_wrong_head_and_a_missing_log_are_said(kit: Path, tmp_path: Path) -> None:
    assert "COUNT:SHA256" in run("log", kit, "--head", "x")[1]
    assert "cannot be read" in run("log", tmp_path / "nowhere")[1]
    assert "no byte log" in run("bytes", tmp_path / "nowhere")[1]


def test_what_left_is_shown_by_channel(kit: Path) -> None:
    status, words = run("bytes", kit)
    assert status == 0
    assert "1,234 bytes" in words
    assert "blocked" in words
    told = json.loads(run("bytes", kit, "--json")[1])
    assert told["left_bytes"] == 1234
    assert {row["channel"]: row["blocked"] for row in told["channels"]} == {
        "task/heart_beat": False,
        "patients/x": True,
    }
