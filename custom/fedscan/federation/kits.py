"""A federation on loopback: NVFlare's own provisioning, and the local parts that make each kit ours."""

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

from fedscan.federation.places import SERVER_FILE, ServerPlaces, SitePlaces
from fedscan.privacy.site_file import SITE_JSON

PROJECT = "fedscan-local"
SERVER = "localhost"
LEAD = "lead@fedscan.local"
ALLOW_LIST = ["fedscan.federation.job."]
"""The one prefix of classes that a job may name."""
VALIDATOR = "fedscan.federation.validator.SiteValidator"
GUARD = "fedscan.federation.guard.OutboundGuard"
"""The site's own classes: named by its own files, never by a job."""


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
    """NVFlare's project description: one server, these sites, one lead; mutual TLS on every listener."""
    learn_port, admin_port, *site_ports = ports
    participants: list[dict[str, Any]] = [
        {
            "name": SERVER,
            "type": "server",
            "org": "coordinator",
            "fed_learn_port": learn_port,
            "admin_port": admin_port,
        }
    ]
    for site, port in zip(sites, site_ports, strict=True):
        listener = {
            "scheme": "tcp",
            "default_host": SERVER,
            "host_names": ["127.0.0.1"],
            "port": port,
            "connection_security": "mtls",
        }
        participants.append({"name": site, "type": "client", "org": "hospital", "listening_host": listener})
    participants.append({"name": LEAD, "type": "admin", "org": "coordinator", "role": "lead"})
    builders = "nvflare.lighter.impl"
    return {
        "api_version": 3,
        "name": PROJECT,
        "description": "a federation on loopback, made by fedscan job run",
        "participants": participants,
        "builders": [
            {
                "path": f"{builders}.workspace.WorkspaceBuilder",
                "args": {"template_file": ["master_template.yml"]},
            },
            {
                "path": f"{builders}.static_file.StaticFileBuilder",
                "args": {"config_folder": "config", "require_signed_jobs": True},
            },
            {"path": f"{builders}.cert.CertBuilder", "args": {"root_valid_days": 360}},
            {"path": f"{builders}.signature.SignatureBuilder"},
        ],
    }


class ProvisionError(RuntimeError):
    """NVFlare could not make the kits; its own last words."""


def provision(folder: Path, sites: Mapping[str, SitePlaces], server: ServerPlaces) -> Federation:
    """Makes CA, certificates and kits below `folder` (0700), and lays our local parts over them."""
    old_umask = os.umask(0o077)
    try:
        folder.mkdir(parents=True)
        description = project(tuple(sites), free_ports(2 + len(sites)))
        (folder / "project.yml").write_text(yaml.safe_dump(description, sort_keys=False), encoding="utf-8")
        _run_provisioner(folder)
        federation = Federation(folder, tuple(sites))
        _set_up_server(federation, server)
        for site, places in sites.items():
            _set_up_site(federation, site, places)
    finally:
        os.umask(old_umask)
    return federation


def _run_provisioner(folder: Path) -> None:
    command = [sys.executable, "-m", "nvflare.lighter.provision", "-p", str(folder / "project.yml"), "-w", str(folder)]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False, timeout=300)
    if done.returncode:
        raise ProvisionError(f"nvflare provision failed ({done.returncode}): {done.stderr.strip()[-500:]}")


def _set_up_server(federation: Federation, places: ServerPlaces) -> None:
    local = federation.kit(SERVER) / "local"
    resources = json.loads((local / "resources.json.default").read_text(encoding="utf-8"))
    resources["class_allow_list"] = ALLOW_LIST
    resources["servers"][0]["heart_beat_timeout"] = 60
    for component in resources["components"]:
        if component["id"] == "job_manager":
            component["args"]["uri_root"] = str(federation.folder / "jobs-storage")
    storage = resources["snapshot_persistor"]["args"]["storage"]
    storage["args"]["root_dir"] = str(federation.folder / "snapshot-storage")
    resources["components"] = [c for c in resources["components"] if c["id"] != "log_receiver"]
    _write(local / "resources.json", resources)
    _write(local / SERVER_FILE, places.model_dump(mode="json"))


def _set_up_site(federation: Federation, site: str, places: SitePlaces) -> None:
    local = federation.kit(site) / "local"
    resources = json.loads((local / "resources.json.default").read_text(encoding="utf-8"))
    resources["class_allow_list"] = ALLOW_LIST
    resources["allow_log_streaming"] = False
    # An empty site_config keeps NVFlare from sending unknown keys of this file to the server and on to other sites.
    resources["client"]["site_config"] = {}
    resources["components"] = [c for c in resources["components"] if c["id"] != "site_log_streamer"]
    if places.site_file is not None:
        resources["app_validator"] = {"path": VALIDATOR, "args": {}}
        (local / SITE_JSON).symlink_to(places.site_file)
    _write(local / "resources.json", resources)
    scope = {
        "name": "fedscan",
        "properties": places.model_dump(mode="json"),
        "task_data_filters": [],
        "task_result_filters": [{"path": GUARD, "args": {}}],
    }
    _write(local / "privacy.json", {"scopes": [scope], "default_scope": "fedscan", "components": []})


def _write(path: Path, data: object) -> None:
    path.write_text(json.dumps(data, indent=2) + "\n", encoding="utf-8")
