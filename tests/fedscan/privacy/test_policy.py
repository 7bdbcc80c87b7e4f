"""A policy is private by default, strict, and said once; hours are read as people mean them."""

from __future__ import annotations

import json
from datetime import datetime
from pathlib import Path

import pytest
from pydantic import ValidationError

from fedscan.privacy.limits import Limits
from fedscan.privacy.policy import Policy, Unreadable
from fedscan.privacy.site_file import load_policy


def written(folder: Path, text: str, mode: int = 0o600) -> Path:
    path = folder / "policy.json"
    path.write_text(text)
    path.chmod(mode)
    return path


def test_every_default_is_the_private_one() -> None:
    policy = Policy(policy_version=1)
    assert policy.require_dp
    assert policy.answers == ("update",)
    assert not policy.allow_image_unit
    assert not policy.allow_reproducible_noise
    assert policy.max_epsilon <= 8
    assert policy.max_delta * policy.min_patients < 1


def test_a_policy_is_read_as_it_is_written(tmp_path: Path) -> None:
    said = {"policy_version": 1, "max_epsilon": 3, "allowed_submitters": ["a", "b"], "approval": "by_digest"}
    policy = load_policy(written(tmp_path, json.dumps(said)))
    assert isinstance(policy, Policy)
    assert (policy.max_epsilon, policy.allowed_submitters, policy.approval) == (3.0, ("a", "b"), "by_digest")
    assert load_policy(written(tmp_path, json.dumps(policy.model_dump(mode="json")))) == policy


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("{}", "policy_version"),
        ('{"policy_version": 2}', "policy_version"),
        ('{"policy_version": 1, "require_db": true}', "require_db: there is no such field"),
        ('{"policy_version": 1, "require_dp": 0}', "require_dp"),
        ('{"policy_version": 1, "require_dp": "false"}', "require_dp"),
        ('{"policy_version": 1, "max_epsilon": NaN}', "max_epsilon"),
        ('{"policy_version": 1, "max_epsilon": Infinity}', "max_epsilon"),
        ('{"policy_version": 1, "max_epsilon": 1e400}', "max_epsilon"),
        ('{"policy_version": 1, "max_epsilon": 1' + "0" * 400 + "}", "max_epsilon"),
        ('{"policy_version": 1, "max_epsilon": -1}', "max_epsilon"),
        ('{"policy_version": 1, "max_delta": 0.5}', "max_delta"),
        ('{"policy_version": 1, "answers": ["update", "counts"]}', "answers"),
        ('{"policy_version": 1, "answers": ["update", "loss", "update"]}', "answers"),
        ('{"policy_version": 1, "allowed_submitters": "all"}', "allowed_submitters"),
        ('{"policy_version": 1, "approval": "none"}', "approval"),
        ('{"policy_version": 1, "max_epsilon": 1, "max_epsilon": 9}', "twice"),
        ("[]", "object"),
        ("null", "object"),
        ("", "no proper JSON"),
        ('{"policy_version": 1', "no proper JSON"),
        ("[" * 100_000, "no proper JSON"),
        ('{"policy_version": 1, "x": "' + "y" * (1 << 20) + '"}', "longer"),
    ],
)
def test_what_is_not_understood_is_unreadable(tmp_path: Path, text: str, word: str) -> None:
    found = load_policy(written(tmp_path, text))
    assert isinstance(found, Unreadable)
    assert word in "; ".join(found.reasons)


def test_all_that_is_wrong_is_said_at_once(tmp_path: Path) -> None:
    found = load_policy(written(tmp_path, '{"policy_version": 1, "max_epsilon": -1, "colour": 1, "min_patients": 0}'))
    assert isinstance(found, Unreadable)
    assert len(found.reasons) == 3


def test_a_policy_that_is_missing_a_folder_or_open_to_others_is_unreadable(tmp_path: Path) -> None:
    assert isinstance(load_policy(tmp_path / "none.json"), Unreadable)
    assert isinstance(load_policy(tmp_path), Unreadable)
    for mode in (0o622, 0o660, 0o602):
        found = load_policy(written(tmp_path, '{"policy_version": 1}', mode))
        assert isinstance(found, Unreadable)
        assert "written by others" in found.reasons[0]
    assert isinstance(load_policy(written(tmp_path, '{"policy_version": 1}', 0o644)), Policy)


def test_a_pipe_in_the_place_of_a_policy_does_not_hang(tmp_path: Path) -> None:
    import os

    os.mkfifo(tmp_path / "policy.json", 0o600)
    assert isinstance(load_policy(tmp_path / "policy.json"), Unreadable)


@pytest.mark.parametrize(
    ("hours", "time", "quiet"),
    [
        ("07:30-18:00", "07:29", False),
        ("07:30-18:00", "07:30", True),
        ("07:30-18:00", "17:59", True),
        ("07:30-18:00", "18:00", False),
        ("22:00-06:00", "21:59", False),
        ("22:00-06:00", "22:00", True),
        ("22:00-06:00", "00:00", True),
        ("22:00-06:00", "05:59", True),
        ("22:00-06:00", "06:00", False),
        ("00:00-00:00", "13:00", True),
    ],
)
def test_quiet_hours(hours: str, time: str, quiet: bool) -> None:
    now = datetime.fromisoformat(f"2026-11-24T{time}:30+01:00")
    assert (Limits(quiet_hours=(hours,)).quiet_now(now) == hours) is quiet


@pytest.mark.parametrize("hours", ["7:30-18:00", "07:30", "24:00-06:00", "07:60-08:00", "07:30-18:00 ", "٠٧:30-18:00"])
def test_hours_of_another_form_are_refused(hours: str) -> None:
    with pytest.raises(ValidationError, match="quiet_hours"):
        Limits(quiet_hours=(hours,))
