"""`nvflare provision` makes strict kits: a builder of ours, first in project.yml, lays our files into every kit."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from nvflare.lighter.constants import CtxKey, ParticipantType, PropKey
from nvflare.lighter.ctx import ProvisionContext
from nvflare.lighter.entity import Participant, Project
from nvflare.lighter.spec import Builder

from fedscan.federation import kit_files
from fedscan.federation.places import SERVER_FILE

LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})
ROOT_KEY_FILE = "cert.json"
_PRIVATE_UMASK = 0o077
_SCRIPTS = ("start.sh", "sub_start.sh", "stop_fl.sh", "fl_admin.sh")

Json = dict[str, Any]


class KitError(ValueError):
    """The project cannot become strict kits: what is wrong, and the cure."""


class StrictKitBuilder(Builder):  # type: ignore[misc]
    """Must be the first builder: NVFlare begins with the first one, and ends with it, when all kits are laid."""

    def __init__(self, renew_days: int = 60) -> None:
        """`renew_days`: a certificate with fewer days left is not used again, a new one is made in its place."""
        if isinstance(renew_days, bool) or not isinstance(renew_days, int) or not 0 <= renew_days < 360:
            raise KitError(f"renew_days must be a whole number from 0 to 359, got {renew_days!r}")
        self._renew_days = renew_days
        self._umask: int | None = None

    def initialize(self, project: Project, ctx: ProvisionContext) -> None:
        """Before any file is written. Raises KitError where project.yml asks for less than a strict kit."""
        self._umask = os.umask(_PRIVATE_UMASK)
        Path(ctx.get_workspace()).chmod(0o700)
        check_project(project)
        for participant in [project.get_server(), *project.get_clients()]:
            if not participant.get_prop(PropKey.LISTENING_HOST):
                participant.set_prop(PropKey.LISTENING_HOST, kit_files.listening_host())

    def finalize(self, project: Project, ctx: ProvisionContext) -> None:
        """Lays our files into the finished kits and closes all modes. Raises KitError."""
        laid = ctx.get(CtxKey.CURRENT_PROD_DIR)
        if self._umask is None or not laid:
            raise KitError("StrictKitBuilder must be the first of the builders in project.yml")
        for participant in project.get_all_participants():
            lay(Path(laid) / participant.name, participant.type)
        close(Path(laid))
        close(Path(ctx.get_state_dir()))
        os.umask(self._umask)


def check_project(project: Project) -> None:
    """Raises KitError naming everything in a project that a strict kit cannot have."""
    participants = [project.get_server(), *project.get_clients(), *project.get_admins()]
    wrong = [f"relay {relay.name}: relays are not used" for relay in project.get_relays()]
    for participant in participants:
        wrong += [f"{participant.name}: {reason}" for reason in _complaints(participant)]
    if wrong:
        raise KitError("; ".join(wrong))


def _complaints(participant: Participant) -> list[str]:
    found = []
    security = participant.get_prop_fb(PropKey.CONN_SECURITY)
    if security not in (None, "", "mtls"):
        found.append(f"connection_security must be mtls (or left out), got {security!r}")
    if participant.get_prop_fb(PropKey.ALLOW_LOG_STREAMING, default=False):
        found.append("allow_log_streaming must be false (or left out): logs stay at the site")
    host = participant.get_listening_host()
    if host is None:
        return found
    names = {host.default_host, *(host.host_names or ())}
    if host.scheme != "tcp" or host.conn_sec != "mtls" or not names <= LOOPBACK:
        found.append("listening_host must be on loopback by tcp with connection_security mtls (or left out)")
    return found


def lay(kit: Path, kind: str) -> None:
    """Our files over one kit as NVFlare laid it. `kind`: server, client or admin."""
    for name in _SCRIPTS:
        script = kit / "startup" / name
        if script.exists():
            script.write_text(kit_files.start_script(script.read_text(encoding="utf-8")), encoding="utf-8")
    local = kit / "local"
    if kind == ParticipantType.SERVER:
        _lay(local, "resources.json", kit_files.server_resources)
        _lay(local, "authorization.json", lambda _: kit_files.server_authorization())
        _write(local / SERVER_FILE, kit_files.server_places())
    if kind == ParticipantType.CLIENT:
        _lay(local, "resources.json", kit_files.site_resources)
        _lay(local, "authorization.json", lambda _: kit_files.site_authorization())
        _write(local / "privacy.json", kit_files.site_privacy())
    if kind in (ParticipantType.SERVER, ParticipantType.CLIENT):
        _lay(local, "log_config.json", kit_files.log_config)
        (local / "privacy.json.sample").unlink()  # it names filters that protect nobody, and two scopes


def close(folder: Path) -> None:
    """Folder and all in it for the owner alone; scripts stay executable."""
    folder.chmod(0o700)
    for path in folder.rglob("*"):
        path.chmod(0o700 if path.is_dir() or path.suffix == ".sh" else 0o600)


def _lay(local: Path, name: str, make: Callable[[Json], Json]) -> None:
    """The strict file, and as NVFlare's default too: it falls back to that where the file itself is gone."""
    default = local / f"{name}.default"
    strict = make(json.loads(default.read_text(encoding="utf-8")))
    _write(default, strict)
    _write(local / name, strict)


def _write(path: Path, data: Json) -> None:
    path.write_text(json.dumps(data, indent=2) + "\n", encoding="utf-8")
