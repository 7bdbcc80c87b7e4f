"""PRIVATE/federations.json: which kits of which federations a site was installed for. A kit of another is noticed."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, ValidationError

from ctslices.files import write_whole
from fedscan.federation.site_kit import Kit
from fedscan.plan_form import Part
from fedscan.privacy.own_files import OwnFileError, read_object

FILE = "federations.json"


class ForeignKitError(ValueError):
    """The kit is not of the federation that this place was installed for."""


class Known(Part):
    """One kit that was installed."""

    kit: str = Field(description="its folder")
    project: str
    site: str
    root_sha256: str = Field(pattern=r"^[0-9a-f]{64}$", description="public key of its rootCA.pem")


class _File(Part):
    version: Literal[1] = 1
    kits: list[Known] = Field(default_factory=list)


def read(home: Path) -> tuple[Known, ...]:
    """The kits that were installed with these private files. Raises ForeignKitError where that cannot be known."""
    path = home / FILE
    try:
        if not path.exists():
            return ()
        return tuple(_File.model_validate(read_object(path, FILE)).kits)
    except (OwnFileError, ValidationError):
        raise ForeignKitError(
            f"{path} cannot be understood, so it is not known which federation was installed here: put it back from a "
            "copy, or delete it if you know this kit to be your federation's"
        ) from None


def check(known: tuple[Known, ...], kit: Kit, new_root: str | None, second_federation: bool) -> None:
    """Raises ForeignKitError where the kit is of another federation or site than what was installed."""
    before = [one for one in known if one.kit == str(kit.folder)]
    before = before or [one for one in known if one.project == kit.project]
    if not before:
        if known and not second_federation:
            raise ForeignKitError(
                f"this site belongs to the federation {known[0].project!r}, the kit to {kit.project!r}: if the site is "
                "to join both, with one budget for its patients, say --second-federation"
            )
        return
    one = before[-1]
    if one.project != kit.project:
        raise ForeignKitError(
            f"{kit.folder} was installed for the federation {one.project!r}, and now holds a kit of {kit.project!r}: "
            "unpack that one elsewhere"
        )
    if one.site != kit.site:
        text = f"this is the site {one.site!r}, and the kit is of {kit.site!r}: it was sent to the wrong site"
        raise ForeignKitError(text)
    if kit.root_sha256 not in (one.root_sha256, new_root):
        raise ForeignKitError(
            f"the kit calls itself {kit.project!r}, but another root key signed it: got {kit.root_sha256}, installed "
            f"was {one.root_sha256}. Ask the operator by telephone; if its root is new, say --new-root with the "
            "64 digits that the operator reads out"
        )


def note(home: Path, known: tuple[Known, ...], kit: Kit) -> bool:
    """Notes the kit as installed; False where it was already."""
    now = Known(kit=str(kit.folder), project=kit.project, site=kit.site, root_sha256=kit.root_sha256)
    if now in known:
        return False
    kept = [one for one in known if one.kit != now.kit]
    # After a new root the older kits' entries must not speak for the old one.
    root = {"root_sha256": now.root_sha256}
    kept = [one.model_copy(update=root) if one.project == now.project else one for one in kept]
    text = _File(kits=[*kept, now]).model_dump_json(indent=2)
    write_whole(home / FILE, (text + "\n").encode(), mode=0o600)
    return True
