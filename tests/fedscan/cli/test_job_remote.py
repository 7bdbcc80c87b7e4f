"""`fedscan job ... --kit` and `fedscan server` before a server is asked: what is wrong is one line and status 1."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from fedscan.federation import job_check, job_folder
from fedscan.federation.federation_file import FederationFile

Command = Callable[..., tuple[int, str]]

JOB_ID = "5829b53f-850c-4d38-8060-ae71cef873ff"


@pytest.fixture
def job(repository: Path, tmp_path: Path) -> Path:
    job_folder.new(repository / "jobs" / "ct_fedavg", tmp_path / "job", ["min_responses=1"], ["a", "b"])
    return tmp_path / "job"


@pytest.fixture
def lead(provisioned: Path) -> Path:
    return provisioned / "lead@fedscan.local"


def test_submit_wants_a_kit_a_named_site_and_an_admins_kit(
    job: Path, lead: Path, provisioned: Path, repository: Path, tmp_path: Path, command: Command
) -> None:
    code, said = command("job", "submit", job)
    assert (code, "submit needs --kit" in said) == (1, True)
    code, said = command("job", "submit", job, "--kit", provisioned / "hosp-a")
    assert (code, "is no admin kit" in said) == (1, True)
    nowhere = tmp_path / "nowhere"
    job_folder.new(repository / "jobs" / "ct_fedavg", nowhere)
    code, said = command("job", "submit", nowhere, "--kit", lead)
    assert (code, "names no site" in said) == (1, True)
    code, said = command("job", "submit", repository / "jobs" / "ct_fedavg", "--kit", lead)
    assert (code, "is a template" in said) == (1, True)


def test_kit_and_site_exclude_each_other(job: Path, lead: Path, tmp_path: Path, command: Command) -> None:
    code, said = command("job", "run", job, "--kit", lead, "--site", "a=x", "--out", tmp_path / "RUN")
    assert (code, "exclude each other" in said) == (1, True)
    assert not (tmp_path / "RUN").exists()


def test_a_jobs_id_needs_a_kit_and_a_place(lead: Path, tmp_path: Path, command: Command) -> None:
    assert "needs --kit" in command("job", "watch", JOB_ID)[1]
    assert "neither a run's folder nor a job's id" in command("job", "download", "nonsense", "--kit", lead)[1]
    assert "--out RUN is missing" in command("job", "download", JOB_ID, "--kit", lead)[1]


def test_a_run_on_this_machine_has_nothing_to_download(tmp_path: Path, command: Command) -> None:
    FederationFile(run_id="a" * 32, plan_digest="b" * 64).write(tmp_path)
    code, said = command("job", "download", tmp_path)
    assert (code, "belongs to no provisioned federation" in said) == (1, True)
    code, said = command("job", "watch", tmp_path)
    assert (code, "holds no run" in said) == (1, True)


def test_a_changed_plan_is_a_new_run(job: Path, lead: Path, tmp_path: Path, command: Command) -> None:
    run = tmp_path / "RUN"
    run.mkdir()
    shutil.copytree(job, run / "job")
    FederationFile(kit=lead, user="lead@fedscan.local", project="p", run_id="a" * 32, plan_digest="b" * 64).write(run)
    code, said = command("job", "resume", run)
    assert (code, "a changed plan is a new run" in said) == (1, True)


def test_renew_makes_a_new_submission_of_the_same_plan(job: Path, command: Command) -> None:
    before, plan = job_folder.read_submission(job), job_folder.read_plan(job)
    code, said = command("job", "renew", job, "--json")
    told = json.loads(said)
    after = job_folder.read_submission(job)
    assert code == 0
    assert (told["nonce"], told["run_id"], told["plan_digest"]) == (after.nonce, after.run_id, plan.digest)
    assert not {before.nonce, before.run_id} & {after.nonce, after.run_id}
    assert job_folder.read_plan(job) == plan
    assert [found for found in job_check.check(job) if found.level == "error"] == []


def test_renew_cures_an_expired_job_and_makes_no_job_of_a_template(
    job: Path, repository: Path, tmp_path: Path, command: Command
) -> None:
    for path in (job_folder.CLIENT_PATH, job_folder.SERVER_PATH):
        config = json.loads((job / path).read_text())
        config["submission"]["expires"] = "2020-01-01T00:00:00+00:00"
        (job / path).write_text(json.dumps(config))
    assert "fedscan job renew" in command("job", "check", job)[1]
    assert command("job", "renew", job)[0] == 0
    assert command("job", "check", job)[0] == 0
    template = tmp_path / "template"
    shutil.copytree(repository / "jobs" / "ct_fedavg", template)
    code, said = command("job", "renew", template)
    assert (code, "is a template" in said) == (1, True)
    assert "submission" not in json.loads((template / job_folder.CLIENT_PATH).read_text())


def test_the_centralised_baseline_is_a_job_for_one_site(repository: Path, tmp_path: Path, command: Command) -> None:
    template = repository / "jobs" / "ct_centralised_baseline"
    assert command("job", "new", template, tmp_path / "one", "--sites", "pool")[0] == 0
    code, said = command("job", "check", tmp_path / "one")
    assert (code, "error" in said) == (0, False)
    baseline, federated = (
        job_folder.read_plan(template).model_dump() | {"name": "", "min_responses": 0},
        job_folder.read_plan(repository / "jobs" / "ct_fedavg").model_dump() | {"name": "", "min_responses": 0},
    )
    assert baseline == federated
    assert f"| `{template.name}` |" in (repository / "jobs" / "README.md").read_text()


def test_the_operators_commands(provisioned: Path, tmp_path: Path, command: Command) -> None:
    kit = tmp_path / "server"
    shutil.copytree(provisioned / "localhost", kit)
    code, said = command("server", "places", "--kit", kit, "--folder", tmp_path / "srv", "--json")
    assert (code, json.loads(said)["shelf"]) == (0, str(tmp_path / "srv" / "shelf"))
    start = next((Path(__file__).parents[3] / "custom/fedscan/training/shelf").glob("*.safetensors"))
    code, said = command("server", "add-model", start, "--kit", kit)
    assert (code, said) == (0, f"{job_folder.file_sha256(start)}: on the shelf now\n")
    code, said = command("server", "add-model", Path(__file__), "--kit", kit)
    assert (code, "no model of ours" in said) == (1, True)
    assert "no server kit" in command("server", "places", "--kit", provisioned / "hosp-a")[1]
