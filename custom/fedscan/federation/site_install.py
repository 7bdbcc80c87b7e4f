"""`fedscan site install`: the hospital's own part, laid over the kit that the consortium's lead sent."""

from __future__ import annotations

import contextlib
import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from ctslices.files import sync_folder, write_whole
from fedscan.federation import site_certificates, site_federations
from fedscan.federation.places import PlacesError, SitePlaces, site_places
from fedscan.federation.site_kit import Kit, KitError
from fedscan.federation.site_modes import close_kit
from fedscan.privacy.limits import Limits
from fedscan.privacy.own_files import OwnFileError, read_object
from fedscan.privacy.policy import Policy, Unreadable
from fedscan.privacy.site_file import SITE_JSON, Site, SiteError
from fedscan.privacy.site_init import init
from fedscan.privacy.store_facts import StoreFacts
from fedscan.training.site_store import store_facts

PRIVACY_JSON = "privacy.json"


class InstallError(ValueError):
    """Nothing was installed, or an earlier installation stays as it was: why, and the cure."""


@dataclass(frozen=True)
class Choices:
    """What the hospital decides; None: the default, or what is there already."""

    store: Path | None = None
    private: Path | None = None
    anchor: Path | None = None
    policy: Policy | None = None
    limits: Limits | None = None
    new_root: str | None = None
    """SHA-256 of a new federation root's public key, as the lead told it by another way."""
    second_federation: bool = False


@dataclass(frozen=True)
class Installed:
    """What there is now, and what this call did to it."""

    kit: Kit
    site: Site
    done: tuple[str, ...]
    """One line for each thing that was changed; none: all was there."""
    warnings: tuple[str, ...] = field(default=())


def private_folder(kit: Path, private: Path | None = None) -> Path:
    """Where key, ledger, policy and state of a kit's site lie, or will: what was said, what an installed kit's link
    names, or KIT.private beside it."""
    link = kit / "local" / SITE_JSON
    if private is None and link.is_symlink() and link.exists():
        return link.resolve().parent
    kit = kit.absolute()
    return (private or kit.with_name(kit.name + ".private")).absolute()


def present_site(kit: Path, private: Path | None = None) -> Site | None:
    """The site that an earlier `install` or `init` made for this kit. Raises SiteError where it cannot be read."""
    local = kit / "local" / SITE_JSON
    own = private_folder(kit, private) / SITE_JSON
    for place in (local, own):
        if place.exists():
            return Site.open(place)
    return None


def store_of(choices: Choices, kit: Path) -> StoreFacts:
    """The store that would be installed. Raises InstallError where it is none."""
    try:
        present = present_site(kit, choices.private)
    except SiteError as error:
        raise InstallError(str(error)) from None
    store = choices.store or (present.store if present else None)
    if store is None:
        raise InstallError("name the slice store with --store (`fedscan prepare` makes one)")
    facts = store_facts(store)
    if isinstance(facts, Unreadable):
        raise InstallError(f"{'; '.join(facts.reasons)} ({store}): make it with `fedscan prepare`, or name another")
    return facts


def install(folder: Path, choices: Choices) -> Installed:
    """Makes the site's files where they are not there, and lets the kit's one privacy scope name them.

    Safe to run again, and after a kill. On a renewed kit of the same federation and site everything of the site's own
    is kept. Raises InstallError, OSError; the scope is written last, so that a half-installed kit refuses every job.
    """
    try:
        kit = Kit.open(folder)
    except KitError as error:
        raise InstallError(str(error)) from None
    store_of(choices, kit.folder)
    if errors := [flaw.text for flaw in site_certificates.flaws(kit.startup, kit.site) if not flaw.warning]:
        raise InstallError("certificates: " + "; ".join(errors) + ": ask the lead for a renewed kit")
    home = private_folder(kit.folder, choices.private)
    with _locked(home):
        return _install_locked(kit, home, choices)


def _install_locked(kit: Kit, home: Path, choices: Choices) -> Installed:
    known = site_federations.read(home)
    try:
        site_federations.check(known, kit, choices.new_root, choices.second_federation)
    except site_federations.ForeignKitError as error:
        raise InstallError(str(error)) from None
    done = [f"file modes: {line}" for line in close_kit(kit.folder)]
    site, warnings, made = _site(kit, home, choices)
    done += made
    if site_federations.note(home, known, kit):
        done.append(f"federation {kit.project!r} is noted as the one of this kit")
    done += _link(kit, site)
    done += _scope(kit, site.path.resolve())
    return Installed(kit, site, tuple(done), warnings)


@contextlib.contextmanager
def _locked(home: Path) -> Any:
    old_umask = os.umask(0o077)
    try:
        home.mkdir(mode=0o700, parents=True, exist_ok=True)
        with FileLock(home / ".install.lock", timeout=0, mode=0o600):
            yield
    except Timeout:
        raise InstallError(f"another `fedscan site install` is at work on {home}: wait for it") from None
    finally:
        os.umask(old_umask)


def _site(kit: Kit, home: Path, choices: Choices) -> tuple[Site, tuple[str, ...], list[str]]:
    try:
        present = present_site(kit.folder, home)
        if present is not None and present.name == kit.site:
            return present, _unlike(present, choices), []
        if present is not None:
            raise InstallError(
                f"{present.path} is the site {present.name!r}, and the kit is of {kit.site!r}: the lead must name the "
                f"site {present.name!r} in project.yml, or give this kit files of its own with --private"
            )
        if choices.store is None:
            raise InstallError("name the slice store with --store (`fedscan prepare` makes one)")
        made = init(
            home,
            name=kit.site,
            store=choices.store,
            anchor=choices.anchor,
            policy=choices.policy,
            limits=choices.limits,
        )
    except SiteError as error:
        raise InstallError(str(error)) from None
    file = made.site.file
    said = [
        f"site.json: {made.site.path}",
        f"ledger, empty or as it was there: {file.ledger}",
        f"its anchor: {file.anchor}",
        f"policy: {file.policy}",
    ]
    return made.site, made.warnings, said


def _unlike(present: Site, choices: Choices) -> tuple[str, ...]:
    """What was asked for and is otherwise in the site that is kept."""
    file, policy = present.file, present.policy()
    asked = {
        "store": choices.store is not None and choices.store.resolve() != file.store.resolve(),
        "anchor": choices.anchor is not None and choices.anchor.resolve() != file.anchor.resolve(),
        "limits": choices.limits is not None and choices.limits != file.limits,
    }
    kept = f"the one in {present.path} was kept: to change it, edit that file"
    said = [f"{name}: {kept}" for name, is_unlike in asked.items() if is_unlike]
    if choices.policy is not None and choices.policy != policy:
        said.append(f"policy: the one that is there was kept: to change it, edit {file.policy}")
    return tuple(said)


def _link(kit: Kit, site: Site) -> list[str]:
    """KIT/local/site.json, which NVFlare's validator reads: a link, so that a renewed kit finds the same file."""
    place = kit.local / SITE_JSON
    wanted = site.path.resolve()
    if place.exists() and place.resolve() == wanted:
        return []
    temporary = place.with_name(f".{SITE_JSON}.{os.getpid()}.part")
    temporary.unlink(missing_ok=True)
    temporary.symlink_to(wanted)
    os.replace(temporary, place)
    sync_folder(place.parent)
    return [f"{place} names {wanted}"]


def scope_of(privacy: dict[str, Any]) -> dict[str, Any]:
    """The one scope of privacy.json. Raises InstallError."""
    scopes = privacy.get("scopes")
    if isinstance(scopes, list) and len(scopes) == 1 and isinstance(scopes[0], dict):
        return scopes[0]
    raise InstallError(
        f"local/{PRIVACY_JSON} has not one scope: this kit was not made by Fedscan's builder "
        "(site_configs/project.yml); ask the lead for one that was"
    )


def is_scope_of(properties: object, site_file: Path) -> bool:
    """Whether a scope's properties name this site.json, and nothing else."""
    try:
        return site_places(properties) == SitePlaces(site_file=site_file)
    except PlacesError:
        return False


def _scope(kit: Kit, site_file: Path) -> list[str]:
    path = kit.local / PRIVACY_JSON
    try:
        privacy = read_object(path, f"local/{PRIVACY_JSON}")
    except OwnFileError as error:
        raise InstallError(str(error)) from None
    scope = scope_of(privacy)
    properties = scope.get("properties") or {}
    if is_scope_of(properties, site_file):
        return []
    if properties:
        raise InstallError(
            f"local/{PRIVACY_JSON}: the scope's properties are set already, and not by this command "
            f"({', '.join(sorted(map(str, properties)))}): set them to {{}} if this kit is to be installed"
        )
    scope["properties"] = {"site_file": str(site_file)}
    write_whole(path, (json.dumps(privacy, indent=2) + "\n").encode(), mode=0o600)
    return [f"{path} lets jobs train under {site_file}"]
