"""Job folders: made from a template, copied into a run with a fresh submission. JSON only, never code."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from fedscan.federation import job_form, job_privacy
from fedscan.federation.findings import Finding, JobError
from fedscan.federation.places import CLIENT_CONFIG, SERVER_CONFIG
from fedscan.plan import Plan, Submission

META = "meta.json"
APP_SERVER = "app_server"
APP_SITES = "app_client"
CLIENT_PATH = Path(APP_SITES) / "config" / CLIENT_CONFIG
SERVER_PATH = Path(APP_SERVER) / "config" / SERVER_CONFIG
SITE_NAME = re.compile(r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$")
_NOT_SITES = {"server", "localhost"}
_LENGTHS = ("training.local_epochs", "training.local_steps")
"""Two ways to say how long a site trains in a round."""


def new(
    template: Path,
    out: Path,
    settings: Sequence[str] = (),
    sites: Sequence[str] = (),
    init: Path | None = None,
    patients: Mapping[str, int] | None = None,
    sample_rate: float | None = None,
) -> Plan:
    """Makes a job folder from a template: the plan resolved in full, a submission, the sites if they are named.

    `settings` are `field=value` or `part.field=value`, values in JSON (a bare word is a string). Under privacy,
    `patients` are the sizes that the sites declare, and the noise follows from the plan's target_epsilon. Raises
    JobError with all that is wrong; `out` then does not exist.
    """
    if out.exists():
        raise JobError([Finding("error", str(out), "exists already: choose another folder, nothing was overwritten")])
    if not (template / CLIENT_PATH).exists():
        raise JobError([Finding("error", str(template), "is no template: name one from jobs/, or another job")])
    client = _read(template / CLIENT_PATH)
    raw = client.get("plan")
    if not isinstance(raw, dict):
        raise JobError([Finding("error", str(template / CLIENT_PATH), "has no `plan`: is this a template from jobs/?")])
    _apply(raw, settings)
    if init is not None:
        raw["init_sha256"] = _model_sha256(init)
    sites = sites or list(patients or ())
    if bad := site_name_findings(sites):
        raise JobError(bad)
    plan = _resolved(raw, str(template / CLIENT_PATH), settings, patients, sample_rate)
    if bad := [found for found in job_privacy.findings(plan, sites) if found.level == "error"]:
        raise JobError(bad)
    partial = out.with_name(f".{out.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    out.parent.mkdir(parents=True, exist_ok=True)
    _copy_config_only(template, partial)
    _fill_in(partial, plan, Submission.new(), list(sites))
    os.replace(partial, out)
    if init is not None:
        write_json(_init_note(out), {"init": str(init.resolve()), "sha256": raw["init_sha256"]})
    return plan


def _resolved(
    raw: dict[str, Any],
    where: str,
    settings: Sequence[str],
    patients: Mapping[str, int] | None,
    sample_rate: float | None,
) -> Plan:
    try:
        job_privacy.fill_in(raw, settings, patients, sample_rate)
    except ValidationError as error:
        raise JobError(validation_findings(error, where, "plan")) from None
    return parse_plan(raw, where)


def copy_for_run(job: Path, to: Path, sites: Sequence[str], submission: Submission) -> None:
    """A run's own copy of a job with its sites and a fresh submission; nothing but the three JSON files is copied."""
    plan = read_plan(job)
    partial = to.with_name(f".{to.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    _copy_config_only(job, partial)
    _fill_in(partial, plan, submission, list(sites))
    shutil.rmtree(to, ignore_errors=True)
    os.replace(partial, to)


def renew(job: Path, submission: Submission) -> None:
    """Writes a new submission into a run's copy of its job."""
    for path in (job / CLIENT_PATH, job / SERVER_PATH):
        config = _read(path)
        config["submission"] = submission.model_dump(mode="json")
        write_json(path, config)


def read_plan(job: Path) -> Plan:
    """The job's plan. Raises JobError."""
    return parse_plan(_read(job / CLIENT_PATH).get("plan"), str(CLIENT_PATH))


def read_submission(job: Path) -> Submission:
    """The job's submission. Raises JobError."""
    try:
        return Submission.model_validate(_read(job / CLIENT_PATH).get("submission"))
    except ValidationError as error:
        raise JobError(validation_findings(error, str(CLIENT_PATH), "submission")) from None


def parse_plan(raw: object, where: str) -> Plan:
    """A plan from JSON data. Raises JobError with one finding a field."""
    try:
        return Plan.model_validate(raw)
    except ValidationError as error:
        raise JobError(validation_findings(error, where, "plan")) from None


def validation_findings(error: ValidationError, where: str, root: str) -> list[Finding]:
    """pydantic's complaints, one finding each: field, what was got, what is wanted."""
    found = []
    for item in error.errors(include_url=False):
        field = ".".join([root, *(str(part) for part in item["loc"])])
        text = item["msg"].removeprefix("Value error, ")
        got = item.get("input")
        shown = "" if isinstance(got, dict | list) or got is None else f", got {got!r}"[:120]
        if item["type"] == "extra_forbidden":
            text = "there is no such field: look for a misspelling, the fields are in docs/plan.md"
            shown = ""
        elif item["type"] == "tuple_type":
            text = """must be a JSON list, such as --set 'model.classes=["a","b"]'"""
        elif item["loc"] == ("plan_version",) and item["type"] == "literal_error":
            text = "it is of another version of fedscan: make the job anew with `fedscan job new`"
        found.append(Finding("error", where, f"{field}: {text}{shown}"))
    return found


def site_name_findings(sites: Sequence[str]) -> list[Finding]:
    """What is wrong with a list of site names."""
    form = "letters, digits, '.', '_' and '-', a letter or digit first, at most 63"
    found = [
        Finding("error", "sites", f"{s!r} is no site name: {'it is taken' if s in _NOT_SITES else form}")
        for s in sites
        if not SITE_NAME.fullmatch(s) or s in _NOT_SITES
    ]
    if doubled := sorted({s for s in sites if list(sites).count(s) > 1}):
        found.append(Finding("error", "sites", f"named more than once: {', '.join(doubled)}"))
    return found


def plan_of_network(job: Path) -> Plan:
    """A plain plan with the network, window, process and precision of a job or template. Raises JobError."""
    where = str(job / CLIENT_PATH)
    raw = _read(job / CLIENT_PATH).get("plan")
    if not isinstance(raw, dict):
        raise JobError([Finding("error", where, "has no `plan`: is this a template from jobs/?")])
    network = {part: raw[part] for part in ("model", "window", "diffusion") if part in raw}
    if isinstance(training := raw.get("training"), dict) and "precision" in training:
        network["training"] = {"precision": training["precision"]}
    return parse_plan(network, where)


def remembered_init(job: Path) -> Path | None:
    """The file that `job new --init` was given (noted beside the job folder, never in it), or the model of that
    SHA-256 that comes with the package."""
    from fedscan.training import public_start

    note = _init_note(job)
    if note.exists():
        return Path(_read(note)["init"])
    plan = _read(job / CLIENT_PATH).get("plan")
    sha256 = plan.get("init_sha256") if isinstance(plan, dict) else None
    return public_start.builtin(sha256) if isinstance(sha256, str) else None


def file_sha256(path: Path) -> str:
    """SHA-256 (hex) of a file's bytes. Raises JobError if it cannot be read."""
    digest = sha256()
    try:
        with path.open("rb") as file:
            while chunk := file.read(1 << 20):
                digest.update(chunk)
    except OSError as error:
        raise JobError([Finding("error", str(path), f"cannot be read: {error.strerror}")]) from None
    return digest.hexdigest()


def write_json(path: Path, data: object) -> None:
    """A JSON file, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    with partial.open("w", encoding="utf-8") as file:
        file.write(json.dumps(data, indent=2, ensure_ascii=False) + "\n")
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)


def _init_note(job: Path) -> Path:
    return job.with_name(job.name + ".init.json")


def _read(path: Path) -> dict[str, Any]:
    try:
        data = job_form.parse(path)
    except OSError as error:
        raise JobError([Finding("error", str(path), f"cannot be read: {error.strerror}")]) from None
    except ValueError as error:
        raise JobError([Finding("error", str(path), f"is not JSON: {error}")]) from None
    if not isinstance(data, dict):
        raise JobError([Finding("error", str(path), f"must hold a JSON object, got {type(data).__name__}")])
    return data


def _model_sha256(path: Path) -> str:
    from fedscan.training.model_file import load_model

    try:
        return load_model(path).sha256
    except OSError as error:
        raise JobError([Finding("error", str(path), f"cannot be read: {error.strerror}")]) from None
    except ValueError as error:
        raise JobError([Finding("error", str(path), f"is no model of ours: {error}")]) from None


def _apply(raw: dict[str, Any], settings: Sequence[str]) -> None:
    said = {setting.partition("=")[0] for setting in settings if not setting.endswith("=null")}
    if said >= set(_LENGTHS):
        raise JobError([Finding("error", "--set", f"{' and '.join(_LENGTHS)} exclude each other: set one")])
    for setting in settings:
        _set(raw, setting)


def _set(raw: dict[str, Any], setting: str) -> None:
    name, sign, text = setting.partition("=")
    if not sign or not name:
        raise JobError([Finding("error", f"--set {setting}", "must be field=value, such as rounds=20")])
    try:
        value: object = json.loads(text)
    except (ValueError, RecursionError):
        value = text
    *parts, last = name.split(".")
    place: dict[str, Any] = raw
    for part in parts:
        inner = place.setdefault(part, {})
        if not isinstance(inner, dict):
            raise JobError([Finding("error", f"--set {setting}", f"{part!r} is a value, not a part of the plan")])
        place = inner
    place[last] = value
    if name in _LENGTHS and value is not None:
        place["local_steps" if last == "local_epochs" else "local_epochs"] = None
    if name == "model.preset":
        place["unet"] = None


def _copy_config_only(source: Path, to: Path) -> None:
    for relative in (Path(META), CLIENT_PATH, SERVER_PATH):
        write_json(to / relative, _read(source / relative))


def _fill_in(job: Path, plan: Plan, submission: Submission, sites: list[str]) -> None:
    for path in (job / CLIENT_PATH, job / SERVER_PATH):
        config = _read(path)
        config["plan"] = plan.model_dump(mode="json")
        config["submission"] = submission.model_dump(mode="json")
        if path.name == SERVER_CONFIG:
            config["server"] = job_form.server_settings(len(sites))
        write_json(path, config)
    meta = _read(job / META)
    meta["name"] = plan.name
    meta["min_clients"] = plan.min_responses
    meta["deploy_map"] = deploy_map(sites)
    write_json(job / META, meta)


def deploy_map(sites: Sequence[str]) -> Mapping[str, list[str]]:
    """Two apps, so that the server's settings stay at the server."""
    return {APP_SERVER: ["server"], APP_SITES: sorted(sites)}
