"""What a dishonest operator does at the server: takes jobs out of its store, changes them, and lays them back."""

from __future__ import annotations

import io
import json
import shutil
import uuid
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fedscan.federation import kit_files, kits, processes

Files = dict[str, bytes]
"""Of a job's archive: by their path in it."""


class JobStore:
    """The store of a running server."""

    def __init__(self, federation: kits.Federation) -> None:
        self._kit = federation.kit(kits.SERVER)
        self._folder = self._kit / kit_files.JOB_STORE
        self._server = next(
            p for p in processes.belonging_to(federation.folder) if "server_train" in " ".join(p.cmdline())
        )

    def files(self, job_id: str) -> Files:
        with zipfile.ZipFile(self._folder / job_id / "data") as archive:
            return {name: archive.read(name) for name in archive.namelist()}

    def put(self, job_id: str, files: Files) -> None:
        (self._folder / job_id / "data").write_bytes(packed(files))

    def meta(self, job_id: str) -> dict[str, Any]:
        meta: dict[str, Any] = json.loads((self._folder / job_id / "meta").read_text())
        return meta

    def lay(self, files: Files, like: dict[str, Any]) -> str:
        """A new job of this content; its meta is that of another job, as it was when that was submitted."""
        job_id = str(uuid.uuid4())
        meta = dict(like)
        for told in ("job_deploy_detail", "schedule_count", "schedule_history", "last_schedule_time", "job_clients"):
            meta.pop(told, None)
        meta |= {"job_id": job_id, "status": "SUBMITTED", "start_time": "", "duration": "N/A"}
        partial = self._folder.parent / f".{job_id}"
        partial.mkdir()
        (partial / "data").write_bytes(packed(files))
        (partial / "meta").write_text(json.dumps(meta))
        partial.rename(self._folder / job_id)
        return job_id

    @contextmanager
    def halted(self) -> Iterator[None]:
        """The server stands still meanwhile."""
        self._server.suspend()
        try:
            yield
        finally:
            self._server.resume()

    def altered(self, submit: Callable[[], str], change: Callable[[Files], Files]) -> str:
        """A job that was submitted, and changed in the store before the server has read it."""
        with self._before_it_is_read(submit) as job_id:
            self.put(job_id, change(self.files(job_id)))
        return job_id

    def taken(self, submit: Callable[[], str]) -> tuple[Files, dict[str, Any]]:
        """A job that was submitted, and taken away before the server has read it: its archive and meta."""
        with self._before_it_is_read(submit) as job_id:
            kept = self.files(job_id), self.meta(job_id)
            shutil.rmtree(self._folder / job_id)
        return kept

    @contextmanager
    def _before_it_is_read(self, submit: Callable[[], str]) -> Iterator[str]:
        for _ in range(5):
            job_id = submit()
            with self.halted():
                if not (self._kit / job_id).exists():
                    yield job_id
                    return
        raise AssertionError("the server was faster each time")


def packed(files: Files) -> bytes:
    """A zip archive with these entries, whatever their names are; a name that ends in / is a folder."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in files.items():
            archive.writestr(zipfile.ZipInfo(name), content)
    return buffer.getvalue()


def unpacked(files: Files, folder: Path) -> Path:
    """These files on the disk."""
    for name, content in files.items():
        path = folder / name
        if name.endswith("/"):
            path.mkdir(parents=True, exist_ok=True)
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
    return folder


def read_folder(folder: Path) -> Files:
    """All below a folder, with entries for folders, as NVFlare packs them."""
    found: Files = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        found |= {f"{name}/": b""} if path.is_dir() else {name: path.read_bytes()}
    return found
