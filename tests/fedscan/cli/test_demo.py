"""`fedscan demo` at its edge: what it refuses, and what a finished one says."""

from __future__ import annotations

from pathlib import Path

import pytest
from filelock import FileLock
from typer.testing import CliRunner, Result

from fedscan.cli import demo as demo_command
from fedscan.cli import demo_story
from fedscan.cli.demo import template_folder
from fedscan.cli.demo_steps import Settings, State
from fedscan.cli.main import app


def _run(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["demo", *arguments])


def test_the_template_is_the_checkouts() -> None:
    assert (template_folder() / "meta.json").is_file()


def test_a_finished_demo_says_where_the_report_is_and_does_nothing(tmp_path: Path) -> None:
    out = tmp_path / "demo"
    out.mkdir()
    state = State(out, Settings())
    for step in demo_story.STEPS:
        state.add(step.key, 1.0, done=True)
        (out / step.yields).parent.mkdir(parents=True, exist_ok=True)
        (out / step.yields).write_text("whole")
    result = _run("--out", str(out))
    assert result.exit_code == 0
    assert result.stdout.splitlines()[-1] == str(out / demo_command.REPORT)
    assert result.stderr.count("done already") == len(demo_story.STEPS)


@pytest.mark.parametrize("fresh", [(), ("--fresh",)], ids=["go on", "fresh"])
def test_a_folder_of_something_else_is_left_alone(tmp_path: Path, fresh: tuple[str, ...]) -> None:
    (tmp_path / "exports").mkdir()
    (tmp_path / "exports" / "scan.dcm").write_text("somebody's own")
    result = _run("--out", str(tmp_path), *fresh)
    assert result.exit_code == 1
    assert "holds other things (exports, ...): choose another --out" in result.stderr
    assert (tmp_path / "exports" / "scan.dcm").exists()


def test_two_demos_do_not_share_a_folder(tmp_path: Path) -> None:
    with FileLock(tmp_path / ".lock"):
        result = _run("--out", str(tmp_path))
    assert result.exit_code == 1
    assert "another demo is working on" in result.stderr


def test_a_missing_template_is_named_with_its_cure(tmp_path: Path) -> None:
    result = _run("--out", str(tmp_path / "demo"), "--job", str(tmp_path / "nowhere"))
    assert result.exit_code == 1
    assert "run the demo from a checkout, or name jobs/ct_fedavg with --job" in result.stderr
    assert not (tmp_path / "demo").exists()
