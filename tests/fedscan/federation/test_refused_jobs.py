"""Names of jobs and archives that lead elsewhere; in real processes in tests/integration/test_altered_jobs.py."""

from __future__ import annotations

import contextlib
import io
import json
import stat
import zipfile
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from nvflare.apis.fl_constant import FLContextKey
from nvflare.apis.fl_context import FLContext
from nvflare.apis.workspace import Workspace
from nvflare.private.admin_defs import Message, MsgHeader, ReturnCode
from nvflare.private.defs import RequestHeader
from nvflare.private.fed.client.training_cmds import DeployProcessor
from nvflare.private.fed.server.job_meta_validator import JobMetaValidator
from nvflare.private.fed.server.job_runner import JobRunner

from fedscan.federation import refused_jobs

JOB = "0f0e0d0c-1111-2222-3333-444455556666"
NAMES = ("startup", "local", "../elsewhere", "/elsewhere", "..", f"{JOB}/../local", f"{JOB}\n", "")


@pytest.fixture
def noted() -> Iterator[list[tuple[str, str]]]:
    found: list[tuple[str, str]] = []
    refused_jobs.watch(lambda why, job: found.append((why, job)))
    yield found
    refused_jobs.stop_watching()


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    for name in ("startup", "local"):
        (tmp_path / name).mkdir()
    return Workspace(str(tmp_path), "hosp-a")


@pytest.mark.parametrize("name", NAMES)
def test_a_name_that_is_none_leads_to_no_folder(workspace: Workspace, noted: list[Any], name: str) -> None:
    with pytest.raises(ValueError, match="random identity"):
        workspace.get_run_dir(name)
    assert noted == [(refused_jobs.NO_NAME, name)]
    assert workspace.get_run_dir(JOB) == str(Path(workspace.root_dir) / JOB)


def test_without_it_nvflare_takes_a_kits_own_folder_for_a_jobs(workspace: Workspace) -> None:
    """Why it is there."""
    assert workspace.get_run_dir("startup") == workspace.get_startup_kit_dir()


def test_nothing_is_deployed_under_such_a_name(noted: list[Any]) -> None:
    order = Message("train.deploy", b"")
    order.set_header(RequestHeader.JOB_ID, "local")
    reply = DeployProcessor().process(order, None)
    assert reply.get_header(MsgHeader.RETURN_CODE) == ReturnCode.ERROR
    assert noted == [(refused_jobs.NO_NAME, "local")]


def archive(change: Any = lambda meta, opened: None) -> bytes:
    """A job that NVFlare's server takes."""
    buffer = io.BytesIO()
    meta: dict[str, Any] = {"deploy_map": {"app_server": ["server"], "app_client": ["hosp-a"]}, "min_clients": 1}
    with zipfile.ZipFile(buffer, "w") as opened:
        change(meta, opened)
        opened.writestr("job/meta.json", json.dumps(meta))
        for app, kind in (("app_server", "server"), ("app_client", "client")):
            opened.writestr(f"job/{app}/config/", "")
            opened.writestr(f"job/{app}/config/config_fed_{kind}.json", '{"format_version": 2}')
    return buffer.getvalue()


def submitted(data: bytes, folder: Path) -> tuple[bool, str]:
    path = folder / "job.zip"
    path.write_bytes(data)
    valid, error, _ = JobMetaValidator().validate("job", str(path))
    return valid, error


def a_link(_: Any, opened: zipfile.ZipFile) -> None:
    entry = zipfile.ZipInfo("job/app_client/config/more")
    entry.external_attr = (stat.S_IFLNK | 0o777) << 16
    opened.writestr(entry, "/etc")


def test_a_job_as_it_should_be_is_taken(noted: list[Any], tmp_path: Path) -> None:
    assert submitted(archive(), tmp_path) == (True, "")
    assert noted == []


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda _, opened: opened.writestr("job/../../planted", "x"), refused_jobs.NO_ARCHIVE),
        (lambda _, opened: opened.writestr("/planted", "x"), refused_jobs.NO_ARCHIVE),
        (lambda _, opened: opened.writestr("job\\..\\planted", "x"), refused_jobs.NO_ARCHIVE),
        (a_link, refused_jobs.NO_ARCHIVE),
        (lambda meta, _: meta.update(job_id="local"), refused_jobs.NAMED),
        (lambda meta, _: meta.update(job_id=JOB), refused_jobs.NAMED),
        (lambda meta, _: meta["deploy_map"].update({"../app": ["hosp-b"]}), "invalid job app name"),
    ],
)
def test_what_is_refused_at_the_server_and_noted(change: Any, why: str, noted: list[Any], tmp_path: Path) -> None:
    valid, error = submitted(archive(change), tmp_path)
    assert not valid
    assert why in error
    (reason, _) = noted.pop()
    assert reason == f"a submitted job: {error}"
    assert noted == []


def test_what_is_no_archive_is_noted_too(noted: list[Any], tmp_path: Path) -> None:
    with pytest.raises(zipfile.BadZipFile):
        submitted(b"garbage", tmp_path)
    assert noted == [("a submitted job cannot be read: BadZipFile", "")]


@pytest.mark.parametrize("fails", [False, True])
def test_who_did_not_take_a_job_is_noted_by_its_id(
    noted: list[Any], monkeypatch: pytest.MonkeyPatch, fails: bool
) -> None:
    context = FLContext()

    def send_out(self: object, job: object, sites: object, fl_ctx: FLContext) -> str:
        detail = ["server: OK", "hosp-a: OK", "hosp-b: NVFLARE_ERROR: refused by policy"]
        fl_ctx.set_prop(FLContextKey.JOB_DEPLOY_DETAIL, detail)
        if fails:
            raise RuntimeError("deploy failure")
        return "sent"

    monkeypatch.setattr(refused_jobs, "_send_out", send_out)
    runner = JobRunner.__new__(JobRunner)
    with pytest.raises(RuntimeError) if fails else contextlib.nullcontext():
        assert runner._deploy_job(SimpleNamespace(job_id=JOB), {}, context) == "sent"
    assert noted == [("hosp-b: NVFLARE_ERROR: refused by policy", JOB)]
