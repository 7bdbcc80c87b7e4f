"""`fedscan policy check`: every reason, what it would cost, and nothing noted."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ctslices.store import write_store
from fedscan.privacy.accounting import epsilon, rounds_that_fit
from fedscan.privacy.event import Event
from fedscan.privacy.site_file import Site

Command = Callable[..., tuple[int, str]]
ROUND = Event(noise_multiplier=3.0, sample_rate=0.25, steps=10, unit="patient")


@pytest.fixture
def site(command: Command, tmp_path: Path) -> Site:
    patient = np.repeat(np.arange(60), 2)
    write_store(tmp_path / "store", np.zeros((120, 16, 16), np.int16), patient, splits=["train"] * 60)
    settings = ("--set", "min_patients=50", "--set", "max_delta=0.001")
    code, output = command("site", "init", tmp_path / "site", "--name", "a", "--store", tmp_path / "store", *settings)
    assert code == 0, output
    return Site.open(tmp_path / "site")


def set_policy(site: Site, **fields: object) -> None:
    site.file.policy.write_text(json.dumps(json.loads(site.file.policy.read_text()) | fields))


def asked(command: Command, job: Path, site: Site, *more: object) -> tuple[int, dict[str, Any]]:
    code, output = command("policy", "check", job, "--site", site.path, "--json", *more)
    answers = json.loads(output)
    assert len(answers) == 1
    return code, answers[0]


def test_a_job_within_the_policy(command: Command, private_job: Path, site: Site) -> None:
    before = {
        path: path.read_bytes() for path in site.path.parent.rglob("*") if path.is_file() and path.name[-5:] != ".lock"
    }
    code, answer = asked(command, private_job, site)
    assert code == 0
    assert answer["ok"]
    assert answer["reasons"] == []
    cost = answer["forecast"]
    assert cost["epsilon_spent"] == 0.0
    assert cost["epsilon_after_round"] == pytest.approx(epsilon([ROUND], 1e-3))
    assert cost["epsilon_after_run"] == pytest.approx(epsilon([ROUND] * 20, 1e-3))
    assert cost["rounds_that_fit"] == rounds_that_fit([], ROUND, 1e-3, 8.0)
    assert answer["outlook"]["noise_per_patient"] == pytest.approx(3.0 / 15.0)
    assert answer["outlook"]["word"]
    assert answer["outlook"]["warns"]
    assert answer["outlook"]["patients_for_next"] > 60
    assert {path: path.read_bytes() for path in before} == before
    assert not list(site.state.iterdir())


def test_people_read_the_same(command: Command, private_job: Path, site: Site) -> None:
    code, output = command("policy", "check", private_job, "--site", f"a={site.path}")
    assert code == 0
    assert "a would run" in output
    assert "rounds that fit" in output
    assert "warning: noise per patient is above 0.05" in output
    assert "patients at this site" in output


def test_all_reasons_at_once(command: Command, private_job: Path, site: Site) -> None:
    set_policy(site, max_rounds=3, min_patients=61, min_noise_multiplier=4, approval="by_digest", max_epsilon=0.1)
    code, answer = asked(command, private_job, site)
    assert code == 1
    assert not answer["ok"]
    assert len(answer["reasons"]) == 5
    assert answer["forecast"]["rounds_that_fit"] == 0
    code, output = command("policy", "check", private_job, "--site", site.path.parent)
    assert code == 1
    assert output.count("refused: ") == 5


def test_a_budget_that_holds_a_part_of_the_run_is_told(command: Command, private_job: Path, site: Site) -> None:
    set_policy(site, max_epsilon=1.5)
    code, answer = asked(command, private_job, site)
    assert code == 0
    assert 0 < answer["forecast"]["rounds_that_fit"] < 20
    assert "planned rounds" in answer["notes"][0]


def test_who_may_submit(command: Command, private_job: Path, site: Site) -> None:
    set_policy(site, allowed_submitters=["lead"])
    code, answer = asked(command, private_job, site)
    assert code == 0
    assert "who may submit: lead" in answer["notes"][0]
    assert asked(command, private_job, site, "--submitter", "lead")[0] == 0
    code, answer = asked(command, private_job, site, "--submitter", "other")
    assert code == 1
    assert "allowed_submitters" in answer["reasons"][0]
    set_policy(site, allowed_submitters=[])
    assert asked(command, private_job, site)[0] == 1


def test_a_plan_without_dp_a_plan_for_others_and_no_job(
    command: Command, private_job: Path, site: Site, repository: Path, tmp_path: Path
) -> None:
    command("job", "new", repository / "jobs" / "ct_fedavg", tmp_path / "plain")
    code, answer = asked(command, tmp_path / "plain", site)
    assert code == 1
    assert answer["forecast"] is None
    assert "no differential privacy" in answer["reasons"][0]
    text = site.path.read_text()
    site.path.write_text(text.replace('"name": "a"', '"name": "b"'))
    code, answer = asked(command, private_job, site)
    assert code == 1
    assert "names no sampling for this site" in answer["reasons"][0]
    site.path.write_text(text)
    code, answer = asked(command, tmp_path, site)
    assert code == 1
    code, output = command("policy", "check", private_job, "--site", f"b={site.path}")
    assert code == 1
    assert "that site's name is 'a'" in output


@pytest.mark.parametrize("gone", ["policy.json", "ledger.key", "ledger.jsonl", "ledger.anchor"])
def test_a_site_that_lacks_a_file_refuses(command: Command, private_job: Path, site: Site, gone: str) -> None:
    (site.path.parent / gone).unlink()
    code, answer = asked(command, private_job, site)
    assert code == 1
    assert answer["reasons"]


def test_site_check_says_all_that_is_wrong(command: Command, site: Site) -> None:
    code, output = command("site", "check", "--site", site.path)
    assert code == 0, output
    assert "anchor: it lies on the ledger's volume" in output
    head = site.open_ledger().head
    for count, mac in ((head.count, head.mac), (head.count, "0" * 64), (head.count + 1, head.mac)):
        (site.state / "received_head.json").write_text(json.dumps({"count": count, "mac": mac}))
        code, output = command("site", "check", "--site", site.path.parent)
        assert (code == 0) is ((count, mac) == (head.count, head.mac)), output
    assert "the server recorded an entry that is not in it" in output
    set_policy(site, min_patients=61, require_dp=False, max_delta=9e-3, allow_reproducible_noise=True)
    (site.store / "manifest.json").chmod(0o600)
    found = json.loads(command("site", "check", "--site", site.path, "--json")[1])
    assert not found["ok"]
    assert sorted(one["level"] for one in found["findings"]) == ["error"] * 2 + ["warning"] * 3
    (site.store / "manifest.json").unlink()
    (site.path.parent / "ledger.key").unlink()
    site.file.policy.write_text("{}")
    (site.state / "received_head.json").write_text("{}")
    found = json.loads(command("site", "check", "--site", site.path, "--json")[1])
    assert [one["level"] for one in found["findings"]] == ["error"] * 4 + ["warning"]


def test_job_check_says_what_a_site_would_refuse(command: Command, private_job: Path, site: Site) -> None:
    set_policy(site, min_patients=61)
    code, output = command("job", "check", private_job, "--site", f"a={site.path}", "--json")
    errors = [f["text"] for f in json.loads(output)["findings"] if f["level"] == "error" and f["where"] == "--site a"]
    assert code == 1
    assert errors == ["this site would refuse the job: store: 60 patients to train on, policy min_patients is 61"]
    assert not list(site.state.iterdir())


def test_a_template_is_no_job(command: Command, repository: Path, site: Site) -> None:
    code, answer = asked(command, repository / "jobs" / "ct_fedavg_dp", site)
    assert code == 1
    assert len(answer["reasons"]) == 1
    assert "is a template" in answer["reasons"][0]


def test_a_policy_that_is_no_json_is_said_with_its_line(command: Command, private_job: Path, site: Site) -> None:
    site.file.policy.write_text('{\n  "policy_version": 1,\n  "min_patients": ten\n}\n')
    code, answer = asked(command, private_job, site)
    assert code == 1
    assert "(line 3, column 19)" in answer["reasons"][0]
