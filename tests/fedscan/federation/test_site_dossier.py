"""`site dossier`: every number is from the site's files, a looser setting shows, the same files give the same text."""

from __future__ import annotations

import json
import math
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from ctslices.phantom import chest_slices
from ctslices.store import write_store
from fedscan.federation import site_dossier
from fedscan.federation.byte_log import ByteLog
from fedscan.federation.site_dossier import Bound, DossierError, looser
from fedscan.privacy.event import Event
from fedscan.privacy.ledger import Charge
from fedscan.privacy.policy import Policy
from fedscan.privacy.site_file import Site

Command = Callable[..., tuple[int, str]]
HEADINGS = [
    "## 6 Context assessment",
    "### 6.2 Threat modelling",
    "### 6.3 Transparency and impact assessment",
    "## 7 Data assessment",
    "### 7.2 Data features",
    "### 7.3 Attack modelling",
    "## 8 Identifiability assessment and mitigation",
    "### 8.2 Assessing identifiability",
    "### 8.3 Mitigation",
    "## 9 De-identification governance",
    "### 9.2 Before data are made available",
    "### 9.3 After data are made available",
    "### 9.4 Mitigation in case of incident",
]


def draft(kit: Path) -> str:
    return site_dossier.render(site_dossier.read(kit))


def set_policy(kit: Path, **fields: object) -> None:
    path = Site.open(kit).file.policy
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def spend(kit: Path, run: str = "1" * 32, noise_multiplier: float = 3.0) -> Site:
    site = Site.open(kit)
    event = Event(noise_multiplier=noise_multiplier, sample_rate=0.25, steps=10, unit="patient")
    patients = frozenset(p["id"] for p in json.loads((site.store / "manifest.json").read_text())["patients"])
    site.open_ledger().reserve(Charge(run, "2" * 64, 0, "3" * 64, event, patients))
    return site


def test_the_headings_are_those_of_the_standard_in_order(installed: Path) -> None:
    text = draft(installed)
    places = [text.index(heading) for heading in HEADINGS]
    assert places == sorted(places)
    assert text.count("**Open**") > 20


def test_the_same_files_give_the_same_text(installed: Path) -> None:
    spend(installed)
    assert draft(installed) == draft(installed)


CHANGES: dict[str, tuple[object, str]] = {
    "require_dp": (False, "**not demanded: the policy lets plans without differential privacy in**"),
    "max_epsilon": (11.5, "| epsilon | 0 | 11.5 (11.5 left) |"),
    "max_delta": (0.002, "At delta 0.002, for each patient"),
    "min_patients": (7, "at least 7 patients to train on"),
    "min_noise_multiplier": (0.25, "noise_multiplier at least 0.25"),
    "max_rounds": (1234, "at most 1234 rounds a plan"),
    "answers": (["update", "loss"], "| mean loss of a round | one number"),
    "allowed_submitters": (["lead@x.org", "b@x.org"], "Submitters: lead@x.org, b@x.org."),
    "approval": ("by_digest", "a person here approves each plan by its digest"),
    "allow_image_unit": (True, "allow_image_unit is true, a new site's is false"),
    "allow_reproducible_noise": (True, "noise that anybody can repeat, which protects nobody"),
}


@pytest.mark.parametrize("field", CHANGES)
def test_a_changed_field_of_the_policy_shows(installed: Path, field: str) -> None:
    value, words = CHANGES[field]
    before = draft(installed)
    assert words not in before
    set_policy(installed, **{field: value})
    after = draft(installed)
    assert words in after
    shown = f"\n- {field} is " in after
    assert shown == (field not in ("allowed_submitters", "approval"))


def test_every_field_of_the_policy_is_changed_here() -> None:
    assert set(CHANGES) == set(Policy.model_fields) - {"policy_version"}


def test_stricter_than_a_new_sites_is_not_looser() -> None:
    assert looser(Policy(policy_version=1)) == ()
    strict = Policy(
        policy_version=1,
        max_epsilon=1.0,
        max_delta=1e-6,
        min_patients=900,
        max_rounds=5,
        min_noise_multiplier=2.0,
        answers=(),
    )
    assert looser(strict) == ()


def test_what_was_spent_is_the_ledgers(installed: Path) -> None:
    site = spend(installed)
    spend(installed, run="4" * 32)
    ledger = site.open_ledger()
    epsilon = ledger.epsilon(1e-3)
    text = draft(installed)
    assert f"| epsilon | {epsilon:.4g} | 8 ({8 - epsilon:.4g} left) |" in text
    assert f"| ledger | {ledger.head.count} entries, head {ledger.head.mac[:16]} |" in text
    assert len(re.findall(r"\n\| (1{12}|4{12}) \| 2{12} \| 1 \| 0 \| ", text)) == 2


def test_runs_without_privacy_are_told(installed: Path) -> None:
    Site.open(installed).open_ledger().note_unprotected("7" * 32, "8" * 64)
    text = draft(installed)
    assert "Runs without differential privacy that were trained here: 1." in text
    assert "was trained without differential privacy: no epsilon bounds it" in text  # among what happened to the ledger


@pytest.mark.parametrize(("epsilon", "delta"), [(0.0, 0.0), (0.5, 1e-5), (1.0, 1e-4), (8.0, 1e-3), (900.0, 0.0)])
def test_the_bound_in_words(epsilon: float, delta: float) -> None:
    """Against the two lines of the trade-off function, searched on a grid: no test beats it."""
    bound = Bound(epsilon, delta)
    assert bound.factor == pytest.approx(math.exp(min(epsilon, 700)))
    hits = np.linspace(0, 1, 100_001)
    e = math.exp(min(epsilon, 700))
    allowed = (hits <= e * 0.01 + delta + 1e-9) & (e * (1 - hits) + delta + 1e-9 >= 1 - 0.01)
    assert bound.hits_at_1_percent == pytest.approx(hits[allowed].max(), abs=2e-5)


def test_the_store_is_described_as_it_is(installed: Path) -> None:
    site = Site.open(installed)
    assert "| data principals | 12 patients to train on; 0 records held out" in draft(installed)
    shutil.rmtree(site.store)
    hu, _ = chest_slices(np.random.default_rng(2), 40)
    write_store(site.store, hu, np.arange(40) // 2, splits=["train"] * 15 + ["holdout"] * 5)
    text = draft(installed)
    assert "| data principals | 15 patients to train on; 5 records held out" in text
    assert "40 CT slices of 64 x 64 pixels" in text


def test_a_kit_that_is_not_strict_is_said_at_the_top_and_where_it_matters(installed: Path) -> None:
    assert "**no: see the top**" not in draft(installed)
    path = installed / "local/resources.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"allow_log_streaming": True}))
    text = draft(installed)
    assert text.index("**This site is not set as a strict one.") < text.index("## 6 Context")
    assert re.search(r"\n\| logs \| .* \| \*\*no: see the top\*\* \|\n", text)
    assert text.count("**no: see the top**") == 1
    path = installed / "local/authorization.json"
    content = json.loads(path.read_text())
    content["permissions"]["project_admin"]["shell_commands"] = "any"
    path.write_text(json.dumps(content))
    assert "| project_admin | shell_commands (any) |" in draft(installed)


def test_what_left_is_the_byte_logs(installed: Path) -> None:
    assert "(nothing was sent yet)" in draft(installed)
    log = ByteLog("parent")
    log.write_to(Site.open(installed).state)
    log.count("task/heart_beat", "server", 1234)
    log.count("cellnet/inside", "inside", 777)
    log.count("aux/other", "server", 99, blocked=True)
    text = draft(installed)
    assert "| task/heart_beat | 1 | 1234 |" in text
    assert "Stopped at the gate: 1 messages, 99 bytes." in text
    assert "777" not in text


def test_names_of_others_are_no_markup(installed: Path) -> None:
    path = installed / "local/authorization.json"
    content = json.loads(path.read_text())
    content["permissions"]["x|y](http://evil) <script>\n# Top"] = {"view": "`any`"}
    path.write_text(json.dumps(content))
    text = draft(installed)
    assert "<script>" not in text
    assert "](http" not in text
    assert "\n# Top" not in text


@pytest.mark.parametrize("what", ["policy", "ledger", "store", "site.json"])
def test_what_cannot_be_read_is_no_dossier(installed: Path, what: str) -> None:
    site = Site.open(installed)
    if what == "store":
        (site.store / "manifest.json").unlink()
    elif what == "site.json":
        site.path.unlink()
    else:
        getattr(site.file, what).write_text("{}\n")
    with pytest.raises(DossierError, match=r"policy|ledger|store|manifest|site\.json"):
        site_dossier.read(installed)


def test_the_command(installed: Path, command: Command, tmp_path: Path) -> None:
    out = tmp_path / "dpia.md"
    code, output = command("site", "dossier", installed, "--out", out)
    assert code == 0, output
    assert out.read_text() == draft(installed)
    assert out.stat().st_mode & 0o077 == 0
    assert f"{out.read_text().count('**Open**')} points are open" in output
    assert "it says: min_patients is 10" in output
    out.write_text("answers of people")
    code, output = command("site", "dossier", installed, "--out", out)
    assert code == 1
    assert "--force" in output
    assert out.read_text() == "answers of people"
    report = json.loads(command("site", "dossier", installed, "--out", out, "--force", "--json")[1])
    assert report["findings"] == []
    assert [line.split(" ")[0] for line in report["looser"]] == ["max_delta", "min_patients"]
    assert command("site", "dossier", tmp_path, "--out", tmp_path / "x.md")[0] == 1
    assert not (tmp_path / "x.md").exists()
