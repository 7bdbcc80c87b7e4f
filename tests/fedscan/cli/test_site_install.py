"""`fedscan site install` and `site check KIT` as people and scripts call them."""

from __future__ import annotations

import json
import os
import pty
import select
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from fedscan.cli.site_install import default_delta
from fedscan.privacy.policy import Policy
from fedscan.privacy.site_file import Site

Command = Callable[..., tuple[int, str]]
POLICY = ("--set", "min_patients=10", "--set", "max_delta=1e-3")


def test_install_with_yes_says_what_it_did(command: Command, kit: Path, store: Path) -> None:
    code, output = command("site", "install", kit, "--store", store, "--yes", *POLICY, "--cores", 2)
    assert code == 0, output
    assert "site 'hosp-a' of the federation 'fedscan-local', server localhost:" in output
    for line in ("ledger, empty or as it was there:", "lets jobs train under", "certificates hold until 20"):
        assert line in output
    assert "the ledger's volume" in output
    site = Site.open(kit)
    assert site.policy() == Policy(policy_version=1, min_patients=10, max_delta=1e-3)
    assert site.limits.cores == 2
    code, output = command("site", "install", kit)  # what is there needs no question
    assert code == 0, output
    assert "everything was installed already: nothing was changed" in output


def test_install_for_scripts(command: Command, kit: Path, store: Path, tmp_path: Path) -> None:
    anchor = tmp_path / "far/a.anchor"
    code, output = command("site", "install", kit, "--store", store, "--anchor", anchor, *POLICY, "--json")
    assert code == 0, output
    report = json.loads(output)
    assert (report["site"], report["federation"]) == ("hosp-a", "fedscan-local")
    assert report["site_file"] == str(kit.with_name("kit.private") / "site.json")
    assert len(report["done"]) >= 6
    assert Site.open(kit).file.anchor == anchor
    again = json.loads(command("site", "install", kit, "--set", "max_epsilon=2", "--json")[1])
    assert again["done"] == []
    assert again["warnings"][0].startswith("policy: the one that is there was kept")


@pytest.mark.parametrize(
    ("more", "word"),
    [
        (["--set", "max_epsilom=2"], "max_epsilom: there is no such field"),
        (["--set", "max_epsilon"], "field=value"),
        (["--private", "store"], "lies in the store"),
    ],
)
def test_a_mistake_is_one_line_and_installs_nothing(
    command: Command, kit: Path, store: Path, more: list[str], word: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(store.parent)
    code, output = command("site", "install", kit, "--store", store, "--yes", *more)
    assert code == 1
    assert word in output.replace("\n", " ")
    assert not (kit / "local/site.json").exists()
    assert sorted(path.name for path in store.iterdir()) == ["manifest.json", "slices-00000.safetensors"]
    assert "site_file" not in (kit / "local/privacy.json").read_text()


def test_without_a_terminal_it_does_not_wait_for_answers(command: Command, kit: Path, store: Path) -> None:
    code, output = command("site", "install", kit, "--store", store)
    assert code == 1
    assert "say --yes to take the defaults" in output


def test_a_large_store_gets_a_delta_below_a_tenth_of_one_over_its_patients() -> None:
    assert [default_delta(n) for n in (0, 12, 999, 1000)] == [1e-4] * 4
    assert default_delta(1001) == pytest.approx(1e-5)
    assert default_delta(100_000) == pytest.approx(1e-6)
    for n in (1, 77, 1000, 4321, 10**7):
        assert default_delta(n) <= max(0.1 / n, 1e-4 if n <= 1000 else 0)


def test_at_a_terminal_there_are_five_questions_with_defaults(kit: Path, store: Path, tmp_path: Path) -> None:
    answers = [str(tmp_path / "far.anchor"), "2.5", "10", "", "3"]
    status, said = _at_a_terminal(
        ["site", "install", str(kit), "--store", str(store), "--set", "max_delta=1e-3"], answers
    )
    assert status == 0, said
    assert [f"{number}. " in said for number in range(1, 7)] == [True] * 5 + [False]
    assert "[8.0]" in said
    site = Site.open(kit)
    assert site.file.anchor == tmp_path / "far.anchor"
    assert site.policy() == Policy(policy_version=1, max_epsilon=2.5, min_patients=10, max_delta=1e-3)
    assert site.limits.cores == 3


def test_what_options_say_is_not_asked(kit: Path, store: Path) -> None:
    options = [*POLICY, "--set", "max_epsilon=1", "--set", "approval=by_digest", "--cores", "1"]
    options += ["--anchor", str(kit.with_name("x.anchor"))]
    status, said = _at_a_terminal(["site", "install", str(kit), "--store", str(store), *options], [])
    assert status == 0, said
    assert "1. " not in said


def _at_a_terminal(arguments: list[str], answers: list[str]) -> tuple[int, str]:
    """Runs `fedscan` at a pseudo-terminal and answers each question (a line that ends with `]: `)."""
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "fedscan", *arguments],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        env={**os.environ, "COLUMNS": "400", "TERM": "dumb"},
        start_new_session=True,
    )
    os.close(theirs)
    said, waiting, deadline = "", list(answers), time.monotonic() + 120
    try:
        while time.monotonic() < deadline:
            if not select.select([ours], [], [], 1.0)[0]:
                continue
            try:
                part = os.read(ours, 4096).decode()
            except OSError:  # the terminal of a process that ended
                break
            said += part
            if said.rstrip(" ").endswith("]:") and waiting:
                os.write(ours, f"{waiting.pop(0)}\n".encode())
        return process.wait(timeout=60), said
    finally:
        os.close(ours)
        process.kill()
        process.wait()


def test_check_a_kit_for_people_and_scripts(command: Command, installed: Path) -> None:
    code, output = command("site", "check", installed, "--offline")
    assert code == 0, output
    assert "in order: kit-files, settings, signed-jobs" in output
    assert output.endswith("this site is fit for jobs that its policy allows\n")
    report = json.loads(command("site", "check", installed, "--offline", "--json")[1])
    assert report["ok"] is True
    assert {one["name"] for one in report["findings"]} == {"owner", "own-files"}
    (installed / "startup/client.key").chmod(0o644)
    code, output = command("site", "check", installed, "--offline")
    assert code == 1
    assert "error: modes: group or others may read or write startup/client.key (0644)" in output
    assert "    cure: fedscan site install" in output
    code, output = command("site", "check", installed, "--offline", "--json")
    assert code == 1
    report = json.loads(output)
    assert report["ok"] is False
    assert all(one["fix"] for one in report["findings"])


def test_check_dials_the_server_of_a_kit(command: Command, installed: Path) -> None:
    path = installed / "startup/fed_client.json"
    content = json.loads(path.read_text())
    content["servers"][0]["service"]["target"] = "no-such-host.invalid:8002"
    path.write_text(json.dumps(content))
    code, output = command("site", "check", installed)
    assert code == 1
    assert "no address is known for 'no-such-host.invalid'" in output


def test_check_own_files_alone_as_before(command: Command, installed: Path) -> None:
    site_json = Site.open(installed).path
    for arguments in ((site_json,), ("--site", site_json), ("--site", installed)):
        code, output = command("site", "check", *arguments)
        assert code == 0, output
        assert output.endswith("hosp-a is fit for jobs that its policy allows.\n")
        report = json.loads(command("site", "check", *arguments, "--json")[1])
        assert set(report["findings"][0]) == {"level", "text"}
    Site.open(installed).file.policy.unlink()
    assert command("site", "check", site_json)[0] == 1


def test_check_wants_one_thing(command: Command, installed: Path, provisioned: Path) -> None:
    assert command("site", "check")[0] == 1
    code, output = command("site", "check", installed, "--site", installed)
    assert code == 1
    assert "name one thing to check" in output
    code, output = command("site", "check", provisioned / "localhost")
    assert code == 1
    assert "the server's kit" in output
