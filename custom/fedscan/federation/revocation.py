"""Who may no longer take part, though a certificate says so: a list signed with the root key, with a rising number.

It names people and sites; every certificate of such a name that was issued until the list was made is revoked, so that
whoever is let in again gets a new kit. A site keeps the highest number it has seen, from whomever it came.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
from collections.abc import Collection, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal, Self

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from ctslices.files import write_whole

FILE = "revocations.json"
"""Of a site in its state folder, of the server in KIT/local."""
MAX_BYTES = 1 << 18
_PADDING = padding.PSS(mgf=padding.MGF1(hashes.SHA256()), salt_length=32)


class RevocationError(ValueError):
    """A list that cannot be used, and why."""


class RevocationList(BaseModel):
    """What the root key signs."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")

    form: Literal["fedscan-revocations-1"] = "fedscan-revocations-1"
    number: int = Field(ge=1, le=10**9, description="rises with every list of this root")
    revoked: dict[str, str] = Field(max_length=10_000, description="name: UTC time until which its certificates count")

    @model_validator(mode="after")
    def _times(self) -> Self:
        if any(datetime.fromisoformat(until).utcoffset() is None for until in self.revoked.values()):
            raise ValueError("times must have a zone")
        return self

    def reason(self, name: str, issued: datetime | None) -> str | None:
        """Why a certificate of `name` issued then counts no more; None: it is not revoked. An unknown time counts as
        before the list."""
        until = self.revoked.get(name)
        if until is None or (issued is not None and issued > datetime.fromisoformat(until)):
            return None
        return f"revoked by list {self.number} of the federation's root"


class _Signed(BaseModel):
    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")

    content: str
    signature: str = Field(pattern=r"^([0-9a-f]{2})+$")


def sign(content: RevocationList, root_key_pem: bytes) -> str:
    """The file's text. Raises RevocationError for a key that is no RSA key without a password."""
    try:
        key = load_pem_private_key(root_key_pem, password=None)
    except (ValueError, TypeError):
        key = None
    if not isinstance(key, rsa.RSAPrivateKey):
        raise RevocationError("the root key is no RSA key without a password: take the one of `nvflare provision`")
    text = content.model_dump_json()
    signature = key.sign(text.encode(), _PADDING, hashes.SHA256())
    return json.dumps({"content": text, "signature": signature.hex()}) + "\n"


def verify(text: str, root: x509.Certificate) -> RevocationList:
    """The list in a file's text, if this root signed it. Raises RevocationError."""
    key = root.public_key()
    if len(text) > MAX_BYTES or not isinstance(key, rsa.RSAPublicKey):
        raise RevocationError(f"the list is larger than {MAX_BYTES} bytes, or the root has no RSA key")
    try:
        signed = _Signed.model_validate_json(text)
        key.verify(bytes.fromhex(signed.signature), signed.content.encode(), _PADDING, hashes.SHA256())
        return RevocationList.model_validate_json(signed.content)
    except InvalidSignature:
        raise RevocationError("the list is not signed by this federation's root: ask for the right one") from None
    except ValidationError:
        raise RevocationError("this is no list of revocations: take the one that `federation revoke` wrote") from None


class Revocations:
    """The newest list that one participant holds, in a file of mode 0600 that only grows in number."""

    def __init__(self, path: Path, root_ca: Path) -> None:
        """`root_ca` is the kit's startup/rootCA.pem."""
        self._path, self._root_ca = path, root_ca

    def text(self) -> str | None:
        """The list as it lies there; None: there is none. Raises RevocationError where it cannot be read."""
        try:
            with self._path.open(encoding="utf-8") as file:
                return file.read(MAX_BYTES + 1)
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            raise RevocationError(f"{self._path} cannot be read ({type(error).__name__})") from None

    def newest(self) -> RevocationList | None:
        """Raises RevocationError for a list that is not whole: nobody can then be known not to be revoked."""
        text = self.text()
        return None if text is None else verify(text, root_of(self._root_ca))

    def lay(self, text: str) -> RevocationList:
        """Takes a list if its number is the highest seen; the one that counts now. Raises RevocationError, OSError.

        An older list changes nothing. Of one number there is one list.
        """
        offered = verify(text, root_of(self._root_ca))
        self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with self._alone():
            known = self.newest()
            if known is not None and known.number >= offered.number:
                if known.number == offered.number and known != offered:
                    raise RevocationError(f"there are two lists of number {known.number}: somebody signed twice")
                return known
            write_whole(self._path, text.encode(), mode=0o600)
        return offered

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        """Each job's process lays what its task brought, and IT by hand: the older of two lists must not win."""
        folder = os.open(self._path.parent, os.O_RDONLY | os.O_CLOEXEC)
        try:
            fcntl.flock(folder, fcntl.LOCK_EX)
            yield
        finally:
            os.close(folder)

    def reason(self, name: str, issued: datetime | None) -> str | None:
        """Why `name` may not take part; None: it may. Raises RevocationError."""
        newest = self.newest()
        return None if newest is None else newest.reason(name, issued)


def root_of(root_ca: Path) -> x509.Certificate:
    """A kit's startup/rootCA.pem. Raises RevocationError."""
    try:
        return x509.load_pem_x509_certificate(root_ca.read_bytes())
    except (OSError, ValueError) as error:
        raise RevocationError(f"{root_ca} cannot be read ({type(error).__name__})") from None


def make(state: Path, names: Collection[str], previous: Path, now: datetime | None = None) -> RevocationList:
    """Writes `previous` anew with `names` added: the next number, signed with the root key of NVFlare's `state` folder.

    A first list is number 1. Raises RevocationError, OSError; KeyError for a name that this root gave no certificate.
    """
    try:
        content = json.loads((state / "cert.json").read_text(encoding="utf-8"))
        root, key = content["root_cert"].encode(), content["root_pri_key"].encode()
        certificate = x509.load_pem_x509_certificate(root)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise RevocationError(
            f"{state / 'cert.json'} holds no root key ({type(error).__name__}): it lies where `nvflare provision` ran"
        ) from None
    for name in names:
        if not isinstance(content.get(name), dict):
            raise KeyError(name)
    before = verify(previous.read_text(encoding="utf-8"), certificate) if previous.exists() else None
    until = (now or datetime.now(UTC)).isoformat(timespec="seconds")
    revoked = {**(before.revoked if before else {}), **dict.fromkeys(names, until)}
    made = RevocationList(number=(before.number if before else 0) + 1, revoked=dict(sorted(revoked.items())))
    write_whole(previous, sign(made, key).encode(), mode=0o644)
    return made
