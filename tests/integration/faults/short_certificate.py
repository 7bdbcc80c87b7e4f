"""Certificates that end while a test waits, and connections that end at once."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta

import psutil
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization

from fedscan.federation import kit_renewal, kits


def why_not() -> str | None:
    """Why this machine cannot end a connection from outside; None: it can."""
    if os.geteuid() != 0:
        return "ending others' connections needs root"
    return None if shutil.which("ss") else "no `ss`: make setup-system installs iproute2"


def let_end(federation: kits.Federation, name: str, seconds: float) -> datetime:
    """A participant's certificate, signed anew by the federation's root, ends so soon. Its key stays."""
    state = federation.folder / kits.PROJECT / "state" / kit_renewal.STATE_FILE
    known = json.loads(state.read_text())
    root_key = serialization.load_pem_private_key(known["root_pri_key"].encode(), password=None)
    path = federation.kit(name) / "startup" / "client.crt"
    like = x509.load_pem_x509_certificate(path.read_bytes())
    end = (datetime.now(UTC) + timedelta(seconds=seconds)).replace(microsecond=0)
    builder = x509.CertificateBuilder(
        like.issuer, like.subject, like.public_key(), x509.random_serial_number(), like.not_valid_before_utc, end
    )
    for extension in like.extensions:
        builder = builder.add_extension(extension.value, extension.critical)
    pem = builder.sign(root_key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)  # type: ignore[arg-type]
    path.write_bytes(pem)
    known[name]["cert"] = pem.decode()
    state.write_text(json.dumps(known))
    return end


def renew(federation: kits.Federation, name: str) -> None:
    """The operator provisions again, and the new startup/ takes the old one's place."""
    kits.run_provisioner(federation.folder)
    newest = sorted((federation.folder / kits.PROJECT).glob(f"prod_*/{name}"))[-1]
    assert newest != federation.kit(name), "nothing was made anew"
    shutil.copytree(newest / "startup", federation.kit(name) / "startup", dirs_exist_ok=True)


def end_connections(processes: Iterable[psutil.Process], port: int) -> int:
    """Of these processes to that port, as when the network breaks them off. Returns how many there were."""
    ended = 0
    for process in processes:
        for one in process.net_connections("tcp"):
            if one.status == psutil.CONN_ESTABLISHED and one.raddr and one.raddr.port == port:
                command = ["ss", "-K", "sport", "=", f":{one.laddr.port}", "dport", "=", f":{port}"]
                subprocess.run(command, check=True, capture_output=True)
                ended += 1
    return ended
