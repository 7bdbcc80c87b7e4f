"""The files of a new site: key, ledger with its anchor, policy, state, and site.json last."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from ctslices.files import sync_folder, write_whole
from fedscan.privacy.ledger import Ledger, LedgerError
from fedscan.privacy.limits import Limits
from fedscan.privacy.own_files import KEY_BYTES, OwnFileError, read_bounded, read_key
from fedscan.privacy.policy import Policy, Unreadable, complaints
from fedscan.privacy.site_file import SITE_JSON, Site, SiteError, SiteFile, anchor_warning, load_policy


@dataclass(frozen=True)
class Made:
    """A new site, and what its people should know."""

    site: Site
    warnings: tuple[str, ...]


def policy_with(settings: Sequence[str]) -> Policy:
    """The private policy of a new site with `field=value` set, values in JSON (a bare word is a text). SiteError."""
    fields: dict[str, Any] = {"policy_version": 1}
    for setting in settings:
        name, sign, text = setting.partition("=")
        if not sign:
            raise SiteError(f"--set {setting}: must be field=value, such as max_epsilon=4")
        try:
            fields[name] = json.loads(text)
        except (ValueError, RecursionError):
            fields[name] = text
    try:
        return Policy.model_validate(fields)
    except ValidationError as error:
        raise SiteError("; ".join(complaints(error, "--set"))) from None


def init(
    folder: Path,
    *,
    name: str,
    store: Path,
    anchor: Path | None = None,
    private: Path | None = None,
    policy: Policy | None = None,
    limits: Limits | None = None,
) -> Made:
    """Makes a site in `folder`, or for a kit (a folder that has `local`) in `private` with KIT/local/site.json.

    What is there already (of an `init` that was stopped, or brought from another machine) is kept: key, ledger,
    policy. Raises SiteError, OSError.
    """
    kit = (folder / "local").is_dir()
    site_json = folder / "local" / SITE_JSON if kit else folder / SITE_JSON
    if os.path.lexists(site_json):
        raise SiteError(f"{site_json} is there already: nothing was changed; to change the site, edit that file")
    home = (private or folder.with_name(folder.name + ".private") if kit else private or folder).absolute()
    home.mkdir(mode=0o700, parents=True, exist_ok=True)
    os.chmod(home, 0o700)
    file = _site_file(name, store, home, anchor, limits)
    warnings = _other_ledger(file)
    key = _key(file.key)
    _ledger(file, key)
    _note_ledger(file)
    if not os.path.lexists(file.policy):
        _write_json(file.policy, (policy or Policy(policy_version=1)).model_dump(mode="json"))
    elif policy is not None and load_policy(file.policy) != policy:
        warnings += ("policy: the one that is there was kept as it is",)
    file.state.mkdir(mode=0o700, exist_ok=True)
    _write_json(site_json, _relative(file.model_dump(mode="json"), site_json.absolute().parent))
    try:
        site = Site.open(site_json)
    except SiteError:
        site_json.unlink()
        raise
    return Made(site, warnings + _warnings(site))


def _site_file(name: str, store: Path, home: Path, anchor: Path | None, limits: Limits | None) -> SiteFile:
    try:
        return SiteFile(
            site_version=1,
            name=name,
            store=store.absolute(),
            ledger=home / "ledger.jsonl",
            anchor=(anchor or home / "ledger.anchor").absolute(),
            key=home / "ledger.key",
            policy=home / "policy.json",
            state=home / "state",
            limits=limits or Limits(),
        )
    except ValidationError as error:
        raise SiteError("; ".join(complaints(error, SITE_JSON))) from None


def _relative(fields: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Places within the folder of site.json as relative paths, so that the folder can be moved whole."""

    def short(value: object) -> object:
        inside = isinstance(value, str) and Path(value).is_relative_to(folder)
        return str(Path(str(value)).relative_to(folder)) if inside else value

    return {name: short(value) for name, value in fields.items()}


def _key(path: Path) -> bytes:
    if not os.path.lexists(path):
        write_whole(path, (secrets.token_hex(KEY_BYTES) + "\n").encode(), mode=0o600)
    try:
        return read_key(path, "the site's key")
    except OwnFileError as error:
        raise SiteError(str(error)) from None


def _other_ledger(file: SiteFile) -> tuple[str, ...]:
    """Of two ledgers for one store each would give its patients the whole budget. Raises SiteError before the second
    is made; where the first is gone, that is a warning."""
    try:
        known = read_bounded(_ledger_note(file), "STORE.ledger").decode().strip() if _noted(file) else ""
    except (OwnFileError, ValueError) as error:
        raise SiteError(f"which ledger charges for this store is not known: {error}") from None
    if known in ("", str(file.ledger.resolve())):
        return ()
    if not os.path.lexists(known):
        return (f"another ledger charged for this store before, and is gone: {known}: what was spent stays spent",)
    if os.path.lexists(file.ledger):
        return (f"another ledger charges for this store: {known}",)
    raise SiteError(
        f"another ledger charges for this store already: {known}: a second one would be a second budget for the same "
        "patients; to use that one, name its folder with --private"
    )


def _note_ledger(file: SiteFile) -> None:
    """STORE.ledger beside the store: the place of its ledger. Where that cannot be written, the store may not be there
    yet, or is another's: it is a guard against mistakes."""
    with contextlib.suppress(OSError):
        write_whole(_ledger_note(file), f"{file.ledger.resolve()}\n".encode(), mode=0o600)


def _noted(file: SiteFile) -> bool:
    return os.path.lexists(_ledger_note(file))


def _ledger_note(file: SiteFile) -> Path:
    store = file.store.resolve()
    return store.with_name(f"{store.name}.ledger")


def _ledger(file: SiteFile, key: bytes) -> None:
    """A ledger that is there stays, whatever state it is in: a new one in its place would be a new budget."""
    file.anchor.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    try:
        if os.path.lexists(file.ledger):
            Ledger.open(file.ledger, key, file.anchor)
        else:
            Ledger.create(file.ledger, key, file.anchor)
    except LedgerError as error:
        raise SiteError(f"ledger: {error}") from None


def _write_json(path: Path, data: object) -> None:
    write_whole(path, (json.dumps(data, indent=2) + "\n").encode(), mode=0o600)
    sync_folder(path.parent)


def _warnings(site: Site) -> tuple[str, ...]:
    found = list(anchor_warning(site))
    policy = site.policy()
    if isinstance(policy, Unreadable):
        found.append(f"the policy that is there refuses everything: {'; '.join(policy.reasons)}")
    elif not policy.require_dp:
        found.append("the policy takes plans without differential privacy: what they train on is not bounded by it")
    if not (site.store / "manifest.json").is_file():
        found.append(
            f"the store is not there yet ({site.store}): make it with `fedscan prepare`, or correct `store` in "
            "site.json"
        )
    return tuple(found)
