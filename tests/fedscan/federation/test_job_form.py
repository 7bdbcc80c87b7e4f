"""Jobs made to be read in two ways, to name more than they may, or to stop who checks them: all are refused."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fedscan.federation import job_check, job_folder, job_form
from fedscan.federation.job_folder import CLIENT_PATH, META, SERVER_PATH
from fedscan.federation.local_run import RunFile

EXECUTOR = "fedscan.federation.job.executor.DiffusionExecutor"
Config = dict[str, Any]


@pytest.fixture
def job(repository: Path, tmp_path: Path) -> Path:
    job_folder.new(repository / "jobs" / "ct_fedavg", tmp_path / "job", ["min_responses=1"], ["a", "b"])
    return tmp_path / "job"


def errors(job: Path) -> str:
    return "\n".join(f"{f.where}: {f.text}" for f in job_check.check(job) if f.level == "error")


def test_a_fresh_job_is_of_the_form(job: Path) -> None:
    assert errors(job) == ""


@pytest.mark.parametrize(
    ("path", "change", "word"),
    [
        (CLIENT_PATH, lambda c: c["executors"][0]["executor"].update(args={"x": 1}), "executors must be"),
        (CLIENT_PATH, lambda c: c["executors"][0]["executor"].update(path=["os.system"]), "executors must be"),
        (CLIENT_PATH, lambda c: c["executors"][0]["executor"].update(path=EXECUTOR + "2"), "executors must be"),
        (CLIENT_PATH, lambda c: c["components"].append({"id": "x", "class": "os.system"}), "components must be"),
        (CLIENT_PATH, lambda c: c.update(executors=[]), "executors must be"),
        (CLIENT_PATH, lambda c: c.update(format_version=2.0), "format_version must be"),
        (CLIENT_PATH, lambda c: c.update(handlers=[{"id": "x", "path": EXECUTOR}]), "no place for 'handlers'"),
        (SERVER_PATH, lambda c: c.update(components=[]), "components must be"),
        (SERVER_PATH, lambda c: c["workflows"][0]["args"].update(num_rounds=9), "workflows must be"),
        (META, lambda c: c["deploy_map"].update(app_client=5), "deploy_map must send"),
        (META, lambda c: c["deploy_map"].update(app_client="ab"), "deploy_map must send"),
        (META, lambda c: c["deploy_map"].update(app_client=[{"a": 1}]), "deploy_map must send"),
        (META, lambda c: c["deploy_map"].update(app_client=["../../x"]), "'../../x' is no site name"),
        (META, lambda c: c["deploy_map"].update(app_client=["server"]), "'server' is no site name"),
        (META, lambda c: c.update(min_clients=True), "min_clients must be"),
        (META, lambda c: c.update(scope="open"), "no place for 'scope'"),
        (META, lambda c: c.update(launcher_spec={"a": {"docker": {"image": "x"}}}), "no place for 'launcher_spec'"),
        (META, lambda c: c.update(resource_spec={"a": {"num_of_gpus": 9}}), "resource_spec must be empty"),
    ],
)
def test_more_or_less_than_the_form_is_refused(
    job: Path, path: Path, change: Callable[[Config], object], word: str
) -> None:
    config = json.loads((job / path).read_text())
    change(config)
    (job / path).write_text(json.dumps(config))
    assert word in errors(job)


@pytest.mark.parametrize(
    ("change", "word"),
    [
        (lambda text: text.replace('"path": "fed', '"path": "os.system", "path": "fed'), "'path' is there twice"),
        (lambda text: text.replace('"rounds": 20', '"rounds": 9, "rounds": 20'), "'rounds' is there twice"),
        (lambda text: text.rstrip()[:-1] + ', "x": ' + "[" * 90000 + "]" * 90000 + "}", "nested too deeply"),
        (lambda text: text + " " * (1 << 20), "longer than"),
    ],
)
def test_a_file_that_can_be_read_in_two_ways_or_none_is_refused(
    job: Path, change: Callable[[str], str], word: str
) -> None:
    (job / CLIENT_PATH).write_text(change((job / CLIENT_PATH).read_text()))
    assert word in errors(job)


def test_only_plain_files_of_known_names_lie_in_a_job(job: Path) -> None:
    (job / "app_client" / ".__nvfl_evil.py").write_text("")
    os.mkfifo(job / "pipe")
    (job / META).unlink()
    os.mkfifo(job / META)
    text = errors(job)
    for word in (".__nvfl_evil.py", "pipe: does not belong", "meta.json: is not JSON: it is no plain file"):
        assert word in text


def test_a_name_with_a_line_break_is_no_site() -> None:
    assert job_folder.site_name_findings(["a\n"])


@pytest.mark.parametrize(
    "change",
    [
        {"stores": {"../../x": "s"}},
        {"run_id": "../x"},
        {"threads": 0},
        {"stores": {}},
        {"more": 1},
        {"site_files": {"a": "s"}},
    ],
)
def test_a_changed_run_file_is_refused(change: dict[str, object]) -> None:
    good = {"run_id": "0" * 32, "plan_digest": "0" * 64, "stores": {"a": "store"}, "threads": 1}
    RunFile.model_validate_json(json.dumps(good))
    with pytest.raises(ValueError, match="validation error"):
        RunFile.model_validate_json(json.dumps(good | change))


def test_many_names_are_looked_through_in_their_own_time(tmp_path: Path) -> None:
    """Compared each with each, the names that fit into a job's file would take minutes."""
    path = tmp_path / "config_fed_client.json"
    path.write_text(json.dumps({str(number): 0 for number in range(80_000)}))
    assert path.stat().st_size < job_form.MAX_FILE_BYTES
    began = time.process_time()
    job_form.parse(path)
    path.write_text(path.read_text()[:-1] + ', "7": 0}')
    with pytest.raises(ValueError, match="'7' is there twice"):
        job_form.parse(path)
    assert time.process_time() - began < 5.0


@pytest.mark.parametrize(("sites", "interval_s"), [(2, 0.05), (30, 0.5), (200, 2.0)])
def test_many_sites_ask_for_work_less_often(repository: Path, tmp_path: Path, sites: int, interval_s: float) -> None:
    names = [f"hosp-{number}" for number in range(sites)]
    job_folder.new(repository / "jobs" / "ct_fedavg", tmp_path / "job", ["min_responses=1"], names)
    path = tmp_path / "job" / SERVER_PATH
    config = json.loads(path.read_text())
    assert config["server"] == {"task_request_interval": interval_s}
    assert errors(tmp_path / "job") == ""
    config["server"]["task_request_interval"] = interval_s / 2
    path.write_text(json.dumps(config))
    assert "server must be" in errors(tmp_path / "job")
