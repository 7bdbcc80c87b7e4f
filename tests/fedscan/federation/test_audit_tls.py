"""Refused TLS handshakes are noted, with their reason; others, and those of a client, are not."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

SERVE = """
import asyncio, ssl, sys
from fedscan.federation.audit_tls import note_refused_handshakes

async def main():
    note_refused_handshakes(lambda text: print(text, flush=True))
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=sys.argv[1] + "/root.pem")
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_cert_chain(sys.argv[1] + "/ours.pem")
    server = await asyncio.start_server(lambda r, w: w.close(), "127.0.0.1", 0, ssl=context)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()

asyncio.run(main())
"""


def certificate(
    folder: Path, name: str, issuer: tuple[x509.Name, ec.EllipticCurvePrivateKey] | None, days: int
) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    by, signer = issuer or (subject, key)
    now = datetime.now(UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(by)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=30))
        .not_valid_after(now + timedelta(days=days))
        .add_extension(x509.BasicConstraints(ca=issuer is None, path_length=None), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()), critical=False)
        .sign(signer, hashes.SHA256())
    )
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    (folder / f"{name}.pem").write_bytes(made.public_bytes(serialization.Encoding.PEM) + private)
    if issuer is None:
        certificate(folder, {"root": "ours", "evil": "theirs"}[name], (subject, key), 30)
        certificate(folder, {"root": "expired", "evil": "other"}[name], (subject, key), -1)


async def connect(port: int, folder: Path, name: str | None) -> None:
    if name == "plain":
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"hello, who is there?\r\n\r\n")
    else:
        context = ssl.create_default_context(cafile=str(folder / "root.pem"))
        context.check_hostname = False
        if name is not None:
            context.load_cert_chain(folder / f"{name}.pem")
        reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context)
    with contextlib.suppress(OSError):
        await asyncio.wait_for(reader.read(), 60)
    writer.close()


def test_each_refused_handshake_is_noted_with_its_reason(tmp_path: Path) -> None:
    certificate(tmp_path, "root", None, 30)
    certificate(tmp_path, "evil", None, 30)
    server = subprocess.Popen([sys.executable, "-c", SERVE, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert server.stdout is not None
    try:
        port = int(server.stdout.readline())
        for name, words in (
            (None, "PEER_DID_NOT_RETURN_A_CERTIFICATE"),
            ("theirs", "CERTIFICATE_VERIFY_FAILED"),
            ("expired", "certificate has expired"),
            ("plain", "in its TLS handshake"),
        ):
            with contextlib.suppress(OSError):
                asyncio.run(connect(port, tmp_path, name))
            assert words in server.stdout.readline(), name
        asyncio.run(connect(port, tmp_path, "ours"))  # a good one is not noted
        with contextlib.suppress(OSError):
            asyncio.run(connect(port, tmp_path, None))
        assert "PEER_DID_NOT" in server.stdout.readline()
    finally:
        server.kill()
        server.wait(60)
        server.stdout.close()
