"""The site's own judgement at deployment: NVFlare asks it before anything of a job is built."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from nvflare.apis.app_validation import AppValidator

from fedscan.federation import job_form, refusals, revocation, versions
from fedscan.federation.messages import REFUSED_BY_POLICY
from fedscan.federation.places import CLIENT_CONFIG
from fedscan.federation.revocation import RevocationError, Revocations
from fedscan.federation.site_certificates import ROOT
from fedscan.federation.submitter import verified_submitter
from fedscan.privacy import charging
from fedscan.privacy.approvals import Approvals
from fedscan.privacy.facts import Submitter
from fedscan.privacy.site_file import SITE_JSON, Site, SiteError
from fedscan.training.site_store import store_facts

CONFIG = Path("config") / CLIENT_CONFIG
_log = logging.getLogger(__name__)


class SiteValidator(AppValidator):  # type: ignore[misc]
    """Takes no arguments: NVFlare would send them to everybody. All it follows is in KIT/local/site.json.

    Whatever speaks against a job, the submitter reads one constant (another one where this site's software is why,
    whatever the job); the reasons are in the site's refusals.jsonl, and the plan is kept for `fedscan site approve
    --list`.
    """

    def validate(self, app_folder: str) -> tuple[str, dict[str, Any]]:
        """An empty text where the job may run here, else the constant."""
        app = Path(app_folder).resolve()
        try:
            if unfit := versions.unfit():
                _note_unfit(app, unfit)
                return versions.REFUSED_BY_VERSION, {}
            reasons = _judge(app)
        except Exception as error:  # noqa: BLE001 - whatever goes wrong here is a refusal, and its text stays here
            _log.error("a job could not be judged: %s", type(error).__name__)
            return REFUSED_BY_POLICY, {}
        return (REFUSED_BY_POLICY if reasons else ""), {}


def _note_unfit(app: Path, reasons: tuple[str, ...]) -> None:
    """Raises OSError."""
    local = _kit(app) / "local"
    try:
        state = Site.open(local / SITE_JSON).state
    except SiteError:
        state = local
    refusals.note(state, "deploy", reasons)


def _judge(app: Path) -> tuple[str, ...]:
    """Every reason against the job; they are noted at the site. Raises OSError where they cannot be."""
    kit = _kit(app)
    try:
        site = Site.open(kit / "local" / SITE_JSON)
    except SiteError as error:
        refusals.note(kit / "local", "deploy", [str(error)])
        return (str(error),)
    config, reasons = _read(app)
    if not reasons:
        submitter = verified_submitter(app, kit / "startup" / ROOT)
        reasons = _revoked(site, kit / "startup" / ROOT, submitter)
        if not reasons:
            verdict = charging.admit(
                site,
                config.get("plan"),
                config.get("submission"),
                submitter=submitter,
                store=store_facts(site.store),
            )
            reasons = verdict.reasons
    else:
        Approvals(site.state, site.key()).keep_refused(config.get("plan"), reasons)
    if reasons:
        refusals.note(site.state, "deploy", reasons)
    return reasons


def _revoked(site: Site, root_ca: Path, submitter: Submitter | None) -> tuple[str, ...]:
    if submitter is None:
        return ()  # the judgement below says so
    try:
        reason = Revocations(site.state / revocation.FILE, root_ca).reason(submitter.name, submitter.issued)
    except RevocationError as error:
        return (f"revocations: {error}",)
    return () if reason is None else (f"submitter: {reason}",)


def _kit(app: Path) -> Path:
    for folder in app.parents:
        if (folder / "startup" / "fed_client.json").is_file():
            return folder
    raise FileNotFoundError("the app folder lies in no kit of a site")


def _read(app: Path) -> tuple[dict[str, Any], tuple[str, ...]]:
    """The app's configuration, and where it is not of the one form: its files, and all it says beside the plan."""
    reasons = [f"{path}: does not belong in a job" for path in _strangers(app)]
    try:
        config = job_form.parse(app / CONFIG)
    except (OSError, ValueError) as error:
        return {}, (*reasons, f"{CONFIG}: cannot be read: {type(error).__name__}")
    if not isinstance(config, dict):
        return {}, (*reasons, f"{CONFIG}: must hold a JSON object")
    reasons += [f"{f.where}: {f.text}" for f in job_form.config_findings(config, CONFIG)]
    return config, tuple(reasons)


def _strangers(app: Path) -> Iterator[str]:
    for path in sorted(app.rglob("*")):
        relative = path.relative_to(app)
        known = relative in {CONFIG, CONFIG.parent} or (
            path.name in job_form.NVFLARE_FILES and relative.parent in {Path("."), CONFIG.parent}
        )
        if not known or path.is_symlink():
            yield str(relative)[:200]
