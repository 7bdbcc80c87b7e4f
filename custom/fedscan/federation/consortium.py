"""A consortium as site_configs/project.yml describes it, provisioned on this machine, for trying it out."""

from __future__ import annotations

import copy
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from fedscan.federation import kits

LOOPBACK_SERVER = "localhost"
PROJECT_FILE = "project.yml"


class ProjectError(ValueError):
    """The project file cannot be used: what is wrong with it."""


@dataclass(frozen=True)
class Consortium:
    """What a project file in `folder` names, and the newest kits that were made of it there."""

    folder: Path
    description: dict[str, Any]

    @classmethod
    def open(cls, folder: Path) -> Consortium:
        """From FOLDER/project.yml. Raises ProjectError."""
        return cls(folder, read_project(folder / PROJECT_FILE))

    def names(self, kind: str, role: str | None = None) -> list[str]:
        """Of the participants of a kind (server, client, admin), and of a role where one is given."""
        found = [p for p in self.description["participants"] if p["type"] == kind]
        return [p["name"] for p in found if role is None or p.get("role") == role]

    @property
    def server(self) -> str:
        """The server's name."""
        return self.names("server")[0]

    @property
    def sites(self) -> list[str]:
        """The sites' names."""
        return self.names("client")

    @property
    def lead(self) -> str:
        """The first lead's name. Raises ProjectError where there is none."""
        leads = self.names("admin", "lead")
        if not leads:
            raise ProjectError(f"{self.folder / PROJECT_FILE} names no person of role lead, and nobody else may submit")
        return leads[0]

    def kit(self, name: str) -> Path:
        """A participant's newest kit. Raises ProjectError where there is none."""
        made = sorted((self.folder / str(self.description["name"])).glob(f"prod_[0-9][0-9]/{name}"))
        if not made:
            raise ProjectError(f"{self.folder} has no kit of {name}: provision it")
        return made[-1]


def read_project(path: Path) -> dict[str, Any]:
    """A project file with a name and participants. Raises ProjectError."""
    try:
        description = yaml.safe_load(path.read_text(encoding="utf-8"))
        kinds = [p["type"] for p in description["participants"] if p["name"]]
        named = isinstance(description["name"], str)
    except (OSError, yaml.YAMLError, KeyError, TypeError) as error:
        raise ProjectError(f"{path} is no project of NVFlare's: {type(error).__name__}") from None
    if not named or kinds.count("server") != 1 or "client" not in kinds:
        raise ProjectError(f"{path} must have a name, one server and at least one client")
    return dict(description)


def loopback_copy(description: dict[str, Any], sites: Sequence[str], port: int) -> dict[str, Any]:
    """The same consortium on this machine alone: its server on `port` of localhost, its sites under these names.

    Raises ProjectError where the project has another number of sites.
    """
    copied = copy.deepcopy(description)
    clients = [p for p in copied["participants"] if p["type"] == "client"]
    if len(clients) != len(sites):
        raise ProjectError(f"wanted a project of {len(sites)} sites, got {len(clients)}")
    for client, name in zip(clients, sites, strict=True):
        client["name"] = name
        client.pop("connect_to", None)
    server = next(p for p in copied["participants"] if p["type"] == "server")
    for key in ("host_names", "default_host", "connect_to", "admin_port"):
        server.pop(key, None)
    server |= {"name": LOOPBACK_SERVER, "fed_learn_port": port}
    return copied


def provision(folder: Path, description: dict[str, Any]) -> Consortium:
    """Makes kits in `folder` (0700) by `nvflare provision`. Raises kits.ProvisionError."""
    old_umask = os.umask(0o077)
    try:
        folder.mkdir(parents=True)
        text = yaml.safe_dump(description, sort_keys=False, allow_unicode=True)
        (folder / PROJECT_FILE).write_text(text, encoding="utf-8")
        kits.run_provisioner(folder)
    finally:
        os.umask(old_umask)
    return Consortium(folder, description)
