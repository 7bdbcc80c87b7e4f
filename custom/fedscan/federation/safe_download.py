"""At a person's machine: a server names the files of a download, and must not choose where they go.

NVFlare's client joins the names, and the identity of the transfer, to its own folder as they come: with `..` or a whole
path in them a server would write, or take away, any file of that person's.
"""

from __future__ import annotations

import re
import shutil
from pathlib import Path, PurePosixPath
from typing import Any

from nvflare.fuel.flare_api.flare_api import Session
from nvflare.fuel.hci.client.file_transfer import FileTransferModule

_NAME = re.compile(r"\.?[A-Za-z0-9_-][A-Za-z0-9._-]{0,127}")
_pull_binary_file = FileTransferModule.pull_binary_file
_tx_path = FileTransferModule._tx_path


class UnsafeDownloadError(RuntimeError):
    """The server named a place outside of the download."""


def watch() -> None:
    """From now on in this process; safe to call again."""
    FileTransferModule.pull_binary_file = _pull_checked
    FileTransferModule._tx_path = _tx_path_checked


def job_result(opened: Session, job_id: str, into: Path) -> Path:
    """A job's stored result below `into`. Raises UnsafeDownloadError, and what NVFlare raises."""
    watch()
    # NVFlare would move whatever folder the server's last word names.
    location = Path(opened.download_job_result(job_id) or "")
    own = Path(opened.download_dir).resolve()
    if not location.is_dir() or location.is_symlink() or location.resolve().parent != own:
        raise UnsafeDownloadError("the server did not send the job as it should")
    into.mkdir(parents=True, exist_ok=True)
    return Path(shutil.move(location, into / location.name))


def is_plain(name: object) -> bool:
    """Whether a relative path goes down and nowhere else."""
    if not isinstance(name, str) or not name or "\\" in name:
        return False
    path = PurePosixPath(name)
    return not path.is_absolute() and bool(path.parts) and all(map(_NAME.fullmatch, path.parts)) and str(path) == name


def _tx_path_checked(self: FileTransferModule, tx_id: Any, folder_name: Any) -> str:
    if any(not is_plain(name) or "/" in name for name in (tx_id, folder_name)):
        raise UnsafeDownloadError("the server names the download by a path: nothing is taken of it")
    return str(_tx_path(self, tx_id, folder_name))


def _pull_checked(self: FileTransferModule, args: Any, ctx: Any) -> Any:
    if len(args) > 5 and not is_plain(args[5]):
        raise UnsafeDownloadError("the server names a file of the download by a path: nothing is taken of it")
    return _pull_binary_file(self, args, ctx)


__all__ = ["UnsafeDownloadError", "is_plain", "job_result", "watch"]
