"""`make audit`: known vulnerabilities of what is installed (pip-audit), and unsafe code of ours (bandit).

Exit status 0: both are clean. 1: something was found. 3: nothing was found, but no database of vulnerabilities could be
asked about every package: that is no pass, and each package that was not looked up is named.

What is accepted stands with its reason in pyproject.toml (`tool.bandit`, `tool.fedscan-audit.accepted`) or at the line
(`nosec`).
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
SOURCES = ("custom", "preprocessing")
CLEAN, FOUND, NOT_CHECKED = 0, 1, 3
PROBE = "torch"
"""Asked about first, alone: where no database knows it, none is reachable, and nobody is asked about the rest."""


def pinned(lock: str, makefile: str) -> dict[str, str]:
    """Name and version of every package of the lock, and torch, which the Makefile pins."""
    found = dict(re.findall(r"^([A-Za-z0-9._-]+)(?:\[[^\]]*\])?==([^\s;\\]+)", lock, re.MULTILINE))
    [torch] = re.findall(r"^TORCH := (\S+)$", makefile, re.MULTILINE)
    return {**found, PROBE: torch}


def judged(report: Mapping[str, Any], accepted: Mapping[str, str]) -> tuple[list[str], list[str], list[str]]:
    """Of pip-audit's report: vulnerabilities, accepted ones with their reason, and packages that were not looked up."""
    bad, known, unknown = [], [], []
    for package in report["dependencies"]:
        if "skip_reason" in package:
            unknown.append(package["name"])
        for one in package.get("vulns", []):
            names = [one["id"], *one.get("aliases", [])]
            line = f"{package['name']} {package['version']}: {', '.join(names)}"
            line += f" (mended in {', '.join(one['fix_versions'])})" if one.get("fix_versions") else ""
            reason = next((accepted[name] for name in names if name in accepted), None)
            (bad if reason is None else known).append(line if reason is None else f"{line}: {reason}")
    return bad, known, unknown


def ask(packages: Mapping[str, str]) -> dict[str, Any] | None:
    """pip-audit's report on exactly these versions; None where it did not give one."""
    with tempfile.TemporaryDirectory() as folder:
        listed, told = Path(folder) / "packages.txt", Path(folder) / "report.json"
        listed.write_text("".join(f"{name}=={version}\n" for name, version in packages.items()))
        command = [sys.executable, "-m", "pip_audit", "-r", str(listed), "--no-deps", "--disable-pip"]
        command += ["--progress-spinner", "off", "-f", "json", "-o", str(told), "--timeout", "30"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        try:
            report: dict[str, Any] = json.loads(told.read_text())
        except (OSError, ValueError):
            print(f"  pip-audit: {(done.stderr.strip().splitlines() or ['no word'])[-1][:300]}")
            return None
        return report


def vulnerabilities(project: Mapping[str, Any]) -> int:
    """Asks pip-audit's database about what the lock pins."""
    packages = pinned((ROOT / "requirements.lock").read_text(), (ROOT / "Makefile").read_text())
    report = ask({PROBE: packages[PROBE]})
    if report is None or "skip_reason" in report["dependencies"][0]:
        print(f"vulnerabilities: NOT CHECKED: no database reachable (asked about {PROBE}, of {len(packages)} packages)")
        return NOT_CHECKED
    report = ask(packages)
    if report is None:
        print(f"vulnerabilities: NOT CHECKED: no answer about {len(packages)} packages")
        return NOT_CHECKED
    bad, known, unknown = judged(report, project["tool"]["fedscan-audit"]["accepted"])
    for line in bad:
        print(f"  {line}")
    for line in known:
        print(f"  accepted: {line}")
    asked = {package["name"].lower() for package in report["dependencies"]}
    unknown = sorted({*unknown, *(name for name in packages if name.lower() not in asked)})
    checked = len(packages) - len(unknown)
    print(f"vulnerabilities: {len(bad)} found, {len(known)} accepted, in {checked} of {len(packages)} packages")
    if unknown:
        print(f"vulnerabilities: NOT CHECKED: {', '.join(unknown)}")
    return FOUND if bad else NOT_CHECKED if unknown else CLEAN


def unsafe_code() -> int:
    """bandit over our own sources, with pyproject's exceptions."""
    command = [sys.executable, "-m", "bandit", "-q", "-c", "pyproject.toml", "-r", *SOURCES]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    print(f"unsafe code: {'none found' if done.returncode == 0 else 'bandit found some, or failed'}")
    if done.returncode:
        print(done.stdout[-10_000:], done.stderr[-2000:], sep="\n")
    return CLEAN if done.returncode == 0 else FOUND


def main() -> int:
    """Both; the worse of the two: found, then not checked."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    results = {unsafe_code(), vulnerabilities(project)}
    return FOUND if FOUND in results else NOT_CHECKED if NOT_CHECKED in results else CLEAN


if __name__ == "__main__":
    sys.exit(main())
