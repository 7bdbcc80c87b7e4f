"""Names and archives that lead out of their folder, from a lead and from a dishonest server: nothing is written there.

A job's name is a folder of the kit. NVFlare takes `startup` for one, too, empties that folder before it lays a job
there, and deletes it when the server says so.
"""

from __future__ import annotations

import json
import stat
import tempfile
import uuid
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from job_store import Files, JobStore, packed
from nvflare.fuel.hci.client import file_transfer
from nvflare.private.defs import RequestHeader
from server_orders import deploy, order
from watched import WatchedServer, WatchedSite

from fedscan.federation import job_folder, kits, refused_jobs
from fedscan.federation.admin import AdminError

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

SITE = "hosp-a"
PLANTED = "planted-4711"
ABSOLUTE = str(Path(tempfile.gettempdir()) / PLANTED)
NAMES = ("startup", "local", "../hosp-b", "..", f"../../{PLANTED}", ABSOLUTE, f"{uuid.UUID(int=1)}/../local")


@pytest.fixture(scope="module")
def running(
    tmp_path_factory: pytest.TempPathFactory, lab: Callable[..., Any], make_site: Callable[..., Path]
) -> Iterator[Any]:
    folder = tmp_path_factory.mktemp("leading")
    with lab(folder, {SITE: make_site(folder, SITE)}) as one:
        yield one


@pytest.fixture(scope="module")
def signed(
    running: Any, repository: Path, tmp_path_factory: pytest.TempPathFactory, private_settings: Callable[..., list[str]]
) -> tuple[Files, dict[str, Any]]:
    """A job that nobody altered and nobody has seen: its archive and meta."""
    job = tmp_path_factory.mktemp("job") / "job"
    job_folder.new(repository / "jobs" / "ct_fedavg", job, private_settings(SITE, settings=("rounds=1",)), [SITE])
    return JobStore(running.federation).taken(lambda: str(running.submit(job)))


@pytest.fixture(autouse=True)
def untouched(running: Any) -> Iterator[None]:
    """What lies in the kits stays as it is, and nothing is planted anywhere."""
    before = {name: kept(running, name) for name in (kits.SERVER, SITE)}
    yield
    assert {name: kept(running, name) for name in (kits.SERVER, SITE)} == before
    assert list(running.folder.rglob(f"{PLANTED}*")) == []
    assert not Path(ABSOLUTE).exists()
    assert list(running.folder.parent.glob(f"{PLANTED}*")) == []


def kept(running: Any, name: str) -> dict[str, bytes]:
    kit = running.federation.kit(name)
    folders = [kit / "startup", kit / "local", *([running.site(SITE).state / "nonces"] if name == SITE else [])]
    files = [path for folder in folders for path in folder.rglob("*") if path.is_file()]
    return {str(path): path.read_bytes() for path in files}


def app_of(files: Files) -> Files:
    """As it goes to sites."""
    start = f"job/{job_folder.APP_SITES}/"
    return {
        path.removeprefix(start): content for path, content in files.items() if path.startswith(start) and path != start
    }


def with_link(data: bytes, name: str) -> bytes:
    """The archive with a symbolic link that leads out of it."""
    path = Path(tempfile.mkdtemp()) / "archive"
    path.write_bytes(data)
    entry = zipfile.ZipInfo(name)
    entry.external_attr = (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(entry, str(Path(tempfile.gettempdir())))
    return path.read_bytes()


ARCHIVES: dict[str, Callable[[Files, str], bytes]] = {
    "a way up": lambda files, at: packed(files | {f"{at}../../{PLANTED}": b"x"}),
    "a way up from within": lambda files, at: packed(files | {f"{at}config/../../../../{PLANTED}": b"x"}),
    "an absolute name": lambda files, at: packed(files | {ABSOLUTE: b"x"}),
    "a way up in the other system's spelling": lambda files, at: packed(files | {f"{at}..\\..\\{PLANTED}": b"x"}),
    "a link": lambda files, at: with_link(packed(files), f"{at}config/more"),
}


@pytest.mark.parametrize("name", ARCHIVES)
def test_a_site_unpacks_no_archive_that_leads_out_of_its_folder(running: Any, signed: Any, name: str) -> None:
    files, meta = signed
    app = app_of(files)
    site, job_id = WatchedSite(running, SITE), str(uuid.uuid4())
    answer = deploy(running, SITE, ARCHIVES[name](app, ""), job_id, meta)
    assert answer["body"] == "withheld by the site"
    site.must_have_done_nothing(job_id)
    assert site.told(refused_jobs.NO_ARCHIVE, job=job_id), site.refused()
    assert any(refused_jobs.NO_ARCHIVE in reason for reason in site.reasons())


@pytest.mark.parametrize("name", NAMES)
def test_a_site_knows_no_job_whose_name_leads_elsewhere(running: Any, signed: Any, name: str) -> None:
    """The app that comes with it is a lead's, signed and unaltered."""
    files, meta = signed
    app = app_of(files)
    site = WatchedSite(running, SITE)
    answer = deploy(running, SITE, packed(app), name, meta | {"job_id": name})
    assert answer["body"] == "withheld by the site"
    assert site.told(refused_jobs.NO_NAME, job=name), site.refused()
    site = WatchedSite(running, SITE)
    answer = order(running, SITE, "train.delete_run", "", **{RequestHeader.JOB_ID: name})
    assert answer["body"] == "withheld by the site"
    assert site.told(refused_jobs.NO_NAME, job=name), site.refused()
    assert refused_jobs.NO_NAME in " ".join(site.reasons())


def submit(running: Any, monkeypatch: pytest.MonkeyPatch, data: bytes, tmp_path: Path, name: str = "job") -> None:
    """By a lead's kit that packs what it likes, over the admin API. Raises what our own `admin.submit` raises."""
    job = tmp_path / "job"
    job.mkdir(parents=True)
    monkeypatch.setattr(file_transfer, "zip_directory_to_file", lambda *_: Path(_[2]).write_bytes(data))
    monkeypatch.setattr(file_transfer, "split_path", lambda _: ("", name))
    running.submit(job)


@pytest.mark.parametrize("name", ARCHIVES)
def test_the_server_takes_no_archive_that_leads_out_of_its_folder(
    running: Any, signed: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str
) -> None:
    server = WatchedServer(running)
    with pytest.raises(AdminError, match="an entry of its archive leads out of it"):
        submit(running, monkeypatch, ARCHIVES[name](signed[0], "job/"), tmp_path)
    assert server.told(refused_jobs.NO_ARCHIVE), server.refused()


@pytest.mark.parametrize("name", [*NAMES, str(uuid.UUID(int=2))])
def test_no_lead_names_his_job(
    running: Any, signed: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str
) -> None:
    meta = json.loads(signed[0]["job/meta.json"]) | {"job_id": name}
    server = WatchedServer(running)
    with pytest.raises(AdminError):
        submit(running, monkeypatch, packed(signed[0] | {"job/meta.json": json.dumps(meta).encode()}), tmp_path)
    assert server.told("a submitted job: "), server.refused()


def test_nor_does_the_jobs_folder_or_its_app_lead_elsewhere(
    running: Any, signed: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    up = {path.replace("job/", f"../../{PLANTED}/", 1): content for path, content in signed[0].items()}
    server = WatchedServer(running)
    with pytest.raises(AdminError):
        submit(running, monkeypatch, packed(up), tmp_path / "a", f"../../{PLANTED}")
    assert server.told("a submitted job: "), server.refused()
    meta = json.loads(signed[0]["job/meta.json"])
    meta["deploy_map"][f"../../{PLANTED}"] = meta["deploy_map"].pop(job_folder.APP_SITES)
    server = WatchedServer(running)
    with pytest.raises(AdminError, match="app name"):
        submit(running, monkeypatch, packed(signed[0] | {"job/meta.json": json.dumps(meta).encode()}), tmp_path / "b")
    assert server.told("a submitted job: ", "app name"), server.refused()
