"""`fedscan job check`: all that is wrong with a job, before anything runs."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from fedscan.federation import job_folder, job_form, job_privacy, job_start
from fedscan.federation.findings import Finding, JobError
from fedscan.federation.job_folder import APP_SERVER, APP_SITES, CLIENT_PATH, META, SERVER_PATH
from fedscan.plan import Plan, Submission

CLASS_PREFIX = "fedscan.federation.job."
_VARIABLE = re.compile(r"\{[A-Za-z_][A-Za-z0-9_]*\}")


def check(job: Path, stores: Mapping[str, Path] | None = None, init: Path | None = None) -> list[Finding]:
    """Every finding about the job folder, its plan, and (where given) the sites' stores and the init model."""
    stores = stores or {}
    if other := no_job(job):
        return [other]
    found = list(_files(job))
    configs: dict[Path, dict[str, Any]] = {}
    for relative in (Path(META), CLIENT_PATH, SERVER_PATH):
        try:
            configs[relative] = _load(job / relative)
        except JobError as error:
            found += error.findings
    named = job_form.sites_of(configs.get(Path(META), {}), APP_SITES) or []
    for relative in (CLIENT_PATH, SERVER_PATH):
        if relative in configs:
            found += _config(configs[relative], str(relative))
            found += job_form.config_findings(configs[relative], relative, len(named))
    plan = _plan(configs, found)
    if plan is not None:
        found += _meta(configs.get(Path(META), {}), plan)
        found += _counts(configs.get(Path(META), {}), plan, stores)
        found += job_privacy.findings(plan, {*named, *stores})
        found += job_start.findings(job, plan, init, stores)
        found += _stores(plan, stores)
        found += _shared(stores)
    return found


def _load(path: Path) -> dict[str, Any]:
    where = path.name
    try:
        data = job_form.parse(path)
    except OSError as error:
        raise JobError([Finding("error", where, f"cannot be read: {error.strerror}")]) from None
    except ValueError as error:
        raise JobError([Finding("error", where, f"is not JSON: {error}")]) from None
    if not isinstance(data, dict):
        raise JobError([Finding("error", where, f"must hold a JSON object, got {type(data).__name__}")])
    return data


def no_job(job: Path) -> Finding | None:
    """Another thing than a job: one finding then, since what a job's files lack would hide it."""
    if not job.is_dir():
        return Finding("error", str(job), "is no folder that is there: make a job with `fedscan job new`")
    files = [job / relative for relative in (META, CLIENT_PATH, SERVER_PATH)]
    if not any(file.exists() for file in files):
        return Finding("error", str(job), f"is no job (it has no {META}): make one with `fedscan job new`")
    try:
        configs = [_load(file) for file in files[1:]]
    except JobError:
        return None
    if not any("submission" in config for config in configs):
        return Finding("error", str(job), "is a template (no submission): make a job of it with `fedscan job new`")
    return None


def _files(job: Path) -> Iterator[Finding]:
    allowed = {Path(META), CLIENT_PATH, SERVER_PATH}
    for path in sorted(job.rglob("*")):
        relative = path.relative_to(job)
        if path.is_symlink():
            yield Finding("error", str(relative), "is a link: a job is three JSON files and nothing else")
        elif not path.is_dir() and relative not in allowed and path.name not in job_form.NVFLARE_FILES:
            yield Finding("error", str(relative), "does not belong in a job: a job ships no code and no tensors")
        elif path.is_dir() and path.name == "custom":
            yield Finding("error", str(relative), "a `custom` folder makes a job ship code, which every site refuses")


def _config(config: Mapping[str, Any], where: str) -> Iterator[Finding]:
    for path in class_paths(config):
        if not path.startswith(CLASS_PREFIX):
            yield Finding("error", where, f"names class {path!r}: sites allow {CLASS_PREFIX}* and nothing else")
    for key in ("plan", "submission"):
        if variable := _VARIABLE.search(json.dumps(config.get(key))):
            yield Finding("error", where, f"{key} holds the variable {variable.group()}: write the value itself")
    try:
        submission = Submission.model_validate(config.get("submission"))
    except ValidationError as error:
        if config.get("submission") is None:
            yield Finding("error", where, "has no submission: a template is made into a job by `fedscan job new`")
        else:
            yield from job_folder.validation_findings(error, where, "submission")
    else:
        if submission.is_expired():
            yield Finding("error", where, f"the submission expired at {submission.expires}: `fedscan job renew` it")


def class_paths(config: Mapping[str, Any]) -> Iterator[str]:
    """Every class that a configuration names, plan and submission apart."""
    return _class_paths({key: value for key, value in config.items() if key not in {"plan", "submission"}})


def _class_paths(node: object) -> Iterator[str]:
    if isinstance(node, dict):
        for key, value in node.items():
            if key in {"path", "name", "class_path"} and isinstance(value, str):
                yield value
            else:
                yield from _class_paths(value)
    elif isinstance(node, list):
        for item in node:
            yield from _class_paths(item)


def _plan(configs: Mapping[Path, Mapping[str, Any]], found: list[Finding]) -> Plan | None:
    plans: dict[Path, Plan] = {}
    for relative in (CLIENT_PATH, SERVER_PATH):
        if relative not in configs:
            continue
        try:
            plans[relative] = job_folder.parse_plan(configs[relative].get("plan"), str(relative))
        except JobError as error:
            found += error.findings
    if len(plans) == 2 and plans[CLIENT_PATH].digest != plans[SERVER_PATH].digest:
        found.append(Finding("error", "plan", "server and sites have different plans: make the job anew"))
    if len(plans) == 2 and configs[CLIENT_PATH].get("submission") != configs[SERVER_PATH].get("submission"):
        found.append(Finding("error", "submission", "server and sites have different submissions: make the job anew"))
    return plans.get(CLIENT_PATH)


def _meta(meta: Mapping[str, Any], plan: Plan) -> Iterator[Finding]:
    yield from job_form.meta_findings(meta, META)
    got = meta.get("min_clients")
    if got != plan.min_responses or type(got) is not int:
        yield Finding("error", META, f"min_clients must be the plan's min_responses={plan.min_responses}, got {got}")
    deploy = meta.get("deploy_map")
    sites = job_form.sites_of(meta, APP_SITES)
    if (
        not isinstance(deploy, dict)
        or set(deploy) != {APP_SERVER, APP_SITES}
        or deploy[APP_SERVER] != ["server"]
        or sites is None
    ):
        yield Finding("error", META, f"deploy_map must send {APP_SERVER} to the server and {APP_SITES} to the sites")
    elif "@ALL" in sites:
        yield Finding("error", META, "deploy_map must name the sites: @ALL would not keep two apps apart")
    else:
        yield from job_folder.site_name_findings(sites)


def _counts(meta: Mapping[str, Any], plan: Plan, stores: Mapping[str, Path]) -> Iterator[Finding]:
    named = set(job_form.sites_of(meta, APP_SITES) or [])
    yield from job_folder.site_name_findings(sorted(stores))
    if named and stores and named != set(stores):
        for site in sorted(named - set(stores)):
            yield Finding("error", f"--site {site}", "the job names this site: give its store")
        for site in sorted(set(stores) - named):
            yield Finding("error", f"--site {site}", f"the job is for {', '.join(sorted(named))} only")
    count = len(named | set(stores))
    if not count:
        yield Finding("note", "sites", "no site is named yet: `job run --site NAME=SITE.json` names them")
        return
    for field in ("min_responses", "clients_per_round"):
        value = getattr(plan, field)
        if value is not None and value > count:
            there = "is 1 site" if count == 1 else f"are {count} sites"
            yield Finding("error", f"plan.{field}", f"is {value}, but there {there}: lower it or add sites")


def _stores(plan: Plan, stores: Mapping[str, Path]) -> Iterator[Finding]:
    from ctslices.store import SliceStore, StoreError

    units: dict[str, str] = {}
    scales: dict[str, tuple[str, float | None]] = {}
    for site, path in sorted(stores.items()):
        where = f"--site {site}"
        try:
            store = SliceStore.open(path)
        except StoreError as error:
            yield Finding("error", where, str(error))
            continue
        units[site] = store.unit
        scales[site] = (store.manifest.values, store.manifest.field_mm)
        if store.size != plan.model.size:
            yield Finding("error", where, f"store has {store.size}-pixel slices, plan.model.size is {plan.model.size}")
        yield from _content(plan, store, where)
    if len({values for values, _ in scales.values()}) > 1:
        yield Finding("error", "stores", f"some hold HU and some grey values, which one model cannot learn: {scales}")
    elif len(set(scales.values())) > 1:
        yield Finding("warning", "stores", f"their fields differ, so the model has no scale in mm: {scales}")
    if images := sorted(site for site, unit in units.items() if unit == "image"):
        text = f"{', '.join(images)}: the unit is the image, not the patient; patients are unknown there"
        yield Finding("warning", "unit", text)


def _shared(stores: Mapping[str, Path]) -> Iterator[Finding]:
    places: dict[Path, list[str]] = {}
    for site, path in sorted(stores.items()):
        places.setdefault(path.resolve(), []).append(site)
    for sites in places.values():
        if len(sites) > 1:
            yield Finding("warning", "stores", f"{', '.join(sites)} have one and the same store: is a path wrong?")


def _content(plan: Plan, store: Any, where: str) -> Iterator[Finding]:
    if not len(store.indices("train")):
        yield Finding("error", where, "store has no slice in its train split")
    if plan.privacy is not None and plan.privacy.unit != store.unit:
        cure = "prepare it from files that name their patients" if store.unit == "image" else "set privacy.unit=patient"
        text = f"store's unit is the {store.unit}, plan.privacy.unit is the {plan.privacy.unit}: {cure}"
        yield Finding("error", where, text)
    if plan.model.classes and (unknown := sorted(set(store.labels) - set(plan.model.classes))):
        classes = list(plan.model.classes)
        yield Finding("error", where, f"store has labels {unknown} that plan.model.classes {classes} does not know")
    if not plan.model.classes and store.labels:
        yield Finding(
            "note", where, f"store has labels {list(store.labels)}; the plan is unconditional and ignores them"
        )
