"""The hospital's own part of an installed kit: that it is there, is this site's, and is fit for jobs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from fedscan.federation import site_anchors, site_scope
from fedscan.federation.site_findings import Check, error, warning
from fedscan.federation.site_kit import Kit
from fedscan.privacy import site_check
from fedscan.privacy.site_file import SITE_JSON, Site, SiteError
from fedscan.training.site_store import store_facts

NAMES = ("installed", "own-files")
_INSTALL = "fedscan site install KIT --store STORE"


def site_of(kit: Kit) -> Site | None:
    """The site that the kit is installed for; None where that cannot be known."""
    try:
        return Site.open(kit.local / SITE_JSON)
    except SiteError:
        return None


def findings(kit: Kit) -> Iterator[Check]:
    """Everything wrong with it."""
    try:
        site = Site.open(kit.local / SITE_JSON)
    except SiteError as trouble:
        yield error("installed", f"local/{SITE_JSON}: {trouble}", _INSTALL)
        return
    if site.name != kit.site:
        text = f"local/{SITE_JSON} is of the site {site.name!r}, the certificate of {kit.site!r}"
        yield error("installed", text, "install the kit that belongs here, or correct `name` in site.json")
    yield from _scope(kit, site)
    yield from _places(kit, site)
    for level, text in site_anchors.flaws(site):
        yield (error if level == "error" else warning)("own-files", text, "as it says; docs/site.md has the reasons")
    for finding in site_check.check(site, store_facts(site.store)):
        yield Check("own-files", finding.level, finding.text, _cure(finding.text))


def _cure(text: str) -> str:
    if "policy min_patients" in text:
        return "prepare more patients' exports into the store; or the data-protection officer lowers it in site.json"
    if "policy allow_image_unit" in text:
        return "prepare the store from exports that tell patients; or the data-protection officer allows images"
    return "as it says; docs/site.md has the reasons"


def _scope(kit: Kit, site: Site) -> Iterator[Check]:
    try:
        found = site_scope.properties(kit.local)
    except site_scope.ScopeError:
        return  # the settings have a finding on that
    if not found:
        yield error("installed", "local/privacy.json names no site.json: every job is refused", _INSTALL)
    elif not site_scope.names(found, site.path.resolve()):
        text = "local/privacy.json: the scope's properties are not those that `site install` sets"
        fix = f'set "properties" to {{}}, then {_INSTALL}'
        yield error("installed", f"{text}: jobs would train under other files", fix)


def _places(kit: Kit, site: Site) -> Iterator[Check]:
    """What decides and what is secret must not lie where NVFlare's own commands read, or where a new kit lands."""
    file = site.file
    inside = [
        name
        for name, place in (
            ("policy", file.policy),
            ("key", file.key),
            ("ledger", file.ledger),
            ("anchor", file.anchor),
            ("audit_anchor", file.audit_anchor or file.state),
            ("state", file.state),
            ("store", file.store),
        )
        if _is_within(place, kit.folder)
    ]
    if inside:
        text = (
            f"in the kit lie: {', '.join(inside)}; NVFlare's commands can look into it, and a renewed kit replaces it"
        )
        yield error("installed", text, f"move them out and correct {site.path.resolve()}")


def _is_within(place: Path, folder: Path) -> bool:
    return place.resolve().is_relative_to(folder.resolve())
