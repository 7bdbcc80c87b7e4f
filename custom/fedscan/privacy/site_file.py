"""site.json: where a site keeps store, ledger, keys, policy and state, and what its machine gives: `Site.open`."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, ValidationError

from fedscan.plan_form import Float, Part
from fedscan.privacy.ledger import Ledger
from fedscan.privacy.limits import Limits
from fedscan.privacy.own_files import OwnFileError, read_key, read_object
from fedscan.privacy.policy import Policy, Unreadable, complaints

SITE_JSON = "site.json"


class SiteError(ValueError):
    """The site's own files are not as they must be: what, and the cure."""


def _as_path(value: object) -> object:
    return Path(value) if isinstance(value, str) and value else value


Place = Annotated[Path, BeforeValidator(_as_path)]
"""A path as text; a relative one counts from the folder of site.json."""


class SiteFile(Part):
    """The content of site.json."""

    site_version: Literal[1] = Field(description="version of this form")
    name: str = Field(
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$", description="the site's name in the federation and in plans"
    )
    store: Place = Field(description="the slice store that is trained on")
    ledger: Place = Field(description="the ledger; beside it lie the pseudonyms behind its fingerprints")
    anchor: Place = Field(description="counter and keyed hash of the ledger's head, best on another volume")
    audit_anchor: Place | None = Field(
        default=None, description="the audit log's anchor, likewise; null: beside the log, in the state folder"
    )
    key: Place = Field(description="the secret that chains the ledger and signs approvals")
    pseudonym_key: Place | None = Field(
        default=None, description="the store's key, which only `store forget` needs; null: STORE.key beside the store"
    )
    policy: Place = Field(description="the site's policy")
    state: Place = Field(description="folder for used nonces, approvals, refused plans and training state")
    keep_days: Float = Field(
        default=30.0, ge=0.0, le=36_500.0, description="finished jobs and runs are kept so long (`fedscan site clean`)"
    )
    limits: Limits = Field(default_factory=Limits, description="cores, memory, GPU, quiet hours")


@dataclass(frozen=True)
class Site:
    """An opened site.json, with all paths absolute."""

    path: Path
    file: SiteFile

    @classmethod
    def open(cls, path: Path | str) -> Site:
        """From SITE.json, or from KIT with its local/site.json (or site.json in the folder itself).

        Raises SiteError. Ledger, policy, key and store are read when they are asked for.
        """
        path = _find(Path(path))
        try:
            file = SiteFile.model_validate(read_object(path, SITE_JSON))
        except OwnFileError as error:
            raise SiteError(str(error)) from None
        except ValidationError as error:
            raise SiteError("; ".join(complaints(error, SITE_JSON)) + f" ({path})") from None
        home = path.resolve().parent
        places = ("store", "ledger", "anchor", "audit_anchor", "key", "pseudonym_key", "policy", "state")
        try:
            absolute = {
                name: home / place.expanduser() for name in places if (place := getattr(file, name)) is not None
            }
            site = cls(path=path, file=file.model_copy(update=absolute))
            site._check_places()
        except SiteError:
            raise
        except (OSError, RuntimeError, ValueError):
            raise SiteError(
                f"a path in {SITE_JSON} is no place that can be found (a circle of links, ~ of nobody, a NUL): "
                "name another"
            ) from None
        return site

    def _check_places(self) -> None:
        """What a store made anew must not take with it; links are followed."""
        names = ("store", "ledger", "anchor", "audit_anchor", "key", "pseudonym_key", "policy", "state")
        places = {name: place.resolve() for name in names if (place := getattr(self.file, name)) is not None}
        store = places.pop("store")
        for name, place in places.items():
            if store in (place, *place.parents):
                raise SiteError(f"{name} lies in the store and would go when that is made anew: move it")
        if places["anchor"] == places.get("audit_anchor"):
            raise SiteError("anchor and audit_anchor are one file: each log has its own")
        if places["ledger"] == places["anchor"]:
            raise SiteError("ledger and anchor are one file: the anchor must lie elsewhere, best on another volume")

    @property
    def name(self) -> str:
        """The site's name in the federation."""
        return self.file.name

    @property
    def store(self) -> Path:
        """The slice store."""
        return self.file.store

    @property
    def state(self) -> Path:
        """Folder for the site's state."""
        return self.file.state

    @property
    def limits(self) -> Limits:
        """What the machine gives."""
        return self.file.limits

    @property
    def pseudonym_key(self) -> Path:
        """The store's key file."""
        return self.file.pseudonym_key or self.store.with_name(self.store.name + ".key")

    def policy(self) -> Policy | Unreadable:
        """The policy as it is now; a missing, unreadable or unknown one is `Unreadable`, which the judge refuses."""
        return load_policy(self.file.policy)

    def key(self) -> bytes:
        """The secret of ledger and approvals. Raises SiteError."""
        try:
            return read_key(self.file.key, "the site's key")
        except OwnFileError as error:
            raise SiteError(str(error)) from None

    def open_ledger(self) -> Ledger:
        """The verified ledger. Raises SiteError (key) and LedgerError."""
        return Ledger.open(self.file.ledger, self.key(), self.file.anchor)


def load_policy(path: Path) -> Policy | Unreadable:
    """The policy in `path`, or why it cannot be followed."""
    try:
        return Policy.model_validate(read_object(path, "policy"))
    except OwnFileError as error:
        return Unreadable((str(error),))
    except ValidationError as error:
        return Unreadable(complaints(error, "policy"))


def anchor_warning(site: Site) -> Iterator[str]:
    """Whether ledger and anchor would be put back together."""
    try:
        together = site.file.anchor.parent.stat().st_dev == site.file.ledger.parent.stat().st_dev
    except OSError:
        return  # opening the ledger says more
    if together:
        yield (
            "anchor: it lies on the ledger's volume: a backup of that volume, put back, would be noticed by the "
            "server's copy alone; move the anchor to another volume (`fedscan site install KIT --anchor DIR`)"
        )


def _find(path: Path) -> Path:
    if not path.is_dir():
        return path
    for place in (path / "local" / SITE_JSON, path / SITE_JSON):
        if os.path.lexists(place):
            return place
    raise SiteError(f"{path} has no local/{SITE_JSON}: make one with `fedscan site init`")
