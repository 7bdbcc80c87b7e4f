"""Where a process of a site keeps what it notes, found from NVFlare's context or from the kit."""

from __future__ import annotations

import json
from pathlib import Path

from fedscan.federation.places import PlacesError, site_places
from fedscan.federation.site_setup import SiteSetup
from fedscan.privacy.site_file import SiteError


def state_of(local: Path) -> Path:
    """The site's state folder from KIT/local; KIT/local itself where the kit is not installed, or not readable."""
    try:
        privacy = json.loads((local / "privacy.json").read_text(encoding="utf-8"))
        return SiteSetup.of(site_places(privacy["scopes"][0]["properties"])).state
    except (OSError, ValueError, KeyError, IndexError, TypeError, PlacesError, SiteError):
        return local


def notes_of(kit: Path) -> Path:
    """The folder that holds audit/: a server's kit, a site's state folder."""
    return kit if (kit / "startup" / "fed_server.json").is_file() else state_of(kit / "local")
