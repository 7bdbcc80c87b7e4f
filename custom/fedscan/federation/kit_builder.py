"""`nvflare provision` makes strict kits: a builder of ours, first in project.yml, lays our files into every kit."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from nvflare.lighter.constants import CtxKey, ParticipantType, PropKey
from nvflare.lighter.ctx import ProvisionContext
from nvflare.lighter.entity import Participant, Project
from nvflare.lighter.spec import Builder

from fedscan.federation import kit_files, kit_renewal
from fedscan.federation.places import SERVER_FILE

LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})
_PRIVATE_UMASK = 0o077
_SCRIPTS = ("start.sh", "sub_start.sh", "stop_fl.sh", "fl_admin.sh")

Json = dict[str, Any]


class KitError(ValueError):
    """The project cannot become strict kits: what is wrong, and the cure."""


class StrictKitBuilder(Builder):  # type: ignore[misc]
    """Must be the first builder: NVFlare begins with the first one, and ends with it, when all kits are laid.

    On a workspace that has kits already, certificates near their end are renewed, and kits that nothing changed in
    come out as they were.
    """

    def __init__(self, renew_days: int = 60) -> None:
        """`renew_days`: a certificate with fewer days left is not used again, a new one is made in its place."""
        if isinstance(renew_days, bool) or not isinstance(renew_days, int) or not 0 <= renew_days < 360:
            raise KitError(f"renew_days must be a whole number from 0 to 359, got {renew_days!r}")
        self._renew_days = renew_days
        self._umask: int | None = None

    def initialize(self, project: Project, ctx: ProvisionContext) -> None:
        """Before any file is written. Raises KitError where project.yml asks for less than a strict kit."""
        self._umask = os.umask(_PRIVATE_UMASK)
        state = Path(ctx.get_state_dir())
        Path(ctx.get_workspace()).chmod(0o700)
        close(state)
        check_project(project)
        for name in kit_renewal.forget_ending(state, self._renew_days):
            ctx.info(f"{name}: the certificate is near its end and is made anew")
        for participant in [project.get_server(), *project.get_clients()]:
            if not participant.get_prop(PropKey.LISTENING_HOST):
                participant.set_prop(PropKey.LISTENING_HOST, kit_files.listening_host())

    def finalize(self, project: Project, ctx: ProvisionContext) -> None:
        """Lays our files into the finished kits and closes all modes. Raises KitError."""
        laid, stage = ctx.get(CtxKey.CURRENT_PROD_DIR), ctx.get(CtxKey.LAST_PROD_STAGE)
        if self._umask is None or not laid or stage is None:
            raise KitError("StrictKitBuilder must be the first of the builders in project.yml")
        told: dict[str, list[str]] = {"new": [], "changed": [], "unchanged": []}
        for participant in project.get_all_participants():
            kit = Path(laid) / participant.name
            lay(kit, participant.type)
            if flaws := list(_flaws(kit, participant.type)):
                raise KitError(f"{participant.name}: {'; '.join(flaws)}")
            earlier = kit_renewal.earlier_kits(Path(ctx.get_workspace()), stage + 1, participant.name)
            if participant.type == ParticipantType.CLIENT:
                kit_renewal.keep_listener(kit, earlier, self._renew_days)
            same = bool(earlier) and kit_renewal.is_same_kit(kit, earlier[0])
            told["unchanged" if same else "changed" if earlier else "new"].append(participant.name)
        close(Path(laid))
        close(Path(ctx.get_state_dir()))
        os.umask(self._umask)
        self._tell(ctx, told)

    def _tell(self, ctx: ProvisionContext, told: dict[str, list[str]]) -> None:
        for what, names in told.items():
            if names:
                hint = " (nothing to hand out)" if what == "unchanged" else ""
                ctx.info(f"kits, {what}{hint}: {', '.join(names)}")
        key = Path(ctx.get_state_dir()) / kit_renewal.STATE_FILE
        ctx.info(f"{key} holds the root key: whoever has it is everybody. Keep it offline (docs/operator.md).")


def check_project(project: Project) -> None:
    """Raises KitError naming everything in a project that a strict kit cannot have."""
    participants = [project.get_server(), *project.get_clients(), *project.get_admins()]
    wrong = [f"relay {relay.name}: relays are not used" for relay in project.get_relays()]
    for participant in participants:
        wrong += [f"{participant.name}: {reason}" for reason in _complaints(participant)]
    if wrong:
        raise KitError("; ".join(wrong))


def _complaints(participant: Participant) -> Iterator[str]:
    security = participant.get_prop_fb(PropKey.CONN_SECURITY)
    if security not in (None, "", "mtls"):
        yield f"connection_security must be mtls (or left out), got {security!r}"
    if participant.get_prop_fb(PropKey.ALLOW_LOG_STREAMING, default=False):
        yield "allow_log_streaming must be false (or left out): logs stay at the site"
    host = participant.get_listening_host()
    if host is None:
        return
    names = {host.default_host, *(host.host_names or ())}
    if host.scheme != "tcp" or host.conn_sec != "mtls" or not names <= LOOPBACK:
        yield "listening_host must be on loopback by tcp with connection_security mtls (or left out)"


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


def _flaws(kit: Path, kind: str) -> Iterator[str]:
    """What the other builders, or their arguments, did to a kit that makes it less than strict."""
    if (kit / "startup" / "docker.sh").exists():
        yield "docker_image makes start scripts that set neither umask nor secure logging: leave it out"
    if kind not in (ParticipantType.SERVER, ParticipantType.CLIENT):
        return
    own = _read(kit / "startup" / ("fed_server.json" if kind == ParticipantType.SERVER else "fed_client.json"))
    if own.get("require_signed_jobs") is not True:
        yield "StaticFileBuilder must have require_signed_jobs: true"
    part = own["servers"][0] if kind == ParticipantType.SERVER else own["client"]
    if part.get("connection_security") != "mtls":
        yield "connection_security must be mtls"
    inner = _read(kit / "local" / "comm_config.json")["internal"]
    resources = inner["resources"]
    if (inner["scheme"], resources["connection_security"]) != ("tcp", "mtls") or resources["host"] not in LOOPBACK:
        yield "the port for its own job processes is not on loopback with mutual TLS"
    if missing := kit_files.start_script_flaws((kit / "startup" / "sub_start.sh").read_text(encoding="utf-8")):
        yield f"its start script has not {missing}: this version of NVFlare writes another one"


def close(folder: Path) -> None:
    """Folder and all in it for the owner alone; scripts stay executable."""
    folder.chmod(0o700)
    for path in folder.rglob("*"):
        path.chmod(0o700 if path.is_dir() or path.suffix == ".sh" else 0o600)


def _lay(local: Path, name: str, make: Callable[[Json], Json]) -> None:
    """The strict file, and as NVFlare's default too: it falls back to that where the file itself is gone."""
    default = local / f"{name}.default"
    strict = make(_read(default))
    _write(default, strict)
    _write(local / name, strict)


def _read(path: Path) -> Json:
    data: Json = json.loads(path.read_text(encoding="utf-8"))
    return data


def _write(path: Path, data: Json) -> None:
    path.write_text(json.dumps(data, indent=2) + "\n", encoding="utf-8")
