"""`fedscan site install`: the hospital's own part, laid over the kit that the federation's operator sent."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from filelock import FileLock, Timeout

from ctslices.files import sync_folder
from fedscan.federation import site_anchors, site_federations, site_preflight, site_scope
from fedscan.federation.site_kit import Kit, KitError
from fedscan.federation.site_modes import close_kit
from fedscan.privacy.limits import Limits
from fedscan.privacy.policy import Policy, Unreadable
from fedscan.privacy.site_file import SITE_JSON, Site, SiteError
from fedscan.privacy.site_init import init
from fedscan.privacy.store_facts import StoreFacts
from fedscan.training.site_store import store_facts


class InstallError(ValueError):
    """Nothing was installed, or an earlier installation stays as it was: why, and the cure."""


@dataclass(frozen=True)
class Choices:
    """What the hospital decides; None: the default, or what is there already."""

    store: Path | None = None
    private: Path | None = None
    anchor: Path | None = None
    """A folder for both anchors, or a file for the ledger's."""
    policy: Policy | None = None
    limits: Limits | None = None
    new_root: str | None = None
    """SHA-256 of a new federation root's public key, as the operator told it by another way."""
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
    kit = kit.resolve()
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
    _sweep(kit.local)
    store_of(choices, kit.folder)
    if errors := site_preflight.of_the_kit_alone(kit):
        raise InstallError("the kit is not a strict one:\n" + "\n".join(f"  {one.text}: {one.fix}" for one in errors))
    home = private_folder(kit.folder, choices.private)
    for what, place in (("store", choices.store), ("kit", kit.folder)):
        if place is not None and home.resolve().is_relative_to(place.resolve()):
            raise InstallError(f"--private: {home} lies in the {what} and would go with it: name a folder outside")
    with _locked(home):
        return _install_locked(kit, home, choices)


def _install_locked(kit: Kit, home: Path, choices: Choices) -> Installed:
    _sweep(home)
    try:
        known = site_federations.read(home)
        site_federations.check(known, kit, choices.new_root, choices.second_federation)
    except site_federations.ForeignKitError as error:
        raise InstallError(str(error)) from None
    done = close_kit(kit.folder)
    site, warnings, made = _site(kit, home, choices)
    done += made
    try:
        site, moved = site_anchors.settle(site, *site_anchors.places(choices.anchor, kit.site))
    except (site_anchors.AnchorError, SiteError) as error:
        raise InstallError(str(error)) from None
    done += moved
    if site_federations.note(home, known, kit):
        done.append(f"federation {kit.project!r} is noted as the one of this kit")
    done += _link(kit, site)
    try:
        if site_scope.set_site(kit.local, site.path.resolve()):
            done.append(f"{kit.local / site_scope.PRIVACY_JSON} lets jobs train under {site.path.resolve()}")
    except site_scope.ScopeError as error:
        raise InstallError(str(error)) from None
    return Installed(kit, site, tuple(done), warnings)


def _sweep(folder: Path) -> None:
    """What a killed process left of a file that it had not finished: `.NAME.PID.part` of a process that is gone."""
    for left in folder.glob(".*.part"):
        pid = left.name.split(".")[-2]
        if pid.isdecimal() and not os.path.exists(f"/proc/{pid}"):
            left.unlink(missing_ok=True)


@contextlib.contextmanager
def _locked(home: Path) -> Iterator[None]:
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
            _must_be_the_hospitals(kit, present)
            return present, _unlike(present, choices), []
        if present is not None:
            raise InstallError(
                f"{present.path} is the site {present.name!r}, and the kit is of {kit.site!r}: the operator must name "
                f"the site {present.name!r} in project.yml, or give this kit files of its own with --private"
            )
        if choices.store is None:
            raise InstallError("name the slice store with --store (`fedscan prepare` makes one)")
        made = init(
            home,
            name=kit.site,
            store=choices.store,
            anchor=site_anchors.places(choices.anchor, kit.site)[0],
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


def _must_be_the_hospitals(kit: Kit, present: Site) -> None:
    """A site.json that came with the kit would be the sender's policy."""
    file, folder = present.file, kit.folder.resolve()
    if any(place.resolve().is_relative_to(folder) for place in (file.policy, file.key, file.ledger)):
        raise InstallError(
            f"{present.path} keeps policy, key or ledger in the kit itself: if it came with the kit, delete it; if it "
            "is yours, move those files out of the kit and correct it"
        )


def _unlike(present: Site, choices: Choices) -> tuple[str, ...]:
    """What was asked for and is otherwise in the site that is kept."""
    file, policy = present.file, present.policy()
    asked = {
        "store": choices.store is not None and choices.store.resolve() != file.store.resolve(),
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
