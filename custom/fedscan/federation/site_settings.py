"""A kit's settings against those of a strict kit: what may run here, who may command it, what may leave."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from fedscan.federation import audit_log, byte_log, refusals, site_originals, site_rules
from fedscan.federation.site_findings import Check, error
from fedscan.federation.site_kit import CLIENT_JSON, Kit
from fedscan.federation.site_rules import NEW_KIT, RESTART
from fedscan.privacy.own_files import OwnFileError, read_object

LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})
_CONFIG_LIKE = re.compile(r"\.(json|conf|ya?ml|py|sh)(\.default)?$|resources", re.IGNORECASE)
_KNOWN = {
    "startup": {
        "client.crt",
        "client.key",
        "server.crt",
        "server.key",
        "rootCA.pem",
        CLIENT_JSON,
        "start.sh",
        "sub_start.sh",
        "stop_fl.sh",
        "readme.txt",
    },
    "local": {
        "resources.json",
        "resources.json.default",
        "authorization.json",
        "authorization.json.default",
        "privacy.json",
        "privacy.json.sample",
        "log_config.json",
        "log_config.json.default",
        "comm_config.json",
        "site.json",
        # What our own gate, guard and validator note of a kit that runs before it is installed.
        byte_log.FOLDER,
        audit_log.FOLDER,
        refusals.FILE,
        f"{refusals.FILE}.old",
    },
}


def findings(kit: Kit) -> Iterator[Check]:
    """Everything in the kit's settings that is looser than, or unknown to, a strict kit."""
    yield from _files(kit)
    yield from _client(kit)
    for name, judge in _JUDGES.items():
        try:
            content = read_object(kit.local / name, f"local/{name}")
        except OwnFileError as trouble:
            yield error(_MISSING[name], f"{trouble}: NVFlare falls back to its own open default", NEW_KIT)
            continue
        yield from judge(content)


def _files(kit: Kit) -> Iterator[Check]:
    """Files that NVFlare would read and a strict kit has not, such as `x__resources.json` or local/custom/."""
    for part, known in _KNOWN.items():
        for path in sorted((kit.folder / part).iterdir()):
            if path.name in known or not (path.is_dir() or _CONFIG_LIKE.search(path.name)):
                continue
            what = f"{part}/{path.name}: NVFlare may read it, and a strict kit has no such {_kind(path)}"
            yield error("kit-files", what, f"find out who put it there; move it out of the kit {RESTART}")


def _kind(path: Path) -> str:
    return "folder" if path.is_dir() else "file"


def _client(kit: Kit) -> Iterator[Check]:
    """startup/fed_client.json: NVFlare merges it with resources.json, so nothing of that may stand here."""
    content, where = kit.client_json, f"startup/{CLIENT_JSON}"
    known = {"format_version", "require_signed_jobs", "servers", "client"}
    if unknown := sorted(set(content) - known):
        yield error("settings", f"{where} has what does not belong there: {', '.join(unknown)[:200]}", NEW_KIT)
    yield from _servers(content["servers"], where)
    if content.get("require_signed_jobs") is not True:
        yield error(
            "signed-jobs",
            f"{where}: require_signed_jobs must be true, got {content.get('require_signed_jobs')!r:.40}: a job that "
            "nobody signed would run",
            f"set it to true {RESTART}",
        )
    client = content.get("client")
    wanted = {
        "ssl_private_key": "client.key",
        "ssl_cert": "client.crt",
        "ssl_root_cert": "rootCA.pem",
        "fqsn": kit.site,
        "is_leaf": True,
        "connection_security": "mtls",
    }
    if client != wanted:
        yield error(
            "mutual-tls",
            f"{where}: `client` is not as a strict kit's: {_difference(client, wanted)}",
            NEW_KIT,
        )


def _log(content: dict[str, Any]) -> Iterator[Check]:
    wanted = site_originals.log_config()
    if content != wanted:
        text = f"local/log_config.json is not as a strict kit's: {_difference(content, wanted)}"
        yield error("log-config", f"{text}: a handler could send logs away, or fill the disk", NEW_KIT)


def _comm(content: dict[str, Any]) -> Iterator[Check]:
    where = "local/comm_config.json"
    internal = content.get("internal")
    place = internal.get("resources") if isinstance(internal, dict) else None
    fix = f"ask the operator for a kit with `listening_host` ({NEW_KIT})"
    if not isinstance(internal, dict) or not isinstance(place, dict):
        text = (
            f"{where} names no listener of its own: NVFlare opens a port at which any local process commands the site"
        )
        yield error("listener", text, fix)
        return
    if internal.get("scheme") != "tcp" or place.get("connection_security") != "mtls":
        text = (
            f"{where}: the listener must be tcp with connection_security mtls: any local process could command the site"
        )
        yield error("listener", text, fix)
    if place.get("host") not in LOOPBACK:
        yield error("listener", f"{where}: the listener is on {place.get('host')!r:.60}, not on loopback", fix)
    if content.get("allow_adhoc_conns") is not False or set(content) != {
        "allow_adhoc_conns",
        "backbone_conn_gen",
        "internal",
    }:
        yield error("listener", f"{where} has other settings than a strict kit: ad-hoc connections must be off", fix)


def listening_port(kit: Kit) -> int | None:
    """The loopback port of local/comm_config.json; None where it names none."""
    try:
        port = read_object(kit.local / "comm_config.json", "local/comm_config.json")["internal"]["resources"]["port"]
    except (OwnFileError, KeyError, TypeError):
        return None
    return port if isinstance(port, int) and 0 < port < 65536 else None


def _difference(got: object, wanted: dict[str, Any], path: str = "") -> str:
    """The first place where they differ; no values."""
    if not isinstance(got, dict):
        return path or "no object"
    for key in [*wanted, *(key for key in got if key not in wanted)]:
        if got.get(key) != wanted.get(key):
            inner = wanted.get(key)
            here = f"{path}.{key}".lstrip(".")[:120]
            return _difference(got.get(key), inner, here) if isinstance(inner, dict) else here
    return path or "the order of its entries"


def _servers(servers: list[Any], where: str) -> Iterator[Check]:
    """`Kit` has read them: one, with name, identity and target."""
    (server,) = servers
    service = server["service"]
    if set(server) != {"name", "service", "identity"} or set(service) != {"target", "scheme"}:
        yield error("settings", f"{where}: the server has keys that a strict kit's has not", NEW_KIT)
    elif service["scheme"] not in ("http", "grpc", "tcp"):
        yield error("settings", f"{where}: scheme must be http, grpc or tcp, got {service['scheme']!r:.40}", NEW_KIT)


_JUDGES: dict[str, Callable[[dict[str, Any]], Iterator[Check]]] = {
    "resources.json": site_rules.resources,
    "privacy.json": site_rules.privacy,
    "authorization.json": site_rules.authorization,
    "log_config.json": _log,
    "comm_config.json": _comm,
}
_MISSING = {
    "resources.json": "allow-list",
    "privacy.json": "scope",
    "authorization.json": "authorization",
    "log_config.json": "log-config",
    "comm_config.json": "listener",
}
NAMES = (
    "kit-files",
    "settings",
    "signed-jobs",
    "mutual-tls",
    "allow-list",
    "log-streaming",
    "validator",
    "site-config",
    "components",
    "scope",
    "guard",
    "gate",
    "authorization",
    "byoc",
    "shell",
    "operate",
    "log-config",
    "listener",
)
"""All that is looked at here."""
