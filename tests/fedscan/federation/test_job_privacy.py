"""Privacy in jobs: `job new` finds the noise, `job check` recomputes what every site spends and what it may expect."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from ctslices.store import write_store
from fedscan.cli.job import app
from fedscan.federation import job_check, job_folder
from fedscan.federation.findings import Finding, JobError
from fedscan.federation.job_folder import CLIENT_PATH, META, SERVER_PATH
from fedscan.plan import Plan
from fedscan.privacy.accounting import epsilon
from fedscan.privacy.event import run_event

PRIVATE = [
    'privacy={"target_epsilon": 8, "delta": 1e-5, "from_scratch": true}',
    "weighting=declared",
    "rounds=20",
    "training.local_steps=10",
    "min_responses=1",
]
SIZES = {"a": 2500, "b": 300}


@pytest.fixture
def template(repository: Path) -> Path:
    return repository / "jobs" / "ct_fedavg"


@pytest.fixture
def job(template: Path, tmp_path: Path) -> Path:
    job_folder.new(template, tmp_path / "job", PRIVATE, patients=SIZES)
    return tmp_path / "job"


def spent(plan: Plan, site: str) -> float:
    assert plan.privacy is not None
    return epsilon([run_event(plan, site)], plan.privacy.delta)


def edit(job: Path, **privacy: Any) -> None:
    for path in (CLIENT_PATH, SERVER_PATH):
        config = json.loads((job / path).read_text())
        config["plan"]["privacy"] |= privacy
        (job / path).write_text(json.dumps(config))


def found(job: Path, level: str = "error", **arguments: Any) -> dict[str, str]:
    return {f.where: f.text for f in job_check.check(job, **arguments) if f.level == level}


# job new


def test_new_fills_in_sampling_noise_and_sites(job: Path) -> None:
    plan = job_folder.read_plan(job)
    assert plan.privacy is not None
    assert plan.privacy.sites["a"].expected_patients_per_step == 625.0
    assert plan.privacy.sites["b"].declared_patients == 300.0
    assert 7.95 < spent(plan, "a") <= 8.0
    assert json.loads((job / META).read_text())["deploy_map"]["app_client"] == ["a", "b"]
    assert found(job) == {}


def test_a_rate_of_ones_own_and_the_worst_site(template: Path, tmp_path: Path) -> None:
    settings = [*PRIVATE, "privacy.sites.b.sample_rate=0.5"]
    plan = job_folder.new(template, tmp_path / "job", settings, patients=SIZES, sample_rate=None)
    assert plan.privacy is not None
    assert plan.privacy.sites["b"].expected_patients_per_step == 150.0
    assert spent(plan, "a") < spent(plan, "b") <= 8.0
    faster = job_folder.new(template, tmp_path / "faster", PRIVATE, patients=SIZES, sample_rate=0.1)
    assert faster.privacy is not None
    assert {s.sample_rate for s in faster.privacy.sites.values()} == {0.1}


@pytest.mark.parametrize(
    ("settings", "arguments", "words"),
    [
        ([], {}, "--patients a=500,b=300"),
        ([], {"sample_rate": 0.5}, "--sample-rate goes with --patients"),
        (["privacy.target_epsilon=null"], {"patients": SIZES}, "set one"),
        (["privacy=null"], {"patients": SIZES}, "has no privacy"),
        (["weighting=examples"], {"patients": SIZES}, "uniform or declared"),
        (["training.local_epochs=1"], {"patients": SIZES}, "local_steps"),
        (["privacy.from_scratch=false"], {"patients": SIZES}, "start from a public model"),
        (["privacy.delta=1e-3"], {"patients": SIZES}, "delta 0.001 would let one patient be published"),
        (["privacy.noise_multiplier=0.5", "privacy.target_epsilon=8"], {"patients": SIZES}, "exceeds target_epsilon 8"),
        ([], {"patients": SIZES, "sites": ["a", "b", "c"]}, "site c: the plan has no sampling"),
        ([], {"patients": {"a/b": 50}}, "is no site name"),
        ([], {"patients": SIZES, "sample_rate": 1.5}, "sample_rate: Input should be less than or equal to 1"),
        (["privacy.sites.a.sample_rate=0.3"], {}, "expected_patients_per_step"),
    ],
)
def test_what_cannot_be_private_makes_no_job(
    template: Path, tmp_path: Path, settings: list[str], arguments: dict[str, Any], words: str
) -> None:
    with pytest.raises(JobError, match=words):
        job_folder.new(template, tmp_path / "job", [*PRIVATE, *settings], **arguments)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("settings", "patients"),
    [
        (["rounds=80"], None),
        (["training.local_steps=40"], None),
        (["privacy.target_epsilon=4"], None),
        (["privacy.delta=1e-7"], None),
        (["privacy.sites.a.sample_rate=0.6"], SIZES),
    ],
)
def test_noise_is_found_anew_when_what_it_was_found_for_changes(
    job: Path, tmp_path: Path, settings: list[str], patients: dict[str, int] | None
) -> None:
    old = job_folder.read_plan(job)
    plan = job_folder.new(job, tmp_path / "again", settings, patients=patients)
    assert plan.privacy is not None
    assert old.privacy is not None
    assert plan.privacy.target_epsilon is not None
    assert plan.privacy.noise_multiplier > old.privacy.noise_multiplier
    assert 0.99 * plan.privacy.target_epsilon < spent(plan, "a") <= plan.privacy.target_epsilon


def test_noise_stays_where_nothing_it_was_found_for_changes(job: Path, tmp_path: Path) -> None:
    edit(job, noise_multiplier=9.0)
    plan = job_folder.new(job, tmp_path / "again", ["seed=3", "name=other"])
    assert plan.privacy is not None
    assert plan.privacy.noise_multiplier == 9.0


def test_noise_of_ones_own_drops_the_target_it_was_not_found_for(job: Path, tmp_path: Path) -> None:
    plan = job_folder.new(job, tmp_path / "again", ["privacy.noise_multiplier=0.7"])
    assert plan.privacy is not None
    assert (plan.privacy.noise_multiplier, plan.privacy.target_epsilon) == (0.7, None)


# job check


def test_check_says_epsilon_noise_per_patient_a_word_and_how_many_more(job: Path) -> None:
    notes = found(job, "note")
    assert (
        "epsilon 7.998 at delta 1e-05 after 200 steps; noise per patient 0.00365: good" in notes["plan.privacy.sites.a"]
    )
    assert "noise per patient 0.0304: start plus grey levels" in notes["plan.privacy.sites.b"]
    privacy = job_folder.read_plan(job).privacy
    assert privacy is not None
    assert (
        f"'outline only' needs {math.ceil(privacy.noise_multiplier / 0.25 / 0.025)} patients"
        in notes["plan.privacy.sites.b"]
    )
    assert "noise per patient 0.00461: good" in notes["average of the sites"]


def test_check_warns_above_a_twentieth_at_a_site_and_in_the_average(template: Path, tmp_path: Path) -> None:
    job_folder.new(template, tmp_path / "job", PRIVATE, patients={"large": 4000, "small": 40})
    warnings = found(tmp_path / "job", "warning")
    assert "plan.privacy.sites.small" in warnings
    assert "plan.privacy.sites.large" not in warnings
    assert "average of the sites" not in warnings
    job_folder.new(template, tmp_path / "two", [*PRIVATE, "weighting=uniform"], patients={"large": 4000, "small": 40})
    warnings = found(tmp_path / "two", "warning")
    assert "hardly worth the budget" in warnings["average of the sites"]
    assert "with weighting=declared it would be 0.0032" in warnings["average of the sites"]


def test_check_recomputes_epsilon_and_refuses_more_than_the_target(job: Path) -> None:
    edit(job, noise_multiplier=2.0)
    errors = found(job)
    assert set(errors) == {"plan.privacy.sites.a", "plan.privacy.sites.b"}
    assert "exceeds target_epsilon 8" in errors["plan.privacy.sites.a"]
    edit(job, target_epsilon=None)
    assert found(job) == {}


def test_check_refuses_noise_that_cannot_be_accounted_for(job: Path) -> None:
    edit(job, noise_multiplier=1e-3)
    assert "cannot be accounted for" in found(job)["plan.privacy.sites.a"]


def test_check_holds_delta_against_every_declared_size(job: Path) -> None:
    edit(job, delta=1e-4)
    assert found(job) == {}
    warnings = found(job, "warning")
    assert "take at most 4e-05, a tenth of 1 / 2500" in warnings["plan.privacy.sites.a"]
    assert "plan.privacy.sites.b" not in warnings
    edit(job, delta=1.0 / 300)
    assert set(found(job)) == {"plan.privacy.sites.a", "plan.privacy.sites.b"}


@pytest.mark.parametrize("patients", [3, 7, 30, 600, 2999])
def test_a_delta_as_advised_is_taken(template: Path, tmp_path: Path, patients: int) -> None:
    job_folder.new(template, tmp_path / "job", [*PRIVATE, "privacy.delta=0.01"], patients={"a": 10})
    edit(tmp_path / "job", sites={"a": {"sample_rate": 0.25, "expected_patients_per_step": 0.25 * patients}})
    [advice] = [f.text for f in job_check.check(tmp_path / "job") if "take at most" in f.text] or [None]
    if advice is not None:
        edit(tmp_path / "job", delta=float(advice.split("take at most ")[1].split(",")[0]))
    assert not any("take at most" in f.text for f in job_check.check(tmp_path / "job"))


def test_check_wants_sampling_for_every_site_that_is_named(job: Path, tmp_path: Path) -> None:
    assert "the plan has no sampling for it" in found(job, stores={"c": tmp_path})["site c"]
    meta = json.loads((job / META).read_text())
    meta["deploy_map"]["app_client"] = ["a", "x"]
    (job / META).write_text(json.dumps(meta))
    assert "site x" in found(job)
    assert found(job, "warning")["plan.privacy.sites.b"] == "no site of the job has this name"


@pytest.mark.parametrize(("of_plan", "of_store"), [("patient", "image"), ("image", "patient")])
def test_check_wants_the_stores_unit(job: Path, tmp_path: Path, of_plan: str, of_store: str) -> None:
    hu, index = np.zeros((4, 64, 64), np.int16), np.arange(4)
    write_store(tmp_path / "store", hu, index, splits=["train"] * 4, unit=of_store)
    edit(job, unit=of_plan)
    stores = {"a": tmp_path / "store", "b": tmp_path / "store"}
    text = found(job, stores=stores)["--site a"]
    assert f"store's unit is the {of_store}, plan.privacy.unit is the {of_plan}" in text
    edit(job, unit=of_store)
    assert found(job, stores=stores) == {}


def test_check_names_the_weaker_unit_and_a_start_from_scratch(job: Path) -> None:
    warnings = found(job, "warning")
    assert "ragged" in warnings["plan.privacy.from_scratch"]
    assert "plan.privacy.unit" not in warnings
    edit(job, unit="image")
    assert "single image, which is weaker" in found(job, "warning")["plan.privacy.unit"]


def test_a_plan_without_privacy_hears_nothing_of_it(template: Path, tmp_path: Path) -> None:
    job_folder.new(template, tmp_path / "job", ["min_responses=1"], ["a"])
    findings: list[Finding] = job_check.check(tmp_path / "job")
    assert not any("privacy" in f.where + f.text for f in findings)


# The command line


def run(*arguments: object) -> tuple[int, str]:
    result = CliRunner().invoke(app, [str(a) for a in arguments], env={"COLUMNS": "300"})
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, result.output


def test_the_command_takes_sizes_and_check_prints_the_words(template: Path, tmp_path: Path) -> None:
    private = [word for setting in PRIVATE for word in ("--set", setting)]
    code, output = run("new", template, tmp_path / "job", *private, "--patients", "a=2500, b=300", "--sample-rate", 0.2)
    assert code == 0, output
    code, output = run("check", tmp_path / "job")
    assert code == 0, output
    for word in ("epsilon 7.9", "noise per patient", "good", "start plus grey levels", "patients"):
        assert word in output


@pytest.mark.parametrize("patients", ["a", "a=", "=5", "a=0", "a=-3", "a=1.5", "a=many", "a=5,a=6", "a=٣"])
def test_sizes_that_cannot_be_meant_are_one_line(template: Path, tmp_path: Path, patients: str) -> None:
    code, output = run("new", template, tmp_path / "job", "--patients", patients)
    assert code == 1
    assert output.startswith("error: --patients")
    assert not (tmp_path / "job").exists()
