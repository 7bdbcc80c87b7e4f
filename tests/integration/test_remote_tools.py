"""NVFlare's own tools on our job folders as they are: `nvflare job`, the admin console; templates are refused."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from fedscan.federation import federation_file, job_folder, kits, remote_run, verdict
from fedscan.federation.messages import REFUSED_BY_POLICY
from fedscan.training import model_file

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

SITES = ("hosp-a", "hosp-b")
BIN = Path(sys.executable).parent


@pytest.fixture(scope="module")
def federation(
    tmp_path_factory: pytest.TempPathFactory, make_site: Callable[..., Path], lab: Callable[..., Any]
) -> Iterator[Any]:
    folder = tmp_path_factory.mktemp("tools")
    sites = {name: make_site(folder, name, "require_dp=false") for name in SITES}
    with lab(folder, sites) as running:
        yield running


@pytest.fixture
def kit(federation: Any) -> Path:
    return Path(federation.federation.kit(kits.LEAD))


@pytest.fixture
def nvflare(tmp_path: Path, kit: Path) -> Callable[..., Any]:
    """The command itself, with a home of its own; the data of its JSON envelope."""
    home = tmp_path / "home"
    home.mkdir()
    environment = {**os.environ, "HOME": str(home), "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}"}

    def run(*arguments: str, check: bool = True) -> Any:
        command = [str(BIN / "nvflare"), "--format", "json", *arguments]
        done = subprocess.run(
            command, cwd=home, env=environment, capture_output=True, text=True, timeout=300, check=False
        )
        assert not check or done.returncode == 0, done.stdout + done.stderr
        print(" ".join(arguments[:2]), done.stdout.strip()[:2000], flush=True)
        return json.loads(done.stdout.strip().splitlines()[-1])

    run("config", "add", "lead", str(kit))
    run("config", "use", "lead")
    return run


@pytest.fixture
def make_job(repository: Path, tmp_path: Path) -> Callable[..., Path]:
    def make(*settings: str, name: str = "job") -> Path:
        plain = ["model.preset=tiny", "rounds=1", "training.local_steps=2", "training.batch_size=4", "min_responses=2"]
        out = tmp_path / name
        job_folder.new(repository / "jobs" / "ct_fedavg", out, [*plain, *settings], SITES)
        return out

    return make


def test_nvflares_own_command_submits_monitors_and_downloads_a_job_as_it_is(
    nvflare: Callable[..., Any], make_job: Callable[..., Path], kit: Path, tmp_path: Path
) -> None:
    job_id = nvflare("job", "submit", "-j", str(make_job()))["data"]["job_id"]
    ended = nvflare("job", "monitor", job_id, "--timeout", "280", "--interval", "1")
    assert "COMPLETED" in json.dumps(ended)
    nvflare("job", "download", job_id, "-o", str(tmp_path / "theirs"))
    (results,) = (path.parent for path in (tmp_path / "theirs").rglob("verdict.json"))
    assert verdict.read(results / "verdict.json").good  # type: ignore[union-attr]
    assert model_file.load_model(results / "model.safetensors").provenance["rounds_done"] == 1
    said: list[str] = []
    judged = remote_run.adopt(job_id, kit, tmp_path / "RUN", lambda progress: said.append(progress.text))
    assert judged.good
    assert judged.nvflare_status == "FINISHED:COMPLETED"
    assert federation_file.read(tmp_path / "RUN").jobs == (job_id,)  # type: ignore[union-attr]


def test_nvflares_own_command_aborts(nvflare: Callable[..., Any], make_job: Callable[..., Path], kit: Path) -> None:
    submitted = nvflare("job", "submit", "-j", str(make_job("rounds=200")))
    job_id = submitted["data"]["job_id"]
    wait(lambda: nvflare("job", "meta", job_id), "RUNNING")
    nvflare("job", "abort", job_id, "--force")
    wait(lambda: nvflare("job", "meta", job_id), "FINISHED:ABORTED")


def test_a_job_is_taken_once_and_renewed_again(
    nvflare: Callable[..., Any], make_job: Callable[..., Path], federation: Any
) -> None:
    job = make_job()
    assert federation.run(job)["status"] == "FINISHED:COMPLETED"
    again = federation.run(job)
    assert again["status"] == "FINISHED:FAILED_TO_RUN"
    assert any(REFUSED_BY_POLICY in line for line in again["job_deploy_detail"])
    command = [str(BIN / "fedscan"), "job", "renew", str(job)]
    subprocess.run(command, check=True, capture_output=True, timeout=120)
    assert federation.run(job)["status"] == "FINISHED:COMPLETED"


def test_a_template_is_refused_by_every_site(repository: Path, federation: Any, tmp_path: Path) -> None:
    """As it lies in jobs/, with nothing but the sites named in it."""
    job = tmp_path / "template"
    shutil.copytree(repository / "jobs" / "ct_fedavg", job)
    meta = json.loads((job / "meta.json").read_text())
    meta["deploy_map"]["app_client"] = list(SITES)
    (job / "meta.json").write_text(json.dumps(meta))
    ended = federation.run(job)
    assert ended["status"] == "FINISHED:FAILED_TO_RUN"
    assert sum(REFUSED_BY_POLICY in line for line in ended["job_deploy_detail"]) == len(SITES)
    assert "submission" in federation.reasons("hosp-a")[-1]


def test_the_admin_console_submits_lists_and_downloads(
    make_job: Callable[..., Path], kit: Path, federation: Any, tmp_path: Path
) -> None:
    job = make_job(name="console-job")
    (kit / "transfer").mkdir(exist_ok=True)
    shutil.copytree(job, kit / "transfer" / "console-job")
    said = console(kit, "submit_job console-job", "list_jobs", "bye")
    assert "Submitted job" in said, said
    job_id = said.split("Submitted job: ")[1].split()[0]
    assert federation.wait(job_id)["status"] == "FINISHED:COMPLETED"
    said = console(kit, f"download_job {job_id}", "bye")
    assert list((kit / "transfer" / job_id).rglob("model.safetensors")), said


def console(kit: Path, *commands: str) -> str:
    """The kit's own fl_admin.sh, with these lines typed in."""
    environment = {**os.environ, "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}"}
    typed = "\n".join([kits.LEAD, *commands]) + "\n"
    done = subprocess.run(
        [str(kit / "startup" / "fl_admin.sh")],
        input=typed,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    print(done.stdout, done.stderr, flush=True)
    return done.stdout


def wait(ask: Callable[[], Any], word: str, timeout_s: float = 240.0) -> None:
    deadline = time.monotonic() + timeout_s
    while word not in json.dumps(ask()):
        assert time.monotonic() < deadline, f"no {word} in {timeout_s:.0f} s"
        time.sleep(1.0)
