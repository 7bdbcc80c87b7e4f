"""The certificates of a kit: whose they are, who signed them, how long they hold."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_private_key

MAX_BYTES = 1 << 16
WARN_DAYS = 30
PAIRS = (("client.crt", "client.key"), ("server.crt", "server.key"))
"""In startup/: what the site shows to the server, and what its own loopback listener shows to its job processes."""
ROOT = "rootCA.pem"


class CertificateError(ValueError):
    """A certificate file that cannot be read."""


@dataclass(frozen=True)
class Flaw:
    """What is wrong with one certificate. `expiry`: it is a matter of days, and a renewed kit mends it. `clock`: it is
    not valid yet by this machine's clock."""

    text: str
    expiry: bool = False
    warning: bool = False
    clock: bool = False


def load(path: Path) -> x509.Certificate:
    """The first certificate of a PEM file. Raises CertificateError."""
    try:
        with path.open("rb") as file:
            return x509.load_pem_x509_certificate(file.read(MAX_BYTES))
    except OSError as error:
        raise CertificateError(f"startup/{path.name} cannot be read: {error.strerror}") from None
    except ValueError:
        raise CertificateError(f"startup/{path.name} holds no certificate") from None


def common_name(certificate: x509.Certificate) -> str:
    """The one CN of the subject; empty where there is none or more than one."""
    names = certificate.subject.get_attributes_for_oid(x509.NameOID.COMMON_NAME)
    return str(names[0].value) if len(names) == 1 else ""


def public_key_sha256(certificate: x509.Certificate) -> str:
    """Hexadecimal SHA-256 of the DER SubjectPublicKeyInfo."""
    der = certificate.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return hashlib.sha256(der).hexdigest()


def days_left(certificate: x509.Certificate, now: datetime) -> int:
    """Whole days until the certificate ends; negative when it has."""
    return (certificate.not_valid_after_utc - now) // timedelta(days=1)


def soonest_end(startup: Path) -> tuple[str, datetime] | None:
    """Name and end of that certificate which ends first; None where none can be read."""
    ends = []
    for name in (ROOT, *(crt for crt, _ in PAIRS)):
        try:
            ends.append((load(startup / name).not_valid_after_utc, name))
        except CertificateError:
            continue
    return (min(ends)[1], min(ends)[0]) if ends else None


def flaws(startup: Path, site: str, now: datetime | None = None) -> Iterator[Flaw]:
    """Everything wrong with the kit's certificates and keys."""
    now = now or datetime.now(UTC)
    try:
        root = load(startup / ROOT)
    except CertificateError as error:
        yield Flaw(str(error))
        return
    yield from _dates(ROOT, root, now)
    for crt, key in PAIRS:
        try:
            certificate = load(startup / crt)
        except CertificateError as error:
            yield Flaw(str(error))
            continue
        yield from _dates(crt, certificate, now)
        if common_name(certificate) != site:
            yield Flaw(f"startup/{crt} is of {common_name(certificate)!r}, not of this site {site!r}")
        try:
            certificate.verify_directly_issued_by(root)
        except (InvalidSignature, ValueError, TypeError):
            yield Flaw(f"startup/{crt} is not signed by startup/{ROOT}: certificates of two federations are mixed")
        yield from _key(startup / key, crt, certificate)


def _dates(name: str, certificate: x509.Certificate, now: datetime) -> Iterator[Flaw]:
    left = days_left(certificate, now)
    end = certificate.not_valid_after_utc.date()
    if certificate.not_valid_before_utc > now:
        yield Flaw(
            f"startup/{name} holds from {certificate.not_valid_before_utc:%Y-%m-%d %H:%M} UTC only: this machine's "
            "clock is behind, or the kit was made under a wrong one",
            clock=True,
        )
    if left < 0:
        yield Flaw(f"startup/{name} ended on {end}, {-left} days ago: the server takes no connection", expiry=True)
    elif left < WARN_DAYS:
        yield Flaw(f"startup/{name} ends on {end}, in {left} days", expiry=True, warning=True)


def _key(path: Path, crt: str, certificate: x509.Certificate) -> Iterator[Flaw]:
    try:
        with path.open("rb") as file:
            # Whether the key is a sound one takes 0.2 s to prove, and TLS does so when it signs.
            key = load_pem_private_key(file.read(MAX_BYTES), password=None, unsafe_skip_rsa_key_validation=True)
    except OSError as error:
        yield Flaw(f"startup/{path.name} cannot be read: {error.strerror}")
        return
    except (ValueError, TypeError):
        yield Flaw(f"startup/{path.name} holds no private key without a password")
        return
    if key.public_key() != certificate.public_key():
        yield Flaw(f"startup/{path.name} is not the key of startup/{crt}")
