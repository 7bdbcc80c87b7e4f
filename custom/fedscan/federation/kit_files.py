"""What stands in a strict kit: pure functions from NVFlare's defaults, for the builder that lays them and the checks.

Each gives the same again for what it has given, so that a kit can be held against them.
"""

from __future__ import annotations

import copy
from typing import Any

_JOB = "fedscan.federation.job"
SITE_CLASSES = (f"{_JOB}.executor.DiffusionExecutor",)
SERVER_CLASSES = (f"{_JOB}.controller.DiffusionFedAvg", f"{_JOB}.persistor.CheckpointPersistor")
"""All that a job may name at a site, and at the server: full names. A prefix of their modules would also admit what
those import."""
VALIDATOR = "fedscan.federation.validator.SiteValidator"
GUARD = "fedscan.federation.guard.OutboundGuard"
GATE = "fedscan.federation.gate.OutboundGate"
"""The site's own classes: named by its own files, never by a job."""
SCOPE = "fedscan"
KIT_VARIABLE = "FEDSCAN_KIT"
"""Environment variable with the kit's folder, set by the kit's start scripts; the server's stores lie below it."""
HEART_BEAT_TIMEOUT_S = 60
"""A site that was not heard for so long counts as gone; it sends a heartbeat every 10 s."""
JOB_STORE = "jobs-storage"
SNAPSHOT_STORE = "snapshot-storage"
LOG_FILE_BYTES = 5 * 1024 * 1024
LOG_FILES_KEPT = 4

BYTE_COUNTER = "fedscan.federation.byte_counter.SiteByteCounter"
PRIVACY_COMPONENTS: tuple[dict[str, Any], ...] = ({"id": "fedscan_gate", "path": GATE, "args": {}},)
"""Built in a site's job process after all of the job's own components, so that they have the last word."""
_RECORDER = {"id": "fedscan_audit", "path": "fedscan.federation.audit_recorder.AuditRecorder", "args": {}}
PARENT_COMPONENTS: tuple[dict[str, Any], ...] = (
    {"id": "fedscan_byte_counter", "path": BYTE_COUNTER, "args": {}},
    _RECORDER,
)
"""Ours in a site's parent process."""

SERVER_COMPONENTS: tuple[dict[str, Any], ...] = (
    {"id": "fedscan_keeper", "path": "fedscan.federation.server_keeper.ServerKeeper", "args": {}},
    {"id": "fedscan_second_start", "path": "fedscan.federation.second_start.SecondStart", "args": {}},
    _RECORDER,
)
"""Ours in the server's parent process."""

_LOG_COMPONENTS = {"log_receiver", "site_log_streamer"}
_RIGHTS = (
    "submit_job",
    "clone_job",
    "manage_job",
    "download_job",
    "view",
    "operate",
    "shell_commands",
    "byoc",
    "server-predeployed-flwr",
    # Commands of these that change what a running process writes to its logs, or call into it, and those of none:
    "configure_job_log",
    "configure_site_log",
    "call",
    "get_job_log",
    "report_version",
    "app_command",
)
"""NVFlare's rights by category, then single commands, which come before their category."""
STRICT_LINES = """umask 077
export NVFLARE_SECURE_LOGGING=true
# Code comes from the installed packages alone, not from the folder that this was started in.
export PYTHONSAFEPATH=1
# Bytes of tensors that are asked for at once: each asking takes a way there and back.
export NVFLARE_TENSOR_DOWNLOAD_CHUNK_SIZE=8388608
# A message beside its tensors is small. NVFlare's own bound is 4 GiB, laid out in memory before a byte has come.
export NVFLARE_STREAMING_MAX_BLOB_SIZE=67108864
# Where a line breaks while tensors are fetched nobody hears of it: so long until the part is asked for again.
export NVFLARE_TENSOR_STREAMING_PER_REQUEST_TIMEOUT=60
"""
_REPLACED = {
    "export PYTHONPATH=/local/custom:$PYTHONPATH\n": "unset PYTHONPATH\n",
    'echo "WORKSPACE set to $WORKSPACE"\n': (
        f'echo "WORKSPACE set to $WORKSPACE"\nexport {KIT_VARIABLE}="$WORKSPACE"\ncd "$WORKSPACE" || exit 1\n'
    ),
}
ROLES = ("project_admin", "org_admin", "lead", "member")


def site_resources(default: dict[str, Any]) -> dict[str, Any]:
    """A site's local/resources.json from NVFlare's default of the same kit."""
    resources = _with_own_components(default, PARENT_COMPONENTS, SITE_CLASSES)
    resources["allow_log_streaming"] = False
    # An empty site_config keeps NVFlare from sending unknown keys of this file to the server and on to other sites.
    resources["client"]["site_config"] = {}
    resources["app_validator"] = {"path": VALIDATOR, "args": {}}
    return resources


def site_privacy(properties: dict[str, Any] | None = None) -> dict[str, Any]:
    """A site's local/privacy.json: one scope, so that neither a job nor the server has another one to ask for.

    Without properties the site refuses to train: `fedscan site install` sets them.
    """
    scope = {
        "name": SCOPE,
        "properties": properties or {},
        "task_data_filters": [],
        "task_result_filters": [{"path": GUARD, "args": {}}],
    }
    return {"scopes": [scope], "default_scope": SCOPE, "components": copy.deepcopy(list(PRIVACY_COMPONENTS))}


def site_authorization() -> dict[str, Any]:
    """A site's local/authorization.json: a lead's signed job may come; all else is for the site's own organisation."""
    return _policy(
        project_admin={},
        org_admin={"manage_job": "o:site", "view": "o:site", "operate": "o:site"},
        lead={"submit_job": "any", "view": "o:site"},
        member={"view": "o:site"},
    )


def server_resources(default: dict[str, Any]) -> dict[str, Any]:
    """The server's local/resources.json from NVFlare's default of the same kit."""
    resources = _with_own_components(default, SERVER_COMPONENTS, SERVER_CLASSES)
    resources["servers"][0]["heart_beat_timeout"] = HEART_BEAT_TIMEOUT_S
    for component in resources["components"]:
        if component["id"] == "job_manager":
            component["args"]["uri_root"] = f"{{${KIT_VARIABLE}}}/{JOB_STORE}"
    storage = resources["snapshot_persistor"]["args"]["storage"]
    storage["args"]["root_dir"] = f"{{${KIT_VARIABLE}}}/{SNAPSHOT_STORE}"
    return resources


def server_authorization() -> dict[str, Any]:
    """The server's local/authorization.json: leads submit, each its own; the coordinator runs the server."""
    own = "n:submitter"
    return _policy(
        project_admin={"manage_job": "any", "download_job": "any", "view": "any", "operate": "any"},
        org_admin={"manage_job": "o:submitter", "view": "any", "operate": "o:site"},
        lead={
            "submit_job": "any",
            "clone_job": own,
            "manage_job": own,
            "download_job": own,
            "view": "any",
            "app_command": own,  # asks a running job for its rounds
        },
        member={"view": "any"},
    )


def server_places() -> dict[str, Any]:
    """The server's local/server.json: runs and shelf below its kit, until its operator names other places."""
    return {"run_folder": "runs/{run_id}", "shelf": "shelf"}


def log_config(default: dict[str, Any]) -> dict[str, Any]:
    """local/log_config.json: NVFlare's own, with files that cannot fill a disk and a console without colours."""
    config = copy.deepcopy(default)
    for handler in config["handlers"].values():
        if "maxBytes" in handler:
            handler |= {"maxBytes": LOG_FILE_BYTES, "backupCount": LOG_FILES_KEPT}
    config["handlers"]["consoleHandler"]["formatter"] = "baseFormatter"
    return config


def listening_host() -> dict[str, Any]:
    """Of a parent process for its own job processes: loopback, any free port, with certificates on both sides.

    Without it NVFlare opens a loopback port at which any local process commands the parent.
    """
    return {
        "scheme": "tcp",
        "default_host": "localhost",
        "host_names": ["127.0.0.1"],
        "connection_security": "mtls",
    }


def start_script(script: str) -> str:
    """A kit's start script that makes private files, logs no exception texts, and loads no code but the installed."""
    shebang, rest = script.split("\n", 1)
    if rest.startswith(STRICT_LINES):
        return script
    for theirs, ours in _REPLACED.items():
        rest = rest.replace(theirs, ours)
    return f"{shebang}\n{STRICT_LINES}{rest}"


def start_script_flaws(script: str) -> str:
    """What a server's or site's sub_start.sh lacks of `start_script`, as text; empty: nothing."""
    wanted = (STRICT_LINES, *_REPLACED.values())
    return ", ".join(repr(lines.strip().splitlines()[0]) for lines in wanted if lines not in script)


def _with_own_components(
    default: dict[str, Any], ours: tuple[dict[str, Any], ...], classes: tuple[str, ...]
) -> dict[str, Any]:
    """The default with our allow-list, without what sends or takes logs, and with our own components."""
    resources = copy.deepcopy(default)
    resources["class_list_enforcement_mode"] = "enforce"
    resources["class_allow_list"] = list(classes)
    replaced = _LOG_COMPONENTS | {c["id"] for c in ours}
    kept = [c for c in resources["components"] if c["id"] not in replaced]
    resources["components"] = [*kept, *copy.deepcopy(list(ours))]
    return resources


def _policy(**roles: dict[str, str]) -> dict[str, Any]:
    """Every right is named for every role, so that a new default of NVFlare's opens nothing."""
    permissions = {role: {right: roles[role].get(right, "none") for right in _RIGHTS} for role in ROLES}
    return {"format_version": "1.0", "permissions": permissions}
