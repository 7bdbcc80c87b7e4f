"""A server, or a site, that sends a file with a message, and somebody with an account on the receiver's machine."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from nvflare.fuel.utils import fobs
from nvflare.fuel.utils.fobs import lobs

from fedscan.federation import outgoing
from fedscan.federation.audit_recorder import AuditRecorder
from fedscan.federation.gate import OutboundGate
from fedscan.federation.gate_frames import SECTION
from fedscan.federation.job.controller import DiffusionFedAvg
from fedscan.federation.no_payload_files import FileInMessageError

FILE = lobs.MARKER_DATUM_FILE
NAME = uuid.UUID(int=9)
_get_datum_dir = lobs.get_datum_dir


@pytest.fixture(autouse=True)
def _as_nvflare_has_it() -> Iterator[None]:
    lobs.get_datum_dir = _get_datum_dir
    yield
    lobs.get_datum_dir = _get_datum_dir
    outgoing.stop_watching()


def with_file(content: bytes) -> bytes:
    return bytes(fobs.dumps({"a": 1})) + SECTION.pack(FILE, 0, 16 + len(content)) + NAME.bytes + content


def test_what_nvflare_does_with_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A link that another user laid there leads out: this is why."""
    site_json = tmp_path / "site.json"
    site_json.write_text("mine")
    datums = tmp_path / "datums"
    datums.mkdir()
    (datums / f"{NAME}.dat").symlink_to(site_json)
    monkeypatch.setattr(lobs, "DEFAULT_DATUM_DIR", str(datums))
    fobs.loads(with_file(b"theirs"))
    assert site_json.read_text() == "theirs"


@pytest.mark.parametrize("component", [AuditRecorder, OutboundGate, DiffusionFedAvg])
def test_it_is_not_read_where_ours_stands(
    component: Callable[[], object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the parents of server and site, in a site's job process, and in the server's."""
    monkeypatch.setattr(lobs, "DEFAULT_DATUM_DIR", str(tmp_path))
    component()
    with pytest.raises(FileInMessageError):
        fobs.loads(with_file(b"theirs"))
    assert list(tmp_path.iterdir()) == []
    assert fobs.loads(fobs.dumps({"a": b"x" * (11 << 20)}))["a"][:1] == b"x", "a long value travels as ever"
