"""A server that means ill to the machine of whoever downloads from it: NVFlare's own client, with another server."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from nvflare.fuel.hci.client.file_transfer import FileTransferModule
from nvflare.fuel.hci.cmd_arg_utils import split_to_args

from fedscan.federation import admin, safe_download
from fedscan.federation.admin import AdminError

JOB = "0b6e5a5c-3f5c-4a5e-8f7e-2f0f3f1a0c11"
DOWNLOADS = "transfer"


class Server:
    """Sends one file, named as it likes; what stands between is NVFlare's client."""

    def __init__(self, home: Path, names: list[str], tx_id: str = "tx", location: str | None = None) -> None:
        self.download_dir = str(home / DOWNLOADS)
        Path(self.download_dir).mkdir(parents=True)
        self._module = FileTransferModule(upload_dir=self.download_dir, download_dir=self.download_dir)
        self._meta = {"files": [[name, "r"] for name in names], "tx_id": tx_id, "source_fqcn": "server"}
        self._location = location
        self._requester: Any = None
        self._result: dict[str, Any] = {}

    def download_job_result(self, job_id: str, destination: str | None = None) -> str:
        """As NVFlare's session does."""
        if self._location is not None:
            location = self._location
        else:
            result = self._module.pull_folder(["pull_folder", job_id], self)  # type: ignore[arg-type]
            location = result["meta"]["location"]
        if destination:
            final = Path(destination).absolute() / Path(location).name
            final.parent.mkdir(parents=True, exist_ok=True)
            shutil.move(location, final)
            return str(final)
        return str(location)

    # what NVFlare's command context and its API are asked for
    def get_command_entry(self) -> Any:
        return SimpleNamespace(full_command_name=lambda: "pull", usage="")

    def get_api(self) -> Any:
        return self

    def get_command(self) -> str:
        return "pull_binary_file"

    def set_requester(self, requester: Any) -> None:
        self._requester = requester

    def set_command_result(self, result: dict[str, Any]) -> None:
        self._result = result

    def server_execute(self, command: str, cmd_ctx: Any = None) -> dict[str, Any]:
        if cmd_ctx is None:
            return {"status": "SUCCESS", "meta": self._meta}
        self._requester.send_request(self, None, self)
        return self._result

    def do_command(self, command: str) -> Any:
        return self._module.pull_binary_file(split_to_args(command), self)  # type: ignore[arg-type]

    def download_file(self, source: str, ref: str, file_name: str) -> int:
        Path(file_name).parent.mkdir(parents=True, exist_ok=True)
        Path(file_name).write_text("ssh-ed25519 the server's\n")
        return 1

    def fire_session_event(self, *_: Any) -> None: ...

    def debug(self, *_: Any) -> None: ...


@pytest.fixture
def home(tmp_path: Path) -> Path:
    keys = tmp_path / "home" / ".ssh" / "authorized_keys"
    keys.parent.mkdir(parents=True)
    keys.write_text("mine\n")
    return tmp_path / "home"


def _unharmed(home: Path) -> bool:
    return (home / ".ssh" / "authorized_keys").read_text() == "mine\n"


def _download(server: Any, home: Path) -> Path:
    return admin.download(server, JOB, home / "run" / ".fetched")


def test_a_download_as_it_should_be(home: Path) -> None:
    folder = _download(Server(home, ["workspace/a.json", "job.txt"]), home)
    assert folder == home / "run" / ".fetched" / JOB
    assert (folder / "workspace" / "a.json").is_file()
    assert not any((home / DOWNLOADS).iterdir())


@pytest.mark.parametrize(
    "name", ["../../.ssh/authorized_keys", "{home}/.ssh/authorized_keys", "a/../../../.ssh/authorized_keys"]
)
def test_a_file_named_by_a_path_is_not_taken(home: Path, name: str) -> None:
    with pytest.raises(AdminError, match="by a path"):
        _download(Server(home, ["job.txt", name.format(home=home)]), home)
    assert _unharmed(home)


@pytest.mark.parametrize("tx_id", ["/../../.ssh", "x/../../.ssh"])
def test_a_transfer_named_by_a_path_takes_nothing_away(home: Path, tx_id: str) -> None:
    """NVFlare removes that folder where a download fails."""
    server = Server(home, ["authorized_keys"], tx_id)
    Path(f"{home / DOWNLOADS / JOB}__{tx_id.partition('/')[0]}").mkdir()
    with pytest.raises(AdminError, match="by a path"):
        _download(server, home)
    assert _unharmed(home)


def test_no_other_folder_is_taken_for_the_download(home: Path) -> None:
    """It would be moved into the run, and be gone with it."""
    for location in (str(home / ".ssh"), str(home), "", str(home / DOWNLOADS)):
        shutil.rmtree(home / DOWNLOADS, ignore_errors=True)
        with pytest.raises(AdminError, match="as it should"):
            _download(Server(home, [], location=location), home)
        assert _unharmed(home)
    shutil.rmtree(home / DOWNLOADS)
    server = Server(home, [], location=str(home / DOWNLOADS / "link"))
    (home / DOWNLOADS / "link").symlink_to(home / ".ssh")
    with pytest.raises(AdminError, match="as it should"):
        _download(server, home)
    assert _unharmed(home)


@pytest.mark.parametrize(
    "name", ["", ".", "..", "/a", "a/../b", "a//b", "a\\b", "a/./b", "...", "a\n", "x" * 200, None]
)
def test_names_that_are_not_plain(name: object) -> None:
    assert not safe_download.is_plain(name)


def test_plain_names() -> None:
    assert all(map(safe_download.is_plain, ("workspace.zip", "job/a_b-c.json", "app/.__nvfl_sig.json", JOB)))
