"""Jobs are made from templates, hold three JSON files and nothing else, and are judged whole before they run."""

from __future__ import annotations

import importlib
import inspect
import json
import pkgutil
import shutil
from pathlib import Path

import numpy as np
import pytest

import fedscan.federation.job as job_package
from ctslices.store import write_store
from fedscan.federation import job_check, job_folder
from fedscan.federation.findings import JobError
from fedscan.federation.job_folder import CLIENT_PATH, META, SERVER_PATH
from fedscan.plan import Plan, Submission
from fedscan.training.model_file import save_model
from fedscan.training.weights import initial_weights


@pytest.fixture
def template(repository: Path) -> Path:
    return repository / "jobs" / "ct_fedavg"


@pytest.fixture
def job(template: Path, tmp_path: Path) -> Path:
    job_folder.new(template, tmp_path / "job", ["rounds=3"], ["a", "b"])
    return tmp_path / "job"


def edit(path: Path, **changes: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def errors(job: Path, **kwargs: object) -> list[str]:
    found = job_check.check(job, **kwargs)  # type: ignore[arg-type]
    return [f"{f.where}: {f.text}" for f in found if f.level == "error"]


def test_new_resolves_the_plan_and_writes_it_with_a_submission_into_both_apps(job: Path) -> None:
    client, server = (json.loads((job / p).read_text()) for p in (CLIENT_PATH, SERVER_PATH))
    assert client["plan"]["rounds"] == 3
    assert client["plan"]["model"]["unet"]["channels"] == [32, 64, 64]
    assert client["plan"] == server["plan"]
    assert client["submission"] == server["submission"]
    meta = json.loads((job / META).read_text())
    assert meta["min_clients"] == client["plan"]["min_responses"]
    assert meta["deploy_map"] == {"app_server": ["server"], "app_client": ["a", "b"]}
    assert errors(job) == []


def test_settings_reach_parts_and_epochs_take_the_place_of_steps(template: Path, tmp_path: Path) -> None:
    settings = ["training.local_steps=7", "model.preset=tiny", 'model.classes=["x"]', "window=lung"]
    plan = job_folder.new(template, tmp_path / "job", settings)
    assert (plan.training.local_steps, plan.training.local_epochs) == (7, None)
    assert (plan.model.preset, plan.model.classes, plan.window) == ("tiny", ("x",), "lung")
    assert plan.model.arguments.channels == (16, 32, 32)


@pytest.mark.parametrize(
    ("settings", "word"),
    [
        (["roundz=3"], "plan.roundz"),
        (["rounds=x"], "plan.rounds"),
        (["rounds"], "must be field=value"),
        (["rounds.deep=3"], "is a value"),
    ],
)
def test_a_bad_setting_makes_no_folder(template: Path, tmp_path: Path, settings: list[str], word: str) -> None:
    with pytest.raises(JobError, match=word):
        job_folder.new(template, tmp_path / "job", settings)
    assert not (tmp_path / "job").exists()


def test_new_overwrites_nothing(template: Path, job: Path) -> None:
    before = (job / META).read_bytes()
    with pytest.raises(JobError, match="exists already"):
        job_folder.new(template, job)
    assert (job / META).read_bytes() == before


@pytest.mark.parametrize("sites", [["server"], ["a/b"], ["../x"], [""], ["a", "a"]])
def test_bad_site_names_are_refused(template: Path, tmp_path: Path, sites: list[str]) -> None:
    with pytest.raises(JobError, match="sites"):
        job_folder.new(template, tmp_path / "job", (), sites)


def test_check_says_everything_at_once(job: Path) -> None:
    client = json.loads((job / CLIENT_PATH).read_text())
    client["plan"]["rounds"] = 0
    client["plan"]["surprise"] = "{WORKSPACE}"
    client["executors"][0]["executor"]["path"] = "nvflare.app_common.np.np_trainer.NPTrainer"
    client["components"] = [{"id": "x", "path": "os.system"}]
    (job / CLIENT_PATH).write_text(json.dumps(client))
    edit(job / META, min_clients=9, deploy_map={"app": ["@ALL"]})
    (job / "app_client" / "custom").mkdir()
    (job / "app_client" / "custom" / "evil.py").write_text("")
    text = "\n".join(errors(job))
    for word in ("plan.rounds", "plan.surprise", "{WORKSPACE}", "NPTrainer", "os.system", "custom", "evil.py"):
        assert word in text


def test_min_clients_and_deploy_map_are_the_plans(job: Path) -> None:
    edit(job / META, min_clients=9, deploy_map={"app": ["@ALL"]})
    text = "\n".join(errors(job))
    assert "min_clients must be the plan's min_responses=2, got 9" in text
    assert "deploy_map" in text


def test_a_template_is_not_a_job(template: Path) -> None:
    assert any("no submission" in text for text in errors(template))


def test_different_plans_in_the_two_apps_are_found(job: Path) -> None:
    server = json.loads((job / SERVER_PATH).read_text())
    server["plan"]["rounds"] = 4
    (job / SERVER_PATH).write_text(json.dumps(server))
    assert any("different plans" in text for text in errors(job))


def test_an_expired_submission_is_found(job: Path) -> None:
    old = Submission.new(valid_days=-1).model_dump(mode="json")
    for path in (CLIENT_PATH, SERVER_PATH):
        edit(job / path, submission=old)
    assert any("expired" in text for text in errors(job))


def test_sites_and_counts_must_fit(job: Path, tmp_path: Path) -> None:
    text = "\n".join(errors(job, stores={"a": tmp_path / "none", "c": tmp_path / "none"}))
    assert "--site b: the job names this site" in text
    assert "--site c: the job is for a, b only" in text


def test_a_run_copies_three_files_and_nothing_else(job: Path, tmp_path: Path) -> None:
    (job / "notes.txt").write_text("mine")
    submission = Submission.new()
    job_folder.copy_for_run(job, tmp_path / "copy", ["x", "y"], submission)
    files = sorted(p.relative_to(tmp_path / "copy") for p in (tmp_path / "copy").rglob("*") if p.is_file())
    assert files == sorted([Path(META), CLIENT_PATH, SERVER_PATH])
    assert json.loads((tmp_path / "copy" / CLIENT_PATH).read_text())["submission"]["nonce"] == submission.nonce
    assert job_folder.read_plan(tmp_path / "copy").digest == job_folder.read_plan(job).digest


def test_the_job_package_holds_the_classes_that_jobs_name_and_nothing_else(repository: Path) -> None:
    """The hospital's allow-list is the one prefix of this package, so all that lies there can be named by a job."""
    own = set()
    for module in pkgutil.iter_modules(job_package.__path__, job_package.__name__ + "."):
        for name, member in vars(importlib.import_module(module.name)).items():
            if getattr(member, "__module__", None) == module.name and not name.startswith("__"):
                assert inspect.isclass(member) or name.startswith("_"), f"{module.name}.{name} is no class"
                if inspect.isclass(member):
                    own.add(f"{module.name}.{name}")
    named = set()
    for config in (repository / "jobs").rglob("config_fed_*.json"):
        named |= set(job_check.class_paths(json.loads(config.read_text())))
    assert own == named


def test_no_job_ships_code(repository: Path) -> None:
    assert [
        p for p in (repository / "jobs").rglob("*") if p.name == "custom" or p.suffix in {".py", ".pt", ".pkl"}
    ] == []


def test_init_is_remembered_beside_the_job_and_checked(template: Path, tmp_path: Path) -> None:
    model = tmp_path / "model.safetensors"
    model.write_bytes(b"not a model")
    with pytest.raises(JobError, match="is no model of ours"):
        job_folder.new(template, tmp_path / "job", init=model)
    assert not (tmp_path / "job").exists()
    with pytest.raises(JobError, match="cannot be read"):
        job_folder.new(template, tmp_path / "job", init=tmp_path / "absent")
    source = Plan()
    save_model(model, initial_weights(source), source, {})
    plan = job_folder.new(template, tmp_path / "job", init=model)
    assert plan.init_sha256 == job_folder.file_sha256(model)
    assert job_folder.remembered_init(tmp_path / "job") == model.resolve()
    assert errors(tmp_path / "job") == []
    model.write_bytes(b"another")
    assert any("the plan starts from" in text for text in errors(tmp_path / "job"))
    shutil.move(model, tmp_path / "gone")
    assert any("cannot be read" in text for text in errors(tmp_path / "job"))


def test_another_thing_than_a_job_is_one_finding(template: Path, tmp_path: Path) -> None:
    (tmp_path / "export").mkdir()
    (tmp_path / "export" / "scan.dcm").write_bytes(b"")
    for folder, text in (
        (tmp_path / "absent", "no folder that is there"),
        (tmp_path / "export", "is no job"),
        (template, "is a template"),
    ):
        [found] = errors(folder)
        assert text in found
        assert "job new" in found
    with pytest.raises(JobError, match="is no template"):
        job_folder.new(tmp_path / "absent", tmp_path / "job")


def test_one_store_under_two_names_is_a_warning(job: Path, tmp_path: Path) -> None:
    write_store(tmp_path / "store", np.zeros((2, 64, 64), np.int16), np.arange(2), splits=["train", "train"])
    stores = {"a": tmp_path / "store", "b": tmp_path / "job" / ".." / "store"}
    found = [f for f in job_check.check(job, stores) if f.level != "note"]
    assert [(f.level, f.where) for f in found] == [("warning", "stores")]
    assert "a, b have one and the same store" in found[0].text


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        (["training.local_steps=3", "training.local_epochs=2"], "exclude each other"),
        (["model.classes=a,b"], "must be a JSON list"),
    ],
)
def test_settings_that_cannot_be_meant(template: Path, tmp_path: Path, settings: list[str], text: str) -> None:
    with pytest.raises(JobError, match=text):
        job_folder.new(template, tmp_path / "job", settings)


def test_a_plan_of_another_version_is_told_what_to_do(job: Path) -> None:
    for relative in (CLIENT_PATH, SERVER_PATH):
        config = json.loads((job / relative).read_text())
        edit(job / relative, plan=config["plan"] | {"plan_version": 1})
    found = errors(job)
    assert found
    assert all("make the job anew with `fedscan job new`" in text for text in found)
