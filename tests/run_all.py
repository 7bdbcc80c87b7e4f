"""`make test-all`: every test, in parts of at most an hour; a part that passed is not run again.

A part counts as passed for the exact content of the tracked files: any change runs it anew. State: .test-all/.
"""

from __future__ import annotations

import hashlib
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
STATE = ROOT / ".test-all"
PART_LIMIT_S = 3600

SLOW = ("-m", "slow", "-s", "-v")
RUNS = ("local_run", "private_run", "template_dp", "wire", "faults")
GATE = ("inside_attacks", "bytes_counted", "dishonest_server")
FAULTS = ("network", "disk", "all_sites", "orphans")
ODD_SITES = ("lies", "clocks", "certificates")
ATTACKS = ("altered_jobs", "leading_out", "replayed_answers")
PARTS: dict[str, list[str]] = {
    "quick": ["-m", "not slow", "-n", "2", "--dist", "loadscope", "tests"],
    "units-slow": [*SLOW, "tests/ctslices", "tests/fedscan", "tests/attacks"],
    "demo": [*SLOW, "tests/integration/test_demo.py"],
    "runs": [*SLOW, *(f"tests/integration/test_{name}.py" for name in RUNS)],
    "policy": [
        *SLOW,
        "tests/integration/test_policy_attacks.py",
        "tests/integration/test_private_restarts.py",
        "tests/integration/test_revocation.py",
        "tests/integration/test_versions.py",
        "tests/integration/test_server_clean.py",
    ],
    "gate": [*SLOW, *(f"tests/integration/test_{name}.py" for name in GATE)],
    "attacks": [*SLOW, *(f"tests/integration/test_{name}.py" for name in ATTACKS)],
    "site": [*SLOW, "tests/integration/test_installed_site.py", "tests/integration/test_second_start.py"],
    "provisioned": [*SLOW, "tests/integration/test_provisioned.py", "tests/integration/test_handshakes.py"],
    "remote": [*SLOW, "tests/integration/test_remote_run.py", "tests/integration/test_remote_tools.py"],
    "kills": [*SLOW, "tests/integration/test_kills.py", "tests/integration/test_private_federation_kills.py"],
    "faults": [
        *SLOW,
        *(f"tests/integration/test_faults_{name}.py" for name in ("network", "disk", "all_sites", "orphans")),
    ],
    "odd-sites": [*SLOW, *(f"tests/integration/test_faults_{name}.py" for name in ("lies", "clocks", "certificates"))],
    "private-kills": [*SLOW, "tests/integration/test_private_kills.py"],
}
COMMANDS: dict[str, list[str]] = {"audit": ["tests/audit.py"]}
"""Parts that are no tests: scripts, for this Python."""
NO_TESTS, NOT_CHECKED = 5, 3
"""Of pytest; of a script that could not look at everything: it has said what."""


def content_digest() -> str:
    """SHA-256 over all tracked files and their content."""
    names = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True).stdout.split(b"\0")
    digest = hashlib.sha256()
    for name in sorted(filter(None, names)):
        path = ROOT / name.decode()
        digest.update(name + b"\0" + (path.read_bytes() if path.is_file() else b"") + b"\0")
    return digest.hexdigest()


def run_part(name: str, command: list[str], digest: str) -> bool:
    """Runs one part unless it has passed with this content. What could not be looked at is tried again next time."""
    mark = STATE / name
    if mark.exists() and mark.read_text() == digest:
        print(f"{name}: passed before", flush=True)
        return True
    started = time.monotonic()
    print(f"{name}: {' '.join(command)}", flush=True)
    try:
        status = subprocess.run([sys.executable, *command], cwd=ROOT, timeout=PART_LIMIT_S, check=False).returncode
    except subprocess.TimeoutExpired:
        print(f"{name}: stopped at the limit of {PART_LIMIT_S} s", flush=True)
        return False
    if name in COMMANDS and status == NOT_CHECKED:
        print(f"{name}: found nothing, but NOT ALL WAS CHECKED: see above", flush=True)
        return True
    passed = status == 0 or (name in PARTS and status == NO_TESTS)
    print(f"{name}: {'passed' if passed else 'FAILED'} in {time.monotonic() - started:.0f} s", flush=True)
    if passed:
        mark.write_text(digest)
    return passed


def main() -> int:
    """Runs all parts; the exit status says whether all have passed."""
    STATE.mkdir(exist_ok=True)
    if "--restart" in sys.argv:
        for mark in STATE.iterdir():
            mark.unlink()
    digest = content_digest()
    commands = {**COMMANDS, **{name: ["-m", "pytest", *arguments] for name, arguments in PARTS.items()}}
    results = {name: run_part(name, command, digest) for name, command in commands.items()}
    return 0 if all(results.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
