"""A site's kit as the operator sent it: what it is, whose, and for which federation. Nothing is written."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedscan.federation.site_certificates import CertificateError, common_name, load, public_key_sha256
from fedscan.privacy.own_files import OwnFileError, read_object

CLIENT_JSON = "fed_client.json"
_OTHERS = {
    "fed_server.json": "the server's kit: it belongs to the federation's operator, who starts it; a hospital gets the "
    "kit of its own site",
    "fed_admin.json": "a person's admin kit, which submits jobs: it must not lie at a site; a hospital gets the kit of "
    "its own site",
}
_TARGET = re.compile(r"^(?P<host>[A-Za-z0-9._-]{1,253}|\[[0-9a-fA-F:]+\]):(?P<port>[0-9]{1,5})$")


class KitError(ValueError):
    """The folder is no site's kit, or not a whole one: what, and the cure."""


@dataclass(frozen=True)
class Server:
    """Whom the site dials."""

    host: str
    port: int
    identity: str
    """The name in the server's certificate."""


@dataclass(frozen=True)
class Kit:
    """A site's kit, opened; its certificates are judged by `site_certificates`."""

    folder: Path
    project: str
    site: str
    """CN of client.crt: the site's name in the federation."""
    root_sha256: str
    """SHA-256 of the public key of rootCA.pem: the federation itself, through every renewal of certificates."""
    server: Server
    client_json: dict[str, Any]

    @classmethod
    def open(cls, folder: Path) -> Kit:
        """Raises KitError."""
        startup = folder / "startup"
        _must_be_a_sites(folder)
        try:
            content = read_object(startup / CLIENT_JSON, f"startup/{CLIENT_JSON}")
            root, own = load(startup / "rootCA.pem"), load(startup / "client.crt")
        except (OwnFileError, CertificateError) as error:
            raise KitError(f"{error}: unpack the kit anew, or ask the operator for it again") from None
        project, server = _server(content)
        return cls(folder.resolve(), project, common_name(own), public_key_sha256(root), server, content)

    @property
    def startup(self) -> Path:
        """What the operator's provisioning made: certificates, keys, start scripts."""
        return self.folder / "startup"

    @property
    def local(self) -> Path:
        """The site's own settings of NVFlare."""
        return self.folder / "local"


def _must_be_a_sites(folder: Path) -> None:
    if not folder.is_dir():
        raise KitError(f"{folder} is no folder: unpack the kit that the operator sent, and name its folder")
    for name, what in _OTHERS.items():
        if (folder / "startup" / name).exists():
            raise KitError(f"{folder} is {what}")
    if not (folder / "startup" / CLIENT_JSON).exists() or not (folder / "local").is_dir():
        raise KitError(
            f"{folder} is no kit of a site (no startup/{CLIENT_JSON} or no local/): name the folder that has `startup` "
            "and `local` in it"
        )


def _server(content: dict[str, Any]) -> tuple[str, Server]:
    try:
        (server,) = content["servers"]
        project, identity, target = server["name"], server["identity"], server["service"]["target"]
        found = _TARGET.fullmatch(target)
    except (KeyError, TypeError, ValueError):
        found = None
    if found is None or not (isinstance(project, str) and isinstance(identity, str)):
        raise KitError(f"startup/{CLIENT_JSON} names no single server: ask the operator for the kit again")
    return project, Server(found["host"].strip("[]"), int(found["port"]), identity)
