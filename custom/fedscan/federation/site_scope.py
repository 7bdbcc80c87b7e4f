"""The one scope of a kit's local/privacy.json, whose properties name the hospital's own files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ctslices.files import write_whole
from fedscan.federation.places import PlacesError, SitePlaces, site_places
from fedscan.privacy.own_files import OwnFileError, read_object

PRIVACY_JSON = "privacy.json"


class ScopeError(ValueError):
    """The kit's privacy.json cannot name a site: why, and the cure."""


def properties(local: Path) -> dict[str, Any]:
    """What the scope names; empty while nothing is installed. Raises ScopeError."""
    found = _scope(_read(local)).get("properties") or {}
    if not isinstance(found, dict):
        raise ScopeError(f"local/{PRIVACY_JSON}: the scope's properties are no object")
    return found


def names(found: dict[str, Any], site_file: Path) -> bool:
    """Whether a scope's properties name this site.json, and nothing else."""
    try:
        return site_places(found) == SitePlaces(site_file=site_file)
    except PlacesError:
        return False


def set_site(local: Path, site_file: Path) -> bool:
    """Lets jobs train under this site.json; False where they do already. Raises ScopeError, OSError."""
    privacy = _read(local)
    found = properties(local)
    if names(found, site_file):
        return False
    if found:
        raise ScopeError(
            f"local/{PRIVACY_JSON}: the scope's properties are set already, and not by this command "
            f"({', '.join(sorted(map(str, found)))[:200]}): set them to {{}} if this kit is to be installed"
        )
    _scope(privacy)["properties"] = {"site_file": str(site_file)}
    write_whole(local / PRIVACY_JSON, (json.dumps(privacy, indent=2) + "\n").encode(), mode=0o600)
    return True


def _read(local: Path) -> dict[str, Any]:
    try:
        return read_object(local / PRIVACY_JSON, f"local/{PRIVACY_JSON}")
    except OwnFileError as error:
        raise ScopeError(str(error)) from None


def _scope(privacy: dict[str, Any]) -> dict[str, Any]:
    scopes = privacy.get("scopes")
    if isinstance(scopes, list) and len(scopes) == 1 and isinstance(scopes[0], dict):
        return scopes[0]
    raise ScopeError(
        f"local/{PRIVACY_JSON} has not one scope: this kit was not made by Fedscan's builder "
        "(site_configs/project.yml); ask the operator for one that was"
    )
