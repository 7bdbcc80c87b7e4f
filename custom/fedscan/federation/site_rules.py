"""What may run at a site, who may command it, what leaves: its three files, held against a strict kit's."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from fedscan.federation import kit_files, site_originals
from fedscan.federation.site_findings import Check, error

NEW_KIT = "put the file back as the operator sent it (unpack the kit again), then `fedscan site install` on it"
RESTART = "and restart the site"
_RESOURCES = "local/resources.json"
_GPU_ARGS = {"num_of_gpus", "mem_per_gpu_in_GiB"}
_NAMES = {"byoc": "byoc", "shell_commands": "shell", "operate": "operate"}


def resources(content: dict[str, Any]) -> Iterator[Check]:
    """local/resources.json: classes that a job may name, log streaming, what the site tells of itself, components."""
    wanted = site_originals.site_resources()
    yield from _one(content, wanted, "class_allow_list", "allow-list", "a job could name classes that are not ours")
    yield from _one(content, wanted, "class_list_enforcement_mode", "allow-list", "the allow-list would not bind")
    yield from _one(content, wanted, "allow_log_streaming", "log-streaming", "error logs would go to the server live")
    yield from _one(content, wanted, "app_validator", "validator", "jobs would not be judged when they arrive")
    client, wanted_client = content.get("client"), wanted["client"]
    if not isinstance(client, dict) or client.get("site_config") != {}:
        yield error(
            "site-config",
            f"{_RESOURCES}: client.site_config must be {{}}: without it this file's own keys go to the server and to "
            "every other hospital",
            f"set it to {{}} {RESTART}",
        )
    elif unknown := sorted(set(client) - set(wanted_client)):
        yield error("settings", f"{_RESOURCES}: client has unknown keys: {', '.join(unknown)[:200]}", NEW_KIT)
    if unknown := sorted(set(content) - set(wanted)):
        yield error("settings", f"{_RESOURCES} has unknown keys: {', '.join(unknown)[:200]}", NEW_KIT)
    yield from _components(content.get("components"), wanted["components"])


def _one(content: dict[str, Any], wanted: dict[str, Any], key: str, name: str, so_what: str) -> Iterator[Check]:
    if content.get(key) != wanted[key] or type(content.get(key)) is not type(wanted[key]):
        got = repr(content[key])[:120] if key in content else "nothing"
        yield error(name, f"{_RESOURCES}: {key} must be {wanted[key]!r}, got {got}: {so_what}", f"set it so {RESTART}")


def _components(got: object, wanted: list[dict[str, Any]]) -> Iterator[Check]:
    if not isinstance(got, list):
        yield error("components", f"{_RESOURCES} has no list of components", NEW_KIT)
        return
    missing = [one["id"] for one in wanted if not any(_same(other, one) for other in got)]
    unknown = [_id(other) for other in got if not any(_same(other, one) for one in wanted)]
    if unknown:
        text = f"{_RESOURCES}: components that a strict kit has not, or not so: {', '.join(unknown)[:200]}"
        yield error("components", text, NEW_KIT)
    if missing:
        yield error("components", f"{_RESOURCES} lacks the components {', '.join(missing)}", NEW_KIT)
    if not unknown and not missing and len(got) != len(wanted):
        yield error("components", f"{_RESOURCES} has a component twice", NEW_KIT)


def _same(got: object, wanted: dict[str, Any]) -> bool:
    """The same component; GPUs are the machine's own."""
    if not isinstance(got, dict) or wanted["id"] != "resource_manager":
        return got == wanted
    args, wanted_args = got.get("args"), wanted["args"]
    if not isinstance(args, dict) or set(args) != set(wanted_args):
        return False
    gpus = all(isinstance(args[name], int | float) and args[name] >= 0 for name in _GPU_ARGS)
    return gpus and {**got, "args": {**args, **{n: wanted_args[n] for n in _GPU_ARGS}}} == wanted


def _id(component: object) -> str:
    found = component.get("id") if isinstance(component, dict) else None
    return "".join(c if c.isprintable() else "?" for c in str(found))[:60]


def privacy(content: dict[str, Any]) -> Iterator[Check]:
    """local/privacy.json: one scope with the guard, and the gate after it."""
    where = "local/privacy.json"
    wanted = kit_files.site_privacy()
    scopes = content.get("scopes")
    if not isinstance(scopes, list) or len(scopes) != 1 or not isinstance(scopes[0], dict):
        yield error("scope", f"{where} must have exactly one scope: of several, a job chooses", NEW_KIT)
        return
    (scope,), (wanted_scope,) = scopes, wanted["scopes"]
    named = {**content, "scopes": None, "components": None}
    if named != {**wanted, "scopes": None, "components": None} or scope.get("name") != kit_files.SCOPE:
        yield error("scope", f"{where}: the one scope, and the default, must be {kit_files.SCOPE!r}", NEW_KIT)
    if scope.get("task_result_filters") != wanted_scope["task_result_filters"]:
        yield error("guard", f"{where}: the guard does not stand alone over all results: they leave unseen", NEW_KIT)
    if scope.get("task_data_filters") != wanted_scope["task_data_filters"] or set(scope) != set(wanted_scope):
        yield error("scope", f"{where}: the scope has filters or keys that a strict kit has not", NEW_KIT)
    if content.get("components") != wanted["components"]:
        ids = ", ".join(one["id"] for one in wanted["components"]) or "none"
        text = f"{where}: its components must be those of a strict kit ({ids}), and nothing else"
        yield error("gate", f"{text}: they have the last word on what leaves", NEW_KIT)


def authorization(content: dict[str, Any]) -> Iterator[Check]:
    """local/authorization.json: no right that a strict kit has not."""
    where = "local/authorization.json"
    wanted = kit_files.site_authorization()
    permissions = content.get("permissions")
    if set(content) != set(wanted) or content.get("format_version") != wanted["format_version"]:
        yield error("authorization", f"{where} is not of the one form", NEW_KIT)
    if not isinstance(permissions, dict):
        yield error("authorization", f"{where} has no permissions", NEW_KIT)
        return
    for role, rights in permissions.items():
        yield from _rights(role, rights, wanted["permissions"].get(role, {}))


def _rights(role: str, rights: object, wanted: dict[str, str]) -> Iterator[Check]:
    where = f"local/authorization.json: {role:.40}"
    if rights == "none":
        return
    if not isinstance(rights, dict):
        yield error("authorization", f"{where} has every right: {rights!r:.40}", NEW_KIT)
        return
    for right, value in rights.items():
        if value not in ("none", wanted.get(right, "none")):
            name = _NAMES.get(right, "authorization")
            allowed = wanted.get(right, "none")
            text = f"{where} has {right:.40}: {value!r:.40}, and a strict kit gives {allowed!r}"
            yield error(name, text, f"set it to {allowed!r} {RESTART}")
