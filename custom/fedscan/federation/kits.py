"""A federation on loopback: strict kits by NVFlare's own provisioning, and this machine's places in them."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from fedscan.federation import kit_files
from fedscan.federation.places import SERVER_FILE, ServerPlaces, SitePlaces
from fedscan.privacy.site_file import SITE_JSON

PROJECT = "fedscan-local"
SERVER = "localhost"
LEAD = "lead@fedscan.local"


@dataclass(frozen=True)
class Federation:
    """Kits of a provisioned loopback federation."""

    folder: Path
    sites: tuple[str, ...]

    @property
    def kits(self) -> Path:
        """Where NVFlare writes the kits."""
        return self.folder / PROJECT / "prod_00"

    def kit(self, name: str) -> Path:
        """One participant's kit."""
        return self.kits / name


def free_ports(count: int) -> list[int]:
    """Loopback TCP ports that were free a moment ago."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


def project(sites: tuple[str, ...], ports: list[int]) -> dict[str, Any]:
    """NVFlare's project description: one server, these sites, one lead; the builders of site_configs/project.yml."""
    learn_port, admin_port = ports
    server = {"name": SERVER, "type": "server", "org": "coordinator"}
    participants: list[dict[str, Any]] = [server | {"fed_learn_port": learn_port, "admin_port": admin_port}]
    participants += [{"name": site, "type": "client", "org": "hospital"} for site in sites]
    participants.append({"name": LEAD, "type": "admin", "org": "coordinator", "role": "lead"})
    return {
        "api_version": 3,
        "name": PROJECT,
        "description": "a federation on loopback, made by fedscan job run",
        "participants": participants,
        "builders": builders(),
    }


def builders(scheme: str = "http", root_valid_days: int = 360) -> list[dict[str, Any]]:
    """What makes the kits, in order. `scheme`: http (web sockets) or grpc, inside TLS."""
    theirs = "nvflare.lighter.impl"
    return [
        {"path": "fedscan.federation.kit_builder.StrictKitBuilder"},
        {"path": f"{theirs}.workspace.WorkspaceBuilder", "args": {"template_file": ["master_template.yml"]}},
        {
            "path": f"{theirs}.static_file.StaticFileBuilder",
            "args": {"config_folder": "config", "scheme": scheme, "require_signed_jobs": True},
        },
        {"path": f"{theirs}.cert.CertBuilder", "args": {"root_valid_days": root_valid_days}},
        {"path": f"{theirs}.signature.SignatureBuilder"},
    ]


class ProvisionError(RuntimeError):
    """NVFlare could not make the kits; its own last words."""


def provision(folder: Path, sites: Mapping[str, SitePlaces], server: ServerPlaces) -> Federation:
    """Makes CA, certificates and kits below `folder` (0700), and lays our local parts over them."""
    old_umask = os.umask(0o077)
    try:
        folder.mkdir(parents=True)
        description = project(tuple(sites), free_ports(2))
        (folder / "project.yml").write_text(yaml.safe_dump(description, sort_keys=False), encoding="utf-8")
        run_provisioner(folder)
        federation = Federation(folder, tuple(sites))
        _set_up_server(federation, server)
        for site, places in sites.items():
            _set_up_site(federation, site, places)
    finally:
        os.umask(old_umask)
    return federation


def run_provisioner(folder: Path, *options: str) -> None:
    """`nvflare provision` of FOLDER/project.yml into FOLDER, with options of its own. Raises ProvisionError."""
    folder = folder.resolve()  # it works in that folder
    where = ["-p", str(folder / "project.yml"), "-w", str(folder), "--force"]
    command = [sys.executable, "-m", "nvflare.lighter.provision", *where, *options]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False, timeout=300)  # nosec B603 # our own words and a path, no shell
    if done.returncode:
        raise ProvisionError(f"nvflare provision failed ({done.returncode}): {done.stderr.strip()[-500:]}")


def _set_up_server(federation: Federation, places: ServerPlaces) -> None:
    _write(federation.kit(SERVER) / "local" / SERVER_FILE, places.model_dump(mode="json"))


def _set_up_site(federation: Federation, site: str, places: SitePlaces) -> None:
    local = federation.kit(site) / "local"
    if places.site_file is not None:
        (local / SITE_JSON).symlink_to(places.site_file)
    else:
        # Without a policy there is nothing that a validator could judge by; every output of such a run is stamped.
        resources = json.loads((local / "resources.json").read_text(encoding="utf-8"))
        del resources["app_validator"]
        _write(local / "resources.json", resources)
    _write(local / "privacy.json", kit_files.site_privacy(places.model_dump(mode="json")))


def _write(path: Path, data: object) -> None:
    path.write_text(json.dumps(data, indent=2) + "\n", encoding="utf-8")
