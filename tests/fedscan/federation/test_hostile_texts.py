"""Texts of a site, a server or a job's author on a person's screen and disk: they are shown, and do nothing."""

from __future__ import annotations

import json
import unicodedata
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError
from typer.testing import CliRunner

from fedscan.cli import output
from fedscan.cli.main import app
from fedscan.federation import job_folder, messages, records, round_feed, run_lines, tracking, verdict
from fedscan.federation.records import RoundRecord
from fedscan.plan import Plan

ESCAPES = "\x1b]0;title\x07\x1b[2Jgood\r\u202e\x9b31m\u2028"


def _harmless(text: str) -> bool:
    return not any(unicodedata.category(c) in ("Cc", "Cf", "Zl", "Zp") for c in text if c != "\n")


def _line(plan: Plan, **changes: Any) -> dict[str, Any]:
    """As a server may send it."""
    return {
        "event": "round",
        "time": "2030-01-01T00:00:00+00:00",
        "run_id": "a" * 32,
        "plan_digest": plan.digest,
        "round": 0,
        "asked": ["hosp-a"],
        "sites": {"hosp-a": {"answered": False, "refused": ESCAPES, "also_refused": [ESCAPES]}},
        **changes,
    }


def _told(line: dict[str, Any]) -> tuple[RoundRecord, ...]:
    return round_feed.read({"run_id": "x", "plan": None, "records": [line], "next": 1}).records


def test_a_sites_field_names_say_nothing_to_the_servers_terminal() -> None:
    with pytest.raises(messages.MessageError, match="malformed") as caught:
        messages.parse_answer({"protocol": messages.PROTOCOL, ESCAPES: 1})
    assert _harmless(str(caught.value))


@pytest.mark.parametrize("event", ["round", "repeat", "stopped"])
def test_a_servers_texts_do_nothing_to_the_leads_terminal(event: str) -> None:
    plan = Plan(min_responses=1, rounds=2)
    told = _told(_line(plan, event=event, reason=ESCAPES, stamps=[ESCAPES], model_digest=ESCAPES, time=ESCAPES))
    for record in told:
        assert _harmless(run_lines.describe(record, plan))
    judged = verdict.verdict(plan, told, named=["hosp-a"])
    assert "good" in "".join(verdict.lines(judged))
    assert all(_harmless(line) for line in verdict.lines(judged))
    assert _harmless(judged.model_dump_json())


@pytest.mark.parametrize("name", ["../../escaped", "/tmp/escaped", "..", "", ESCAPES])
def test_a_server_cannot_name_a_site_by_a_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Curves go into a folder of the site's name."""
    plan = Plan()
    run = tmp_path / "lead" / "run"
    run.mkdir(parents=True)
    lines = [_line(plan, sites={who: {"answered": True, "loss": 1.0}}) for who in (name, "hosp-a")]
    with pytest.raises(round_feed.FeedError):
        _told(lines[0])
    (run / "rounds.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    monkeypatch.setattr(job_folder, "read_plan", lambda job: plan)
    assert [set(record.sites) for record in records.read(run / "rounds.jsonl")] == [{"hosp-a"}]
    tracking.tensorboard(run)
    assert not (tmp_path / "lead" / "escaped").exists()
    assert {path.name for path in (run / "tensorboard").iterdir()} == {"global", "hosp-a"}


@pytest.mark.parametrize("number", [-1, 2**70])
def test_a_round_beyond_all_counting_is_no_record(number: int) -> None:
    """TensorBoard's writer ends over it."""
    with pytest.raises(round_feed.FeedError):
        _told(_line(Plan(), round=number))


def test_a_strange_name_among_the_asked_is_no_record() -> None:
    with pytest.raises(ValidationError):
        RoundRecord(event="asked", time="", run_id="", plan_digest="", asked=("../a",))


def test_commands_print_texts_of_others_harmlessly(capsys: pytest.CaptureFixture[str]) -> None:
    output.say(ESCAPES)
    output.print_table("t", ("a",), [(f"[bold]{ESCAPES}[/nothing] [link=http://x]x[/link]",)])
    output.print_json({"a": ESCAPES, "b": "é"})
    with pytest.raises(Exception, match="1"):
        output.fail(ESCAPES)
    said, wrong = capsys.readouterr()
    assert _harmless(said)
    assert _harmless(wrong)
    assert "[link=http://x]" in said.replace("\n", "")
    assert "é" in said


def test_a_jobs_file_names_do_nothing_to_who_checks_it(tmp_path: Path, repository: Path) -> None:
    job_folder.new(repository / "jobs" / "ct_fedavg", tmp_path / "job", ["model.preset=tiny"])
    (tmp_path / "job" / ESCAPES).write_text("x")
    (tmp_path / "job" / "[bold]x[").write_text("x")
    done = CliRunner().invoke(app, ["job", "check", str(tmp_path / "job")])
    assert done.exit_code == 1
    assert "does not belong in a job" in done.output.replace("\n", " ") or "belong" in done.output
    assert "\x1b" not in done.output
    assert _harmless(done.output)
