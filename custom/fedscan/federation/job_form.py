"""The one form of a job's files: whatever else a file says is refused, so that nothing is left to interpretation."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from fedscan.federation.findings import Finding
from fedscan.federation.places import CLIENT_CONFIG, SERVER_CONFIG

MAX_FILE_BYTES = 1 << 20
NVFLARE_FILES = frozenset({".__nvfl_sig.json", ".__nvfl_submitter.crt"})
"""What signing leaves beside the files of a submitted job."""
_FILTERS: dict[str, Any] = {"task_data_filters": [], "task_result_filters": []}
_FORMS: dict[str, dict[str, Any]] = {
    CLIENT_CONFIG: {
        "format_version": 2,
        "executors": [
            {
                "tasks": ["train"],
                "executor": {"path": "fedscan.federation.job.executor.DiffusionExecutor", "args": {}},
            }
        ],
        "components": [],
        **_FILTERS,
    },
    SERVER_CONFIG: {
        "format_version": 2,
        "server": {},  # `server_settings`
        "workflows": [{"id": "fedavg", "path": "fedscan.federation.job.controller.DiffusionFedAvg", "args": {}}],
        "components": [{"id": "persistor", "path": "fedscan.federation.job.persistor.CheckpointPersistor", "args": {}}],
        **_FILTERS,
    },
}
POLL_S, MOST_POLLS_PER_S, LONGEST_POLL_S = 0.05, 60.0, 2.0
_META = {"name", "resource_spec", "min_clients", "mandatory_clients", "deploy_map"}
_OWN = {"plan", "submission"}


def server_settings(sites: int) -> dict[str, float]:
    """How often, in seconds, a site without work asks for some: soon after a round begins where there are few, and so
    seldom where there are many that asking alone does not keep the server busy."""
    return {"task_request_interval": min(LONGEST_POLL_S, max(POLL_S, round(sites / MOST_POLLS_PER_S, 2)))}


def parse(path: Path) -> object:
    """The JSON in `path`. Raises OSError, or ValueError (a name twice in one object, nesting without end, too long).

    A name twice would let two readers take two values.
    """
    if path.exists() and not path.is_file():
        raise ValueError("it is no plain file")
    with path.open("rb") as file:
        text = file.read(MAX_FILE_BYTES + 1)
    if len(text) > MAX_FILE_BYTES:
        raise ValueError(f"longer than {MAX_FILE_BYTES} bytes")
    try:
        return json.loads(text.decode("utf-8"), object_pairs_hook=_once)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    names = Counter(name for name, _ in pairs)
    if doubled := {name for name, times in names.items() if times > 1}:
        raise ValueError(f"{min(doubled)[:60]!r} is there twice in one object")
    return dict(pairs)


def config_findings(config: Mapping[str, Any], where: Path, sites: int = 0) -> Iterator[Finding]:
    """Where an app's configuration, plan and submission apart, is not of the one form for a job of so many sites."""
    form = dict(_FORMS[where.name])
    if "server" in form:
        form["server"] = server_settings(sites)
    for name in sorted(set(config) - set(form) - _OWN):
        yield Finding("error", str(where), f"there is no place for {name[:60]!r} in a job: delete it")
    for name, wanted in form.items():
        if json.dumps(config.get(name), sort_keys=True) != json.dumps(wanted, sort_keys=True):
            yield Finding("error", str(where), f"{name} must be {json.dumps(wanted)}: make the job anew")


def meta_findings(meta: Mapping[str, Any], where: str) -> Iterator[Finding]:
    """Where meta.json says more than a name, the sites and the smallest number of answers."""
    for name in sorted(set(meta) - _META):
        yield Finding("error", where, f"there is no place for {name[:60]!r} in a job: delete it")
    for name, empty in (("resource_spec", {}), ("mandatory_clients", [])):
        if meta.get(name, empty) != empty:
            yield Finding("error", where, f"{name} must be empty: sites decide for themselves")


def sites_of(meta: Mapping[str, Any], app: str) -> list[str] | None:
    """The sites that `deploy_map` names for `app`; None where it is no list of texts."""
    deploy = meta.get("deploy_map")
    named = deploy.get(app) if isinstance(deploy, dict) else None
    return named if isinstance(named, list) and all(isinstance(site, str) for site in named) else None
