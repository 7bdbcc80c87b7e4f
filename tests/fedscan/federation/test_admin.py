"""An admin kit whose certificate does not hold now is told at once, before any connection is tried."""

from __future__ import annotations

import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from fedscan.federation import admin
from fedscan.federation.admin import AdminError


def kit_with(folder: Path, begins: timedelta, ends: timedelta) -> Path:
    key, name = ec.generate_private_key(ec.SECP256R1()), x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "x")])
    now = datetime.now(UTC)
    builder = x509.CertificateBuilder(name, name, key.public_key(), 1, now + begins, now + ends)
    (folder / "startup").mkdir()
    pem = builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)
    (folder / "startup" / "client.crt").write_bytes(pem)
    return folder


@pytest.mark.parametrize(
    ("begins_h", "ends_h", "words"),
    [(-2, -1, r"its certificate ended on .* UTC\. Ask the operator"), (1, 2, r"this machine's clock is behind")],
)
def test_a_certificate_that_does_not_hold_is_told_at_once(
    begins_h: int, ends_h: int, words: str, tmp_path: Path
) -> None:
    kit = kit_with(tmp_path, timedelta(hours=begins_h), timedelta(hours=ends_h))
    with pytest.raises(AdminError, match=words), admin.session(kit, "x", timeout_s=60):
        pass


def test_a_kit_without_a_readable_certificate_is_told(tmp_path: Path) -> None:
    with pytest.raises(AdminError, match="cannot be read"), admin.session(tmp_path, "x", timeout_s=60):
        pass


@pytest.mark.parametrize("root", ["pass", "logging.basicConfig()"])
def test_what_nvflare_warns_of_while_it_connects_is_not_printed(root: str, tmp_path: Path) -> None:
    kit = kit_with(tmp_path, timedelta(hours=-1), timedelta(hours=1))
    code = (
        "import contextlib, logging; from pathlib import Path; from fedscan.federation import admin\n"
        f"{root}\n"
        "with contextlib.suppress(Exception), admin.session(Path(%r), 'x', timeout_s=0): pass\n"
        "logging.getLogger('nvflare.fuel.f3.cellnet.core_cell').error('no connection to server')\n"
    )
    command = [sys.executable, "-c", code % str(kit)]
    assert subprocess.run(command, capture_output=True, text=True, check=True, timeout=120).stderr == ""
