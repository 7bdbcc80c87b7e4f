"""An approval counts only whole, signed with the site's key and under its own name; a nonce is taken once."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from fedscan.plan import Plan, Submission
from fedscan.privacy.approvals import MAX_REFUSED, MAX_REFUSED_BYTES, Approvals
from fedscan.privacy.facts import NonceUse
from fedscan.privacy.nonces import NonceError, Nonces

KEY = b"k" * 32
DIGEST = "a" * 64


def test_an_approval_is_recorded_under_a_name_and_can_be_taken_back(tmp_path: Path) -> None:
    approvals = Approvals(tmp_path, KEY)
    assert approvals.approved() == {}
    made = approvals.approve(DIGEST, "Dr Meier")
    assert approvals.approved() == {DIGEST: made}
    assert made.approved_by == "Dr Meier"
    file = tmp_path / "approvals" / f"{DIGEST}.json"
    assert oct(file.stat().st_mode & 0o777) == "0o600"
    assert approvals.withdraw(DIGEST)
    assert not approvals.withdraw(DIGEST)
    assert approvals.approved() == {}


def test_an_approval_under_another_key_counts_as_none(tmp_path: Path) -> None:
    Approvals(tmp_path, b"x" * 32).approve(DIGEST)
    assert Approvals(tmp_path, KEY).approved() == {}


@pytest.mark.parametrize("field", ["plan_digest", "approved_by", "time", "mac"])
def test_an_edited_approval_counts_as_none(tmp_path: Path, field: str) -> None:
    approvals = Approvals(tmp_path, KEY)
    approvals.approve(DIGEST)
    file = tmp_path / "approvals" / f"{DIGEST}.json"
    body = json.loads(file.read_text())
    for value in ("b" * 64, "", None, 3):
        file.write_text(json.dumps(body | {field: value}))
        assert approvals.approved() == {}
    file.write_text(json.dumps({name: value for name, value in body.items() if name != field}))
    assert approvals.approved() == {}


def test_an_approval_copied_to_another_plan_counts_as_none(tmp_path: Path) -> None:
    approvals = Approvals(tmp_path, KEY)
    approvals.approve(DIGEST)
    file = tmp_path / "approvals" / f"{DIGEST}.json"
    file.rename(tmp_path / "approvals" / f"{'b' * 64}.json")
    assert approvals.approved() == {}


@pytest.mark.parametrize("digest", ["", "a" * 63, "A" * 64, "../" + "a" * 61, "a" * 64 + "\n", "g" * 64])
def test_what_is_no_digest_is_not_approved(tmp_path: Path, digest: str) -> None:
    with pytest.raises(ValueError, match="digest"):
        Approvals(tmp_path, KEY).approve(digest)
    assert not list(tmp_path.rglob("*.json"))


def test_refused_plans_are_kept_newest_first_with_their_reasons(tmp_path: Path) -> None:
    approvals = Approvals(tmp_path, KEY)
    plans = [Plan(rounds=rounds) for rounds in (1, 2)]
    for plan in plans:
        approvals.keep_refused(plan.model_dump(mode="json"), (f"rounds {plan.rounds}", "more"))
        for file in (tmp_path / "refused").glob("*.json"):
            os.utime(file, ns=(0, file.stat().st_mtime_ns - 10**9))  # both within one tick of the clock otherwise
    found = list(approvals.refused())
    assert [one.plan for one in found] == plans[::-1]
    assert [one.reasons for one in found] == [("rounds 2", "more"), ("rounds 1", "more")]


def test_the_number_and_the_size_of_refused_plans_are_bounded(tmp_path: Path) -> None:
    approvals = Approvals(tmp_path, KEY)
    for number in range(MAX_REFUSED + 10):
        approvals.keep_refused({"plan": number}, ("r" * 5000,) * 200)
    approvals.keep_refused({"x": "y" * MAX_REFUSED_BYTES}, ("too long",))
    approvals.keep_refused(float("nan"), ("not finite",))
    files = list((tmp_path / "refused").glob("*.json"))
    assert len(files) == MAX_REFUSED
    assert max(file.stat().st_size for file in files) < MAX_REFUSED_BYTES
    kept = [one for one in approvals.refused() if one.reasons == ("too long",)]
    assert [one.plan for one in kept] == [None]
    assert all(oct(file.stat().st_mode & 0o777) == "0o600" for file in files)


def test_refused_deeply_nested_data_is_kept_by_name_alone(tmp_path: Path) -> None:
    data: object = 0
    for _ in range(100_000):
        data = [data]
    Approvals(tmp_path, KEY).keep_refused(data, ("nested",))
    assert [one.reasons for one in Approvals(tmp_path, KEY).refused()] == [("nested",)]


def test_a_refused_number_beyond_every_float_is_no_plan(tmp_path: Path) -> None:
    """A plan that stopped `site approve --list` would hide all others that were refused."""
    data = Plan().model_dump(mode="json") | {"round_timeout_s": 10**400}
    Approvals(tmp_path, KEY).keep_refused(data, ("huge",))
    assert [(one.reasons, one.plan) for one in Approvals(tmp_path, KEY).refused()] == [(("huge",), None)]


def test_a_nonce_is_taken_once_and_remembers_for_what(tmp_path: Path) -> None:
    plan, submission = Plan(), Submission.new(start_round=4)
    nonces = Nonces(tmp_path)
    assert nonces.use_of(submission) is None
    nonces.take(plan, submission)
    assert nonces.use_of(submission) == NonceUse(plan.digest, submission.run_id, 4)
    with pytest.raises(NonceError, match="used before"):
        nonces.take(plan, submission)
    assert nonces.use_of(Submission.new(run_id=submission.run_id)) is None
    assert [path.name for path in (tmp_path / "nonces").iterdir()] == [f"{submission.nonce}.json"]


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"plan_digest": "a", "run_id": "b", "start_round": "0"}'])
def test_a_nonce_file_that_is_not_understood_is_a_refusal(tmp_path: Path, text: str) -> None:
    submission = Submission.new()
    nonces = Nonces(tmp_path)
    nonces.take(Plan(), submission)
    (tmp_path / "nonces" / f"{submission.nonce}.json").write_text(text)
    with pytest.raises(NonceError, match="cannot be read"):
        nonces.use_of(submission)


TAKE = """
import sys
from pathlib import Path
from fedscan.plan import Plan, Submission
from fedscan.privacy.nonces import NonceError, Nonces
submission = Submission.model_validate_json(sys.argv[2])
print("ready", flush=True)
sys.stdin.readline()
try:
    Nonces(Path(sys.argv[1])).take(Plan(), submission)
    print("taken", flush=True)
except NonceError:
    print("used", flush=True)
"""


def test_of_processes_that_take_one_nonce_at_once_one_gets_it(tmp_path: Path) -> None:
    submission = Submission.new()
    children = [
        subprocess.Popen(
            [sys.executable, "-c", TAKE, str(tmp_path), submission.model_dump_json()],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(4)
    ]
    for child in children:
        assert child.stdout is not None
        assert child.stdout.readline() == "ready\n"
    for child in children:
        assert child.stdin is not None
        child.stdin.write("go\n")
        child.stdin.flush()
    said = sorted(child.communicate()[0].strip() for child in children)
    assert said == ["taken", "used", "used", "used"]
