"""`make audit`: what cannot be looked up is no pass, what is found fails, and bandit's gate bites."""

from __future__ import annotations

import runpy
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

VULNERABLE = {
    "name": "pillow",
    "version": "9.0",
    "vulns": [{"id": "PYSEC-1", "aliases": ["CVE-1"], "fix_versions": []}],
}
PROJECT: dict[str, Any] = {"tool": {"fedscan-audit": {"accepted": {}}}}


@pytest.fixture
def audit(repository: Path) -> Any:
    """The script's names; its functions see what is set in `.f`."""
    names = runpy.run_path(str(repository / "tests" / "audit.py"))
    return SimpleNamespace(**names, f=names["main"].__globals__)


def answering(audit: Any, *known: dict[str, Any]) -> None:
    """A database that knows these packages; it is not to be reached from every machine."""
    by_name = {one["name"]: one for one in known}

    def ask(packages: dict[str, str]) -> dict[str, Any]:
        unknown = {"skip_reason": "not found"}
        return {"dependencies": [by_name.get(name, {"name": name, **unknown}) for name in packages]}

    audit.f["ask"] = ask
    audit.f["pinned"] = lambda lock, makefile: {"torch": "2", "pillow": "9.0"}


TORCH = {"name": "torch", "version": "2", "vulns": []}


@pytest.mark.parametrize(
    ("known", "status", "said"),
    [
        ([], "NOT_CHECKED", "NOT CHECKED: no database reachable"),
        ([TORCH], "NOT_CHECKED", "NOT CHECKED: pillow"),
        ([TORCH, VULNERABLE], "FOUND", "pillow 9.0: PYSEC-1, CVE-1"),
        ([TORCH, {**VULNERABLE, "vulns": []}], "CLEAN", "0 found, 0 accepted, in 2 of 2 packages"),
    ],
)
def test_what_was_not_looked_up_is_no_pass(
    audit: Any, capsys: pytest.CaptureFixture[str], known: list[dict[str, Any]], status: str, said: str
) -> None:
    answering(audit, *known)
    assert audit.vulnerabilities(PROJECT) == getattr(audit, status)
    assert said in capsys.readouterr().out


def test_a_database_that_gives_no_report_is_no_pass(audit: Any) -> None:
    audit.f["ask"] = lambda packages: None
    assert audit.vulnerabilities(PROJECT) == audit.NOT_CHECKED


def test_an_accepted_one_is_said_with_its_reason(audit: Any) -> None:
    bad, known, unknown = audit.judged({"dependencies": [VULNERABLE]}, {"CVE-1": "not called here"})
    assert (bad, unknown) == ([], [])
    assert known == ["pillow 9.0: PYSEC-1, CVE-1: not called here"]


def test_every_package_of_the_lock_and_torch_is_asked_about(audit: Any, repository: Path) -> None:
    lock = (repository / "requirements.lock").read_text()
    packages = audit.pinned(lock, (repository / "Makefile").read_text())
    assert {"torch", "nvflare", "pydicom", "pillow", "grpcio"} <= set(packages)
    assert len(packages) == 1 + sum("==" in line and not line.startswith((" ", "#")) for line in lock.splitlines())


@pytest.mark.parametrize(
    "line",
    ["subprocess.run(name, shell=True)", "pickle.loads(name)", "eval(name)", "yaml.load(name)", "tempfile.mktemp()"],
)
def test_the_gate_on_our_code_bites(repository: Path, tmp_path: Path, line: str) -> None:
    (tmp_path / "bad.py").write_text(f"import pickle, subprocess, tempfile, yaml\n\ndef f(name):\n    {line}\n")
    command = [sys.executable, "-m", "bandit", "-q", "-c", str(repository / "pyproject.toml"), "-r", str(tmp_path)]
    assert subprocess.run(command, capture_output=True, check=False).returncode == 1


def test_each_exception_at_a_line_names_what_and_why(repository: Path) -> None:
    for source in ("custom", "preprocessing"):
        for path in (repository / source).rglob("*.py"):
            lines = path.read_text(encoding="utf-8").splitlines()
            for before, line in zip(["", *lines], lines, strict=False):
                if "nosec" in line:
                    rule, _, reason = line.partition("# nosec ")[2].partition("#")
                    assert rule.strip().startswith("B"), f"{path.name}: {line.strip()}"
                    assert reason.strip() or before.strip().startswith("#"), f"{path.name}: {line.strip()}"
