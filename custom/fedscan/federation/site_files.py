"""The kit's files on this machine: owner, modes, links, start scripts, certificates."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

from cryptography import x509

from fedscan.federation import site_certificates, site_originals
from fedscan.federation.site_findings import Check, error, warning
from fedscan.federation.site_kit import Kit
from fedscan.federation.site_modes import strays
from fedscan.federation.site_rules import NEW_KIT, RESTART
from fedscan.privacy.site_file import SITE_JSON

NAMES = ("modes", "owner", "links", "start-scripts", "certificates", "renewal")
RENEW = (
    "ask the operator for a renewed kit, lay it in this one's place and run `fedscan site install KIT`: ledger and "
    "policy are kept"
)
SET_CLOCK = "turn on NTP (timedatectl set-ntp true); if this clock is right, tell the operator"


def findings(kit: Kit, now: datetime | None = None) -> Iterator[Check]:
    """Everything wrong with them."""
    yield from _modes_and_owner(kit)
    yield from _links(kit)
    yield from _scripts(kit)
    for flaw in site_certificates.flaws(kit.startup, kit.site, now):
        if flaw.warning:
            yield warning("renewal", flaw.text, RENEW)
        elif flaw.clock:
            yield error("certificates", flaw.text, SET_CLOCK)
        else:
            yield error("renewal" if flaw.expiry else "certificates", flaw.text, RENEW if flaw.expiry else NEW_KIT)


def _modes_and_owner(kit: Kit) -> Iterator[Check]:
    open_ones, foreign = [], []
    for path, about in strays(kit.folder):
        if not stat.S_ISLNK(about.st_mode) and about.st_mode & 0o077:
            open_ones.append(f"{_short(path, kit)} ({stat.S_IMODE(about.st_mode):04o})")
        if about.st_uid != os.geteuid():
            foreign.append(_short(path, kit))
    if open_ones:
        fix = f"fedscan site install {kit.folder} (it closes them), or chmod -R go-rwx {kit.folder}"
        yield error("modes", f"group or others may read or write {_some(open_ones)}", fix)
    if foreign:
        fix = f"check as the user who starts the site, or chown -R USER {kit.folder}"
        yield error("owner", f"not this user's: {_some(foreign)}", fix)
    if os.geteuid() == 0:
        fix = "make an own user for it (docs/hospital-it.md)"
        yield warning("owner", "this is root: a site needs no right of root", fix)


def _links(kit: Kit) -> Iterator[Check]:
    """The one link of an installed kit is local/site.json."""
    found = [
        _short(path, kit)
        for path, about in strays(kit.folder)
        if stat.S_ISLNK(about.st_mode) and path != kit.local / SITE_JSON
    ]
    if found:
        fix = f"put the files themselves there {RESTART}; what a stopped `fedscan site install` left, it removes itself"
        yield error("links", f"links in the kit: {_some(found)}", fix)


def _scripts(kit: Kit) -> Iterator[Check]:
    """The operator's scripts run at the hospital: they must be NVFlare's own, made private by our builder."""
    try:
        wanted = site_originals.scripts(kit.site, _organisation(kit))
    except ValueError as trouble:
        yield error("start-scripts", str(trouble), NEW_KIT)
        return
    other = [name for name, text in wanted.items() if _text(kit.startup / name) != text]
    if other:
        text = (
            f"startup/{', startup/'.join(other)} are not those that the installed NVFlare and Fedscan make (umask 077, "
            "secure logging, no other code)"
        )
        fix = f"{NEW_KIT}; if the operator provisions with another version, install that one here"
        yield error("start-scripts", text, fix)


def _organisation(kit: Kit) -> str:
    certificate = site_certificates.load(kit.startup / "client.crt")
    names = certificate.subject.get_attributes_for_oid(x509.NameOID.ORGANIZATION_NAME)
    return str(names[0].value) if len(names) == 1 else ""


def _text(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, ValueError):
        return None


def _short(path: Path, kit: Kit) -> str:
    return str(path.relative_to(kit.folder)) if path != kit.folder else "the kit's folder"


def _some(names: list[str], most: int = 5) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
