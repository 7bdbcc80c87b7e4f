"""Where a site's two anchors lie, of its ledger and of its audit log: named in site.json, best on another volume.

An anchor says how far its log had come. A volume that is put back takes an anchor along that lies on it, and then only
what others noted tells of it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

from ctslices.files import sync_folder, write_whole
from fedscan.federation.audit_log import ANCHOR, FOLDER, AuditError, AuditLog, Head
from fedscan.privacy.anchor import Anchor, AnchorFile
from fedscan.privacy.ledger import LedgerError
from fedscan.privacy.own_files import OwnFileError, read_bounded, read_object
from fedscan.privacy.site_file import SITE_JSON, Site, SiteError

_MAX_BYTES = 1 << 24
_KNOWS_MORE = (
    "knows more than what lies here: this volume was put back to an earlier state. Keep both, and bring the newer "
    "state (docs/site.md)"
)


class AnchorError(ValueError):
    """An anchor cannot lie there: why, and the cure. The one that is in use stays in use."""


def places(choice: Path | None, site: str) -> tuple[Path | None, Path | None]:
    """Of the ledger's and of the audit log's anchor, by what a person named: a folder holds both, a file the ledger's
    alone."""
    if choice is None:
        return None, None
    choice = choice.expanduser().absolute()
    if choice.is_dir():
        return choice / f"{site}.ledger.anchor", choice / f"{site}.audit.anchor"
    return choice, None


def settle(site: Site, ledger_anchor: Path | None, audit_anchor: Path | None) -> tuple[Site, list[str]]:
    """Moves the anchors to where they should lie (None: as site.json says), and says what it did.

    Safe to run again and after a kill; a running site reads site.json anew before each round. Raises AnchorError,
    OSError, SiteError.
    """
    done = []
    if ledger_anchor is not None and ledger_anchor.resolve() != site.file.anchor.resolve():
        site = _move_ledger(site, ledger_anchor)
        alone = audit_anchor is None and site.file.audit_anchor is None
        rest = ": a file, so the audit log's stays where it is (a folder that is there takes both)" if alone else ""
        done.append(f"the ledger's anchor is {ledger_anchor} now{rest}")
    if audit_anchor is not None and audit_anchor != site.file.audit_anchor:
        _may_lie_there(audit_anchor)
        site = _name(site, "audit_anchor", audit_anchor)
    wanted = site.file.audit_anchor
    if wanted is not None and _audit_place(site) != wanted:
        _move_audit(site, wanted)
        done.append(f"the audit log's anchor is {wanted} now")
    return site, done


def flaws(site: Site) -> Iterator[tuple[str, str]]:
    """What is wrong with the audit log's anchor, `error` or `warning` first. The ledger's is judged with the ledger."""
    place, wanted = _audit_place(site), site.file.audit_anchor
    if wanted is not None and place != wanted:
        yield (
            "error",
            f"audit anchor: site.json names {wanted}, and the log keeps it at {place}: `fedscan site install KIT` "
            "brings it there",
        )
    folder = site.state / FOLDER
    try:
        log_device = (folder if folder.is_dir() else site.state).stat().st_dev
        together = place.parent == folder or place.parent.stat().st_dev == log_device
    except OSError as error:
        yield "error", f"audit anchor: {place.parent} cannot be reached ({error.strerror}): nothing more is noted"
        return
    if together:
        yield (
            "warning",
            "audit anchor: it lies on the audit log's volume: that volume, put back, is noticed by a head that was "
            "noted elsewhere alone; `fedscan site install KIT --anchor DIR` moves both anchors to another volume",
        )


def _audit_place(site: Site) -> Path:
    return AuditLog(site.state).anchor


def _may_lie_there(place: Path) -> None:
    folder = place.parent
    if not folder.is_dir() or not os.access(folder, os.W_OK):
        raise AnchorError(f"{folder} is no folder that this user may write: make it, or name another")


def _move_ledger(site: Site, to: Path) -> Site:
    _may_lie_there(to)
    old = site.file.anchor
    try:
        ledger, key = site.open_ledger(), site.key()
        with ledger.lock():
            _must_be_free(to, key, ledger.disk.anchor.read())
            content = read_bounded(old.resolve(), "the ledger's anchor", _MAX_BYTES)
            write_whole(to.resolve(), content, mode=0o600)
            moved = _name(site, "anchor", to)
            old.resolve().unlink()  # whoever still looks for it there finds none, and charges nothing
    except (LedgerError, OwnFileError) as error:
        raise AnchorError(f"the ledger's anchor was not moved: {error}") from None
    return moved


def _must_be_free(to: Path, key: bytes, now: Anchor) -> None:
    """Or hold an earlier copy of this very anchor, as a stopped move leaves it. A later one is what tells that this
    volume was put back."""
    file = AnchorFile(to, key)
    if not file.exists:
        return
    there = file.read()
    if there.ledger != now.ledger:
        raise AnchorError(f"{to} is another ledger's anchor: name another place")
    if there.moved or there.count > now.count or (there.count == now.count and there.head != now.head):
        raise AnchorError(f"{to} is of this ledger and {_KNOWS_MORE}")


def _move_audit(site: Site, to: Path) -> None:
    """A link in the log's folder says where the anchor is: all that note there follow it."""
    _may_lie_there(to)
    try:
        with AuditLog(site.state).held() as log:
            _must_be_free_for(log, to)
            if log.anchor.exists():
                write_whole(to, read_bounded(log.anchor, "the audit log's anchor", _MAX_BYTES), mode=0o600)
            link = site.state / FOLDER / ANCHOR
            temporary = link.with_name(f".{ANCHOR}.{os.getpid()}.part")
            temporary.unlink(missing_ok=True)
            temporary.symlink_to(to)
            os.replace(temporary, link)
            sync_folder(link.parent)
    except (AuditError, OwnFileError) as error:
        raise AnchorError(f"the audit log's anchor was not moved: {error}") from None


def _must_be_free_for(log: AuditLog, to: Path) -> None:
    """As `_must_be_free`."""
    there, now = log.anchor_at(to), log.anchor_at(log.anchor)
    if there is None:
        return
    if isinstance(there, str) or not isinstance(now, Head):
        raise AnchorError(f"{to} is another log's anchor: name another place")
    if there.count > now.count or (there.count == now.count and there != now):
        raise AnchorError(f"{to} is of this audit log and {_KNOWS_MORE}")


def _name(site: Site, key: str, place: Path) -> Site:
    """site.json with this place, whole or as it was; opened anew."""
    path = site.path.resolve()
    try:
        content = dict(read_object(path, SITE_JSON))
        write_whole(path, (json.dumps(content | {key: str(place)}, indent=2) + "\n").encode(), mode=0o600)
        return Site.open(site.path)
    except (OwnFileError, SiteError) as error:
        raise AnchorError(f"{path}: {error}") from None
