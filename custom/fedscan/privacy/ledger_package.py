"""One file with what a site must not lose: keys, ledger, patients behind it, policy, state, if wanted the store.

Never the anchor: an older ledger that came with its own anchor would pass for the newest.
"""

from __future__ import annotations

import io
import json
import os
import re
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from pydantic import Field, ValidationError

from ctslices.files import sync_folder, write_whole
from fedscan.plan_form import Part
from fedscan.privacy.ledger import Ledger
from fedscan.privacy.ledger_records import LedgerError
from fedscan.privacy.limits import Limits
from fedscan.privacy.site_file import Site

CONTENTS, COMPLETE = "package.json", "complete.json"
LEDGER, KEY, POLICY, STORE_KEY, STORE = "ledger.jsonl", "ledger.key", "policy.json", "store.key", "store"
_KNOWN = re.compile(
    r"ledger\.jsonl|ledger\.key|policy\.json|store\.key|state/received_head\.json"
    r"|(ledger\.jsonl\.populations|state/approvals|state/nonces)/[0-9a-f]{32,64}\.json"
    r"|store(/[A-Za-z0-9_][A-Za-z0-9._-]*)+"
)
_CHUNK_BYTES = 1 << 20
_MAX_CONTENTS_BYTES = 1 << 16


class Contents(Part):
    """What a package says of itself."""

    package_version: int = Field(ge=1, le=1)
    site: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$")
    limits: Limits
    with_store: bool


@dataclass(frozen=True)
class Places:
    """Where a package is put."""

    folder: Path
    store: Path

    def of(self, member: str) -> Path:
        """The place of one member."""
        if member == STORE_KEY:
            return self.store.with_name(self.store.name + ".key")
        name, _, rest = member.partition("/")
        return self.store / rest if name == STORE else self.folder / member


def pack(site: Site, ledger: Ledger, package: Path, with_store: bool) -> None:
    """Writes the package, mode 0600, whole or not at all; the ledger's lock is held. Raises LedgerError, OSError."""
    if os.path.lexists(package):
        raise LedgerError(f"{package} is there already: name another file, old packages are not overwritten")
    contents = Contents(package_version=1, site=site.name, limits=site.limits, with_store=with_store)
    with ledger.lock():
        write_whole(package, _tar(contents, _members(site, with_store)), mode=0o600)


def _members(site: Site, with_store: bool) -> Iterator[tuple[str, Path]]:
    file = site.file
    populations = file.ledger.with_name(file.ledger.name + ".populations")
    yield KEY, file.key
    yield LEDGER, file.ledger
    yield from ((f"{LEDGER}.populations/{path.name}", path) for path in sorted(populations.glob("*.json")))
    for name in ("approvals", "nonces"):
        yield from ((f"state/{name}/{path.name}", path) for path in sorted((site.state / name).glob("*.json")))
    for member, path in (
        ("state/received_head.json", site.state / "received_head.json"),
        (POLICY, file.policy),
        (STORE_KEY, site.pseudonym_key),
    ):
        if path.exists():
            yield member, path
    if with_store:
        for path in sorted(path for path in site.store.rglob("*") if path.is_file()):
            yield f"{STORE}/{path.relative_to(site.store).as_posix()}", path


class _Drain(io.RawIOBase):
    """What tarfile writes, in pieces."""

    def __init__(self) -> None:
        self.pieces: list[bytes] = []

    def writable(self) -> bool:
        return True

    def write(self, data: object) -> int:
        piece = bytes(data)  # type: ignore[call-overload]
        self.pieces.append(piece)
        return len(piece)

    def take(self) -> bytes:
        data = b"".join(self.pieces)
        self.pieces.clear()
        return data


def _tar(contents: Contents, members: Iterator[tuple[str, Path]]) -> Iterator[bytes]:
    drain = _Drain()
    with tarfile.open(fileobj=drain, mode="w|", format=tarfile.PAX_FORMAT) as tar:
        body = contents.model_dump_json().encode()
        tar.addfile(_info(CONTENTS, len(body)), io.BytesIO(body))
        yield drain.take()
        written: list[str] = []
        for member, path in members:
            if not _KNOWN.fullmatch(member):
                raise LedgerError(f"{path} is none of a site's files: move it away")
            with path.open("rb") as file:
                tar.addfile(_info(member, os.fstat(file.fileno()).st_size), file)
            written.append(member)
            yield drain.take()
        body = json.dumps(written).encode()
        tar.addfile(_info(COMPLETE, len(body)), io.BytesIO(body))
    yield drain.take()


def _info(name: str, size: int) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.size, info.mode = size, 0o600
    return info


def unpack(package: Path, folder: Path, store: Path | None) -> tuple[Contents, Places]:
    """Puts everything in its place, each file whole; what is there already must be the same, but for a ledger that went
    on from the package's. `store`: where the store is, if not in `folder`. Raises LedgerError, OSError."""
    try:
        with package.open("rb") as file, tarfile.open(fileobj=file, mode="r:") as tar:
            first = tar.next()
            if first is None or first.name != CONTENTS or first.size > _MAX_CONTENTS_BYTES:
                raise LedgerError(f"{package} is no package of a site")
            contents = Contents.model_validate_json(_file(tar, first).read())
            places = Places(folder, store or folder / STORE)
            if contents.with_store and store is not None:
                raise LedgerError("the package holds the store: leave --store out")
            _private(folder)
            if not _put_all(tar, places):
                raise LedgerError(f"{package} was cut off: copy it again")
    except (tarfile.TarError, ValidationError, EOFError):
        raise LedgerError(f"{package} is no whole package of a site: copy it again") from None
    return contents, places


def _put_all(tar: tarfile.TarFile, places: Places) -> bool:
    """Whether the package's own list of its files stands at its end, and they are all there: a lost policy, for one,
    would be made anew with the defaults."""
    put: list[str] = []
    while (info := tar.next()) is not None:
        if info.name == COMPLETE:
            return bool(_file(tar, info).read() == json.dumps(put).encode() and {KEY, LEDGER} <= set(put))
        _put(tar, info, places)
        put.append(info.name)
    return False


def _file(tar: tarfile.TarFile, info: tarfile.TarInfo) -> IO[bytes]:
    file = tar.extractfile(info) if info.isreg() else None
    if file is None:
        raise LedgerError("the package holds what is no file")
    return file


def _put(tar: tarfile.TarFile, info: tarfile.TarInfo, places: Places) -> None:
    if not _KNOWN.fullmatch(info.name):
        raise LedgerError("the package holds a file that is none of a site's")
    place, file = places.of(info.name), _file(tar, info)
    if not os.path.lexists(place):
        _private(place.parent)
        write_whole(place, iter(lambda: file.read(_CHUNK_BYTES), b""), mode=0o600)
        return
    with place.open("rb") as there:
        while piece := file.read(_CHUNK_BYTES):
            if there.read(len(piece)) != piece:
                raise LedgerError(f"{place} is there already, and is another than the package's: move it away")
        if there.read(1) and info.name != LEDGER:
            raise LedgerError(f"{place} is there already, and is longer than the package's: move it away")


def _private(folder: Path) -> None:
    if not folder.is_dir():
        folder.mkdir(mode=0o700, parents=True)
        sync_folder(folder.parent)
