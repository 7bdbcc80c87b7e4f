"""`fedscan site`: a private site is made by one command, never over another; plans are approved by digest."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from fedscan.privacy.event import Event
from fedscan.privacy.ledger import Charge
from fedscan.privacy.limits import Limits
from fedscan.privacy.policy import Policy
from fedscan.privacy.site_file import Site, SiteFile

Command = Callable[..., tuple[int, str]]


def make(command: Command, tmp_path: Path, *more: object, folder: str = "site") -> tuple[int, str]:
    return command("site", "init", tmp_path / folder, "--name", "a", "--store", tmp_path / "store", *more)


def test_init_makes_a_site_whose_policy_demands_dp(command: Command, tmp_path: Path) -> None:
    code, output = make(command, tmp_path, "--anchor", tmp_path / "far" / "a.anchor", "--set", "min_patients=50")
    assert code == 0, output
    assert "the ledger's volume" in output
    assert f"the store is not there yet ({tmp_path / 'store'})" in output.replace("\n", "")
    site = Site.open(tmp_path / "site")
    policy = site.policy()
    assert policy == Policy(policy_version=1, min_patients=50)
    assert (site.name, site.store) == ("a", tmp_path / "store")
    assert site.open_ledger().events() == []
    assert len(site.key()) == 32


def test_a_kit_gets_site_json_alone(command: Command, tmp_path: Path) -> None:
    (tmp_path / "kit" / "local").mkdir(parents=True)
    code, output = make(command, tmp_path, folder="kit")
    assert code == 0, output
    assert [path.name for path in (tmp_path / "kit" / "local").iterdir()] == ["site.json"]
    assert (tmp_path / "kit.private" / "ledger.key").is_file()
    assert Site.open(tmp_path / "kit").path == tmp_path / "kit" / "local" / "site.json"


def test_nothing_is_overwritten_and_a_ledger_keeps_what_it_spent(command: Command, tmp_path: Path) -> None:
    make(command, tmp_path)
    code, output = make(command, tmp_path)
    assert code == 1
    assert "is there already" in output
    assert "edit that file" in output.replace("\n", " ")
    site = Site.open(tmp_path / "site")
    key, ledger = site.file.key.read_bytes(), site.file.ledger.read_bytes()
    site.path.unlink()
    code, output = make(command, tmp_path, "--set", "max_epsilon=2")
    assert code == 0, output
    assert "the one that is there was kept as it is" in output.replace("\n", " ")
    assert (site.file.key.read_bytes(), site.file.ledger.read_bytes()) == (key, ledger)
    assert site.policy() == Policy(policy_version=1)


def test_a_ledger_that_was_taken_away_is_not_made_anew(command: Command, tmp_path: Path) -> None:
    make(command, tmp_path)
    site = Site.open(tmp_path / "site")
    event = Event(noise_multiplier=3.0, sample_rate=0.25, steps=10, unit="patient")
    site.open_ledger().reserve(Charge("1" * 32, "2" * 64, 0, "3" * 64, event, frozenset({"4" * 32})))
    site.path.unlink()
    site.file.ledger.unlink()
    code, output = make(command, tmp_path)
    assert code == 1
    assert "what was spent stays spent" in output
    assert not site.path.exists()


def test_a_second_ledger_for_a_store_is_not_made(command: Command, tmp_path: Path) -> None:
    """A second federation's kit: with a ledger of its own each patient would have the budget twice."""
    (tmp_path / "store").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "store")
    (tmp_path / "kit" / "local").mkdir(parents=True)
    assert make(command, tmp_path)[0] == 0
    ledger = Site.open(tmp_path / "site").file.ledger
    again = ("site", "init", tmp_path / "kit", "--name", "b", "--store")
    for store in ("store", "link"):
        code, output = command(*again, tmp_path / store)
        assert code == 1
        assert f"charges for this store already: {ledger}" in output.replace("\n", " ")
        assert not (tmp_path / "kit.private" / "ledger.jsonl").exists()
    code, output = command(*again, tmp_path / "store", "--private", tmp_path / "site")  # as the refusal says
    assert code == 0, output
    assert Site.open(tmp_path / "kit").file.ledger == ledger
    shutil.move(tmp_path / "site", tmp_path / "elsewhere")
    code, output = command("site", "init", tmp_path / "third", "--name", "c", "--store", tmp_path / "store")
    assert code == 0, output
    assert f"charged for this store before, and is gone: {ledger}" in output.replace("\n", " ")


@pytest.mark.parametrize(
    ("more", "word"),
    [
        (["--set", "max_epsilom=2"], "max_epsilom: there is no such field"),
        (["--set", "max_epsilon=none"], "max_epsilon"),
        (["--set", "max_epsilon"], "field=value"),
        (["--anchor", "store/anchor"], "lies in the store"),
    ],
)
def test_a_mistake_is_one_line_and_leaves_no_site(
    command: Command, tmp_path: Path, more: list[str], word: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    code, output = make(command, tmp_path, *more)
    assert code == 1
    assert word in output
    assert not (tmp_path / "site" / "site.json").exists()


def test_a_site_folder_can_be_moved_whole(command: Command, tmp_path: Path) -> None:
    make(command, tmp_path)
    (tmp_path / "site").rename(tmp_path / "elsewhere")
    site = Site.open(tmp_path / "elsewhere")
    assert site.open_ledger().events() == []
    assert isinstance(site.policy(), Policy)


def test_approve_by_folder_digest_and_first_digits(command: Command, tmp_path: Path, private_job: Path) -> None:
    make(command, tmp_path, "--set", "approval=by_digest", "--set", "min_patients=1")
    where = ("--site", tmp_path / "site")
    code, output = command("site", "approve", private_job, *where, "--json")
    assert code == 0, output
    digest = json.loads(output)["plan_digest"]
    shown = json.loads(command("site", "approve", "--list", *where, "--json")[1])
    assert [one["plan_digest"] for one in shown["approved"]] == [digest]
    assert command("site", "approve", digest, "--withdraw", *where)[0] == 0
    assert json.loads(command("site", "approve", "--list", *where, "--json")[1])["approved"] == []
    code, output = command("site", "approve", digest[:12], *where)
    assert code == 1
    assert "0 known plans begin with" in output
    assert command("site", "approve", digest, *where)[0] == 0


def test_list_shows_refused_plans_with_their_reasons(command: Command, tmp_path: Path, private_job: Path) -> None:
    from fedscan.plan import Plan, Submission
    from fedscan.privacy import charging
    from fedscan.training.site_store import store_facts

    make(command, tmp_path)
    site = Site.open(tmp_path / "site")
    plan = Plan()
    charging.admit(
        site,
        plan.model_dump(mode="json"),
        Submission.new().model_dump(mode="json"),
        submitter=None,
        store=store_facts(site.store),
    )
    where = ("--site", site.path)
    shown = json.loads(command("site", "approve", "--list", *where, "--json")[1])
    assert [one["plan_digest"] for one in shown["refused"]] == [plan.digest]
    assert any("require_dp" in reason for reason in shown["refused"][0]["reasons"])
    code, output = command("site", "approve", "--list", *where)
    assert code == 0
    assert f"{plan.digest[:12]}  ct-fedavg, 10 rounds, no DP\n" in output
    assert "\n    privacy: the plan has no differential privacy" in output
    assert command("site", "approve", plan.digest[:12], *where)[0] == 0
    assert "no DP; approved\n" in command("site", "approve", "--list", *where)[1]
    assert command("site", "approve", plan.digest[:12], "--withdraw", *where)[0] == 0


def test_a_hostile_plan_cannot_write_to_the_terminal(command: Command, tmp_path: Path) -> None:
    from fedscan.plan import Plan
    from fedscan.privacy import charging
    from fedscan.privacy.approvals import Approvals
    from fedscan.training.site_store import store_facts

    make(command, tmp_path)
    site = Site.open(tmp_path / "site")
    plan = {**Plan().model_dump(mode="json"), "\x1b[2Jnothing to see\n": 1}
    verdict = charging.admit(site, plan, None, submitter=None, store=store_facts(site.store))
    Approvals(site.state, site.key()).keep_refused({"of": "another"}, ("\x1b]0;title\x07",))
    assert "\x1b" not in "".join(verdict.reasons)
    code, output = command("site", "approve", "--list", "--site", site.path)
    assert code == 0
    assert "?[2Jnothing to see?" in output
    assert "\x1b" not in output


def test_approve_without_a_plan_or_with_another_thing(command: Command, tmp_path: Path) -> None:
    make(command, tmp_path)
    assert "name a job folder" in command("site", "approve", "--site", tmp_path / "site")[1]
    code, output = command("site", "approve", tmp_path, "--site", tmp_path / "site")
    assert code == 1
    assert "neither a plan's digest nor a job folder" in output
    code, output = command("site", "approve", "--list", "--site", tmp_path / "nowhere")
    assert code == 1
    assert "site.json" in output


def test_the_page_names_every_field_with_its_default(repository: Path) -> None:
    page = (repository / "docs" / "site.md").read_text()
    said = dict(re.findall(r"^\| `(\w+)` \| ([^|]+) \|", page, re.M))
    assert set(said) == set(SiteFile.model_fields) | set(Limits.model_fields) | set(Policy.model_fields)
    for model in (Policy, Limits):
        for name, field in model.model_fields.items():
            if not field.is_required():
                default = field.default
                assert json.loads(said[name]) == (list(default) if isinstance(default, tuple) else default), name
