"""`fedscan site check KIT`: all that must hold together before a site may run, each finding with its cure.

The guard is the last word on what leaves only where no other class, no shipped code, no shell and no open port stands
beside it; so all of it is looked at together, against the functions that the kit builder writes from.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from datetime import datetime
from pathlib import Path

from fedscan.federation import site_files, site_machine, site_network, site_own, site_settings
from fedscan.federation.site_findings import Check
from fedscan.federation.site_kit import Kit

NAMES = (*site_settings.NAMES, *site_files.NAMES, *site_own.NAMES, *site_machine.NAMES, *site_network.NAMES)
"""The names of all checks."""


def check(folder: Path, *, network: bool = True, now: datetime | None = None) -> list[Check]:
    """One line of each check at least: `ok`, or what was found. Raises KitError where the folder is no site's kit.

    It changes nothing and never registers as the site. `network`: also dial the server and look at the site's port.
    """
    kit = Kit.open(folder)
    found = [
        *_judged(site_settings.NAMES, lambda: site_settings.findings(kit)),
        *_judged(site_files.NAMES, lambda: site_files.findings(kit, now)),
        *_judged(site_own.NAMES, lambda: site_own.findings(kit)),
        *_judged(site_machine.NAMES, lambda: site_machine.findings(kit, site_own.site_of(kit))),
    ]
    if network:
        found += _judged(site_network.NAMES, lambda: site_network.findings(kit))
    return found


def of_the_kit_alone(kit: Kit) -> list[Check]:
    """Errors in what the operator sent, whoever installs it: `site install` lays nothing over such a kit."""
    found = [*site_settings.findings(kit), *site_files.findings(kit)]
    # Modes and owner are the unpacking's, and `install` closes what is open.
    return [one for one in found if one.level == "error" and one.name not in ("modes", "owner")]


def _judged(names: Iterable[str], judge: Callable[[], Iterator[Check]]) -> list[Check]:
    found = list(judge())
    seen = {one.name for one in found}
    return [*found, *(Check(name, "ok") for name in names if name not in seen)]
