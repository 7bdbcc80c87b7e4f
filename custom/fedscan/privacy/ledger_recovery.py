"""A ledger after a lost disk or on another machine, so that no budget comes back by it."""

from __future__ import annotations

import hashlib
import os
import re
import secrets
from enum import Enum
from pathlib import Path

from ctslices.files import sync_folder, write_whole
from fedscan.privacy.ledger import Ledger
from fedscan.privacy.ledger_disk import LedgerDisk
from fedscan.privacy.ledger_records import (
    AnchorRenewed,
    Entry,
    Head,
    LedgerError,
    MovedIn,
    MovedOut,
    Restored,
    spent_beyond,
)
from fedscan.privacy.own_files import OwnFileError, read_key


class Settled(Enum):
    """How a ledger that was put back goes on."""

    WHOLE = "it is as new as its anchor"
    RESTORED = "it was older than its anchor: what the lost entries spent was charged from there"
    MOVED = "it moved in here; the old machine's copy is retired"


def settle(path: Path, key: bytes, anchor: Path, landing: Path) -> Settled:
    """Lets a ledger that was put back to `path` go on: `Ledger.open` takes it afterwards.

    One that was moved out needs the secret in `landing`, which is used up. Any other needs its anchor: entries that
    are missing are charged by what the anchor knows was spent. Raises LedgerError, OSError.
    """
    disk = LedgerDisk(path, key, anchor)
    with disk.unanchored() as tail:
        if tail:
            raise LedgerError("it is cut off: take another copy", disk.chain.next_number)
        if disk.state.moved or _just_landed(disk, landing):
            return _move_in(disk, landing)
        return _catch_up(disk)


def _catch_up(disk: LedgerDisk) -> Settled:
    anchor = disk.anchor.read()
    if anchor.ledger != disk.state.identity:
        raise LedgerError("the anchor belongs to another ledger: name the one that belongs to it")
    if anchor.count <= disk.head.count:
        if not disk.state.contains(Head(anchor.count, anchor.head)):
            raise LedgerError(
                "it is another than the anchor knows: this is a copy that went on by itself", anchor.count
            )
        disk.write_anchor()
        return Settled.WHOLE
    if anchor.moved:
        raise LedgerError("it moved to another machine, and goes on there alone: restore the package that moved it")
    lost = spent_beyond(anchor.spent, disk.state.spent)
    if lost is None:
        raise LedgerError("it spent what the anchor does not know: this is a copy that went on by itself")
    first = disk.chain.next_number
    stamp = disk.stamp()
    stamp["n"] = anchor.count + 1
    disk.append(
        Restored(
            **stamp,
            lost_from=first,
            lost_to=anchor.count,
            lost_head=anchor.head,
            charged=lost,
            lost_removals=max(0, anchor.removals - disk.state.removal_records),
            lost_unprotected=max(0, anchor.unprotected - disk.state.unprotected_runs),
        )
    )
    return Settled.RESTORED


def with_check(code: str) -> str:
    """The landing's code as people carry it to the old machine: with 8 check digits behind it."""
    return code + hashlib.sha256(f"fedscan landing {code}".encode()).hexdigest()[:8]


def checked(text: str) -> str | None:
    """The code in what people brought; None for what no `with_check` gave: a ledger moves once, and to nowhere."""
    return text[:-8] if re.fullmatch(r"[0-9a-f]{72}", text) and text == with_check(text[:-8]) else None


def new_landing(place: Path) -> str:
    """Makes the secret for one move to this machine, in `place`; returns its code for the old machine.

    A secret that is there stays. Raises LedgerError, OSError.
    """
    if not os.path.lexists(place):
        write_whole(place, (secrets.token_hex(32) + "\n").encode(), mode=0o600)
    code = _code(place)
    if code is None:
        raise LedgerError(f"the landing's secret cannot be read: delete {place}, and begin the move again")
    return code


def move_out(ledger: Ledger, code: str) -> Entry:
    """Retires this copy for the one that has the secret behind `code`. The same code again changes nothing.

    Raises LedgerError for another code after the first, OSError; ValueError for no code.
    """
    disk = ledger.disk
    with ledger.lock():
        record = MovedOut(**disk.stamp(), landing=code)
        last = disk.chain.lines[-1].record
        if not disk.state.moved:
            return disk.append(record)
        if not isinstance(last, MovedOut) or last.landing != code:
            raise LedgerError("it moved to another machine already", disk.head.count)
        return Entry(last.n, disk.head)


def _move_in(disk: LedgerDisk, landing: Path) -> Settled:
    last = disk.chain.lines[-1].record
    assert isinstance(last, MovedOut | MovedIn)
    if _code(landing) != last.landing:
        raise LedgerError(
            "it was moved to another place than this one, or landed already: a move begins with `fedscan site land` "
            "here, and its package is good for one landing",
            disk.head.count,
        )
    if disk.anchor.exists:
        anchor = disk.anchor.read()
        if anchor.ledger != disk.state.identity or not disk.state.contains(Head(anchor.count, anchor.head)):
            raise LedgerError("an anchor of another ledger lies there, or of a copy that went on: name another place")
    if isinstance(last, MovedOut):
        disk.append(MovedIn(**disk.stamp(), landing=last.landing))
    else:
        disk.write_anchor()
    landing.unlink()
    sync_folder(landing.parent)
    return Settled.MOVED


def _just_landed(disk: LedgerDisk, landing: Path) -> bool:
    """Whether a landing was cut after its entry."""
    last = disk.chain.lines[-1].record
    return isinstance(last, MovedIn) and last.landing == _code(landing)


def _code(landing: Path) -> str | None:
    try:
        return hashlib.sha256(read_key(landing, "the landing's secret")).hexdigest()
    except OwnFileError:
        return None


def renew_anchor(path: Path, key: bytes, anchor: Path, recorded: Head | None, received: Head | None) -> Entry:
    """Makes a lost anchor anew; the ledger says so for ever.

    `recorded` is the newest head that a server recorded of this site, told by its people; `received` the one that came
    with the last task. The ledger must contain both: an older copy lacks them. Raises LedgerError, OSError.
    """
    disk = LedgerDisk(path, key, anchor)
    if disk.anchor.exists:
        disk.anchor.read()
        raise LedgerError("its anchor is there: nothing to renew")
    with disk.unanchored() as tail:
        if recorded is None and disk.state.events:
            raise LedgerError("rounds were charged: ask the server for the newest head of this site, COUNT:MAC")
        if _unnamed_populations(disk):
            raise LedgerError("it knew patients whom it does not name: it is an older copy, bring back the newest")
        for head in (recorded, received):
            if head is not None and not disk.state.contains(head):
                raise LedgerError("a server recorded it, and this ledger lacks it: it is an older copy", head.count)
        if tail:
            disk.repair(tail)
        return disk.append(AnchorRenewed(**disk.stamp(), known_count=0 if recorded is None else recorded.count))


def _unnamed_populations(disk: LedgerDisk) -> bool:
    """Whether patients lie beside the ledger whom an entry was about that it lacks. A restoration may leave some."""
    if any(isinstance(line.record, Restored) for line in disk.chain.lines):
        return False
    return any(path.stem not in disk.state.populations for path in disk.populations_folder.glob("*.json"))
