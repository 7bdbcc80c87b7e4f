"""`fedscan budget`: spent, left, by job, what fits, verified, drawn; from a real site with a real ledger."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image
from typer.testing import CliRunner

from fedscan.cli.main import app
from fedscan.federation.job_folder import CLIENT_PATH
from fedscan.plan import Plan
from fedscan.privacy.accounting import epsilon, rounds_that_fit
from fedscan.privacy.event import Event, round_event
from fedscan.privacy.ledger import Charge
from fedscan.privacy.site_file import Site

SLICES = Event(noise_multiplier=1.0, sample_rate=0.05, steps=10, unit="patient")
PLAN = Plan.model_validate(
    {
        "training": {"local_steps": 10},
        "weighting": "uniform",
        "rounds": 20,
        "init_sha256": "0" * 64,
        "privacy": {
            "noise_multiplier": 1.0,
            "delta": 1e-5,
            "sites": {"a": {"sample_rate": 0.05, "expected_patients_per_step": 10.0}},
        },
    }
)


@pytest.fixture
def site(tmp_path: Path) -> Site:
    done = CliRunner().invoke(app, ["site", "init", str(tmp_path / "a"), "--name", "a", "--store", str(tmp_path / "s")])
    assert done.exit_code == 0, done.output
    return Site.open(tmp_path / "a")


def spend(site: Site, rounds: int, run_id: str = "a" * 32, event: Event = SLICES) -> None:
    ledger = site.open_ledger()
    for number in range(rounds):
        entry = ledger.reserve(
            Charge(
                run_id=run_id,
                plan_digest=PLAN.digest,
                round_number=number,
                model_digest="2" * 64,
                event=event,
                population=frozenset({"0123456789abcdef" * 2}),
            )
        )
        ledger.note_answer(entry.number, f"{number:064x}")


def run(*arguments: object, code: int = 0) -> str:
    done = CliRunner().invoke(app, ["budget", *(str(a) for a in arguments)])
    assert done.exit_code == code, done.output
    return done.output


def ask(*arguments: object) -> dict:
    return json.loads(run(*arguments, "--json"))


def job(folder: Path, plan: Plan = PLAN) -> Path:
    path = folder / CLIENT_PATH
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"plan": plan.model_dump(mode="json")}))
    return folder


def test_a_new_site_has_all_of_its_budget(site: Site) -> None:
    report = ask("--site", site.path)
    assert (report["epsilon"], report["left"], report["max_epsilon"], report["delta"]) == (0.0, 8.0, 8.0, 1e-4)
    assert report["jobs"] == []
    assert report["unit"] is None
    assert "epsilon 0 spent" in run("--site", site.path)


def test_spend_is_the_accountants_over_all_jobs(site: Site) -> None:
    dearer = SLICES.model_copy(update={"noise_multiplier": 0.8})
    spend(site, 3)
    spend(site, 2, run_id="b" * 32, event=dearer)
    report = ask("--site", site.path)
    assert report["epsilon"] == epsilon([SLICES] * 3 + [dearer] * 2, 1e-4)
    assert report["left"] == 8.0 - report["epsilon"]
    first, second = report["jobs"]
    assert (first["run_id"], first["rounds"], first["answers"], first["steps"]) == ("a" * 32, 3, 3, 30)
    assert (second["run_id"], second["rounds"], second["steps"]) == ("b" * 32, 2, 20)
    assert first["epsilon_alone"] == epsilon([SLICES] * 3, 1e-4)
    assert second["epsilon_alone"] == epsilon([dearer] * 2, 1e-4)
    assert max(first["epsilon_alone"], second["epsilon_alone"]) < report["epsilon"]
    assert report["unit"] == "patient"
    assert report["head"]["count"] == report["entries"] == site.open_ledger().head.count
    text = run("--site", site.path)
    for word in ("for each patient", "aaaaaaaaaaaa", "bbbbbbbbbbbb", f"{report['left']:.4g}", PLAN.digest[:12]):
        assert word in text


def test_it_says_how_many_rounds_of_a_plan_fit(site: Site, tmp_path: Path) -> None:
    spend(site, 4)
    plan = ask("--site", site.path, "--plan", job(tmp_path / "job"))["plan"]
    event = round_event(PLAN, "a")
    fit = plan["rounds_that_fit"]
    assert fit == rounds_that_fit([SLICES] * 4, event, 1e-4, 8.0)
    assert epsilon([SLICES] * (4 + fit), 1e-4) <= 8.0 < epsilon([SLICES] * (5 + fit), 1e-4)
    assert plan["epsilon_after_one"] == epsilon([SLICES] * 5, 1e-4)
    assert f"{fit} more fit" in run("--site", site.path, "--plan", tmp_path / "job")


def test_a_plan_that_is_not_for_this_site_is_one_line(site: Site, tmp_path: Path) -> None:
    other = PLAN.model_dump(mode="json")
    other["privacy"]["sites"] = {"elsewhere": other["privacy"]["sites"]["a"]}
    text = run("--site", site.path, "--plan", job(tmp_path / "job", Plan.model_validate(other)), code=1)
    assert "names no sampling for this site" in text
    assert "error" in run("--site", site.path, "--plan", tmp_path / "nothing", code=1)


def test_another_delta_is_reported_without_a_rest(site: Site) -> None:
    spend(site, 3)
    report = ask("--site", site.path, "--delta", "1e-6")
    assert report["epsilon"] == epsilon([SLICES] * 3, 1e-6)
    assert report["left"] is None
    assert "delta must lie" in run("--site", site.path, "--delta", "2", code=1)


def test_without_a_policy_nothing_is_left(site: Site) -> None:
    spend(site, 1)
    site.file.policy.unlink()
    assert "give --delta" in run("--site", site.path, code=1)
    report = ask("--site", site.path, "--delta", "1e-4")
    assert (report["max_epsilon"], report["left"]) == (None, None)
    assert "nothing can be spent" in run("--site", site.path, "--delta", "1e-4")


def test_images_are_named_as_what_they_are(site: Site) -> None:
    spend(site, 1, event=SLICES.model_copy(update={"unit": "image"}))
    assert "for each image; patients are not bounded" in run("--site", site.path)


def test_a_ledger_that_was_edited_is_refused_by_its_entry(site: Site) -> None:
    spend(site, 3)
    data = site.file.ledger.read_bytes()
    site.file.ledger.write_bytes(data.replace(b'"steps":10', b'"steps":11', 1))
    assert "ledger: entry 2:" in run("--site", site.path, code=1)


def test_verify_looks_at_the_patients_and_the_servers_head(site: Site) -> None:
    spend(site, 2)
    assert ask("--site", site.path, "--verify")["verified"] == {"entries": 6, "populations": 1, "server_head": None}
    head = site.open_ledger().head
    received = site.state / "received_head.json"
    received.write_text(json.dumps({"count": head.count, "mac": head.mac}))
    received.chmod(0o600)
    assert ask("--site", site.path, "--verify")["verified"]["server_head"] == head.count
    assert f"entry {head.count}" in run("--site", site.path, "--verify")
    received.write_text(json.dumps({"count": head.count + 1, "mac": head.mac}))
    assert f"entry {head.count + 1}: the server sent back" in run("--site", site.path, "--verify", code=1)
    received.unlink()
    (file,) = site.file.ledger.with_name("ledger.jsonl.populations").iterdir()
    file.write_text("[]")
    assert "whom it concerns was edited" in run("--site", site.path, "--verify", code=1)


def test_incidents_are_told(site: Site) -> None:
    spend(site, 1)
    site.open_ledger().record_removal({"p1", "p2"}, {"p1"})
    with site.file.ledger.open("ab") as file:
        file.write(b'{"n":')
    report = ask("--site", site.path)
    assert len(report["incidents"]) == 2
    assert "patients were taken out" in report["incidents"][0]
    assert "torn by a power cut, and charged" in report["incidents"][1]
    assert (report["jobs"][0]["rounds"], report["jobs"][0]["torn"], report["jobs"][0]["steps"]) == (1, 1, 20)


def test_what_no_epsilon_bounds_is_said_beside_it(site: Site) -> None:
    assert "no epsilon bounds" not in run("--site", site.path)
    spend(site, 1)
    site.open_ledger().note_unprotected("b" * 32, PLAN.digest)
    assert "1 run without differential privacy was trained here: no epsilon bounds" in run("--site", site.path)
    report = ask("--site", site.path)
    assert report["unprotected_runs"] == 1
    assert "without differential privacy" in report["incidents"][-1]


def test_the_plot_is_a_picture(site: Site, tmp_path: Path) -> None:
    spend(site, 4)
    spend(site, 3, run_id="b" * 32)
    assert "drawn: " in run("--site", site.path, "--plot", tmp_path / "p.png")
    picture = Image.open(io.BytesIO((tmp_path / "p.png").read_bytes()))
    assert picture.format == "PNG"
    assert picture.size == (1080, 540)
    assert len(picture.convert("RGB").getcolors(10**6) or []) > 20
    assert "there is no folder" in run("--site", site.path, "--plot", tmp_path / "no" / "p.png", code=1)


def test_nothing_of_a_patient_is_printed(site: Site) -> None:
    spend(site, 1)
    assert "0123456789abcdef0123" not in run("--site", site.path, "--json", "--verify")


def test_its_help_needs_nothing_heavy() -> None:
    code = (
        "import sys\nfrom fedscan.cli.main import app\n"
        "try: app(['budget', '--help'])\nexcept SystemExit: pass\n"
        "print([m for m in ('torch', 'dp_accounting', 'scipy', 'matplotlib') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
