"""Unit files and container file of site_configs/: their form, and that what they name is there."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from typer.testing import CliRunner

from fedscan.cli.main import app

UNITS = ("fedscan-server@.service", "fedscan-site@.service")
INSTRUCTIONS = {"FROM", "ARG", "WORKDIR", "RUN", "COPY", "USER", "ENV", "STOPSIGNAL", "ENTRYPOINT"}


@pytest.fixture(params=UNITS)
def unit(request: pytest.FixtureRequest, repository: Path) -> Path:
    path = repository / "site_configs" / "systemd" / str(request.param)
    assert path.is_file()
    return path


def _settings(unit: Path) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for line in unit.read_text(encoding="utf-8").splitlines():
        key, sign, value = line.partition("=")
        if sign and not line.startswith("#"):
            found.setdefault(key, []).append(value)
    return found


def test_a_unit_starts_the_kit_itself_with_the_least_rights(unit: Path) -> None:
    found = _settings(unit)
    assert found["ExecStart"] == ["/bin/bash /srv/fedscan/%i/startup/sub_start.sh --once"]  # one supervisor
    assert found["ExecCondition"] == ["/usr/bin/test ! -e /srv/fedscan/%i/shutdown.fl"]
    wanted = {
        "NoNewPrivileges": "yes",
        "ProtectSystem": "strict",
        "ReadWritePaths": "/srv/fedscan",
        "CapabilityBoundingSet": "",
        "UMask": "0077",
        "LimitCORE": "0",
        "User": "fedscan",
    }
    assert {key: found[key] for key in wanted} == {key: [value] for key, value in wanted.items()}
    assert {"CPUQuota", "MemoryMax", "TasksMax"} <= found.keys()


@pytest.mark.parametrize(
    ("kind", "command"), [("site", "site clean /srv/fedscan/%i"), ("server", "server clean --kit /srv/fedscan/%i")]
)
def test_a_timer_cleans_each_day_with_the_rights_of_the_service(repository: Path, kind: str, command: str) -> None:
    folder = repository / "site_configs" / "systemd"
    found = _settings(folder / f"fedscan-clean-{kind}@.service")
    own = _settings(folder / f"fedscan-{kind}@.service")
    assert found["ExecStart"] == [f"/opt/fedscan/.venv/bin/fedscan {command}"]
    assert found["RestrictAddressFamilies"] == ["AF_UNIX"], "no network to clean a folder"
    same = ("User", "NoNewPrivileges", "ProtectSystem", "ReadWritePaths", "CapabilityBoundingSet", "UMask", "LimitCORE")
    assert {key: found[key] for key in same} == {key: own[key] for key in same}
    assert _settings(folder / f"fedscan-clean-{kind}@.timer")["OnCalendar"] == ["daily"]
    done = CliRunner().invoke(app, [*command.split()[:2], "--help"])
    assert done.exit_code == 0, done.output


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed")
@pytest.mark.parametrize("kind", ["site", "server"])
def test_systemd_takes_the_timers(repository: Path, kind: str) -> None:
    folder = repository / "site_configs" / "systemd"
    units = [str(folder / f"fedscan-clean-{kind}@.{end}") for end in ("timer", "service")]
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", "--recursive-errors=no", *units],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "SYSTEMD_UNIT_PATH": f"{folder}:"},
    )
    # All that is wrong here is that Fedscan is not installed in /opt.
    missing = "/opt/fedscan/.venv/bin/fedscan is not executable: No such file or directory"
    assert [line for line in done.stderr.splitlines() if missing not in line] == []


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed")
def test_systemd_takes_the_unit_and_finds_it_closed(unit: Path) -> None:
    verify = ["systemd-analyze", "verify", "--man=no", "--recursive-errors=no", str(unit)]
    done = subprocess.run(verify, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    security = ["systemd-analyze", "security", "--offline=true", "--threshold=20", str(unit)]
    done = subprocess.run(security, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-300:]


def _instructions(path: Path) -> list[tuple[str, str]]:
    lines = [line for line in path.read_text(encoding="utf-8").splitlines() if not line.lstrip().startswith("#")]
    whole = re.sub(r"\\\n", " ", "\n".join(lines)).splitlines()
    return [(line.split(maxsplit=1)[0], line.split(maxsplit=1)[1]) for line in whole if line.strip()]


def test_the_container_has_known_instructions_sources_that_are_there_and_no_root(repository: Path) -> None:
    instructions = _instructions(repository / "site_configs" / "Containerfile")
    assert {name for name, _ in instructions} <= INSTRUCTIONS
    assert instructions[0][0] == "FROM"
    for name, rest in instructions:
        if name == "COPY":
            assert all((repository / source).exists() for source in rest.split()[:-1]), rest
        if name == "RUN":
            checked = subprocess.run(["/bin/sh", "-n", "-c", rest], capture_output=True, text=True, check=False)
            assert checked.returncode == 0, checked.stderr
    assert [rest for name, rest in instructions if name == "USER"] == ["10001:10001"]
    assert "sub_start.sh" in instructions[-1][1]
    assert "--once" in instructions[-1][1]


def test_the_container_has_the_torch_of_the_makefile(repository: Path) -> None:
    pinned = re.search(r"^TORCH := (\S+)$", (repository / "Makefile").read_text(), re.MULTILINE)
    assert pinned
    assert ("ARG", f"TORCH={pinned[1]}") in _instructions(repository / "site_configs" / "Containerfile")
