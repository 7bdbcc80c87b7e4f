"""Provisioning again: certificates near their end are made anew, all else stays as it was, to the byte."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509

from ctslices.files import write_whole

STATE_FILE = "cert.json"
"""Below state/: the root key, and the keys and certificates of all participants, by NVFlare's builder."""
ROOT = "root_cert"
_LISTENER = ("server.crt", "server.key")
_SAME_LISTENER = ("startup/client.crt", "startup/rootCA.pem", "local/comm_config.json")


class RenewalError(ValueError):
    """The state cannot be used: why, and the cure."""


def days_left(certificate: bytes, now: datetime | None = None) -> float:
    """Of a PEM certificate. Raises ValueError."""
    end = x509.load_pem_x509_certificate(certificate).not_valid_after_utc
    return (end - (now or datetime.now(UTC))) / timedelta(days=1)


def forget_ending(state: Path, renew_days: int, now: datetime | None = None) -> list[str]:
    """Takes participants whose certificates have fewer days left out of the state, so that they get new ones.

    Returns their names. Raises RenewalError where the root's certificate itself is near its end.
    """
    path = state / STATE_FILE
    if not path.exists():
        return []
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        root_days = days_left(content[ROOT].encode(), now)
        people = {name: entry for name, entry in content.items() if isinstance(entry, dict)}
        due = sorted(name for name, entry in people.items() if days_left(entry["cert"].encode(), now) < renew_days)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise RenewalError(f"{path} cannot be read ({type(error).__name__}): put back its copy") from None
    if root_days < renew_days:
        raise RenewalError(
            f"the root's certificate ends in {root_days:.0f} days, and with it all others: provision into a new "
            "workspace (-w) with a new root, and hand out all kits anew"
        )
    if due:
        kept = {name: entry for name, entry in content.items() if name not in due}
        write_whole(path, json.dumps(kept).encode(), mode=0o600)
    return due


def keep_listener(kit: Path, earlier: Iterable[Path], renew_days: int) -> None:
    """A site's certificate for its loopback port is NVFlare's to make at every run: the earlier one is kept instead.

    `earlier`: the same site's kits of earlier runs, the newest first.
    """
    if not (kit / "startup" / _LISTENER[0]).exists():
        return
    for old in earlier:
        if not all(_same(kit / name, old / name) for name in _SAME_LISTENER):
            continue
        pair = [old / "startup" / name for name in _LISTENER]
        if all(path.is_file() for path in pair) and days_left(pair[0].read_bytes()) >= renew_days:
            for path in pair:
                shutil.copyfile(path, kit / "startup" / path.name)
            return


def earlier_kits(workspace: Path, stage: int, name: str) -> list[Path]:
    """The kits of this participant below prod_00 ... of the runs before run number `stage`, the newest first."""
    folders = [workspace / f"prod_{number:02d}" / name for number in range(stage - 1, -1, -1)]
    return [folder for folder in folders if folder.is_dir()]


def is_same_kit(kit: Path, earlier: Path) -> bool:
    """Whether each file of the new kit is in the earlier one, byte for byte."""
    files = [path.relative_to(kit) for path in kit.rglob("*") if path.is_file()]
    return all(_same(kit / name, earlier / name) for name in files)


def _same(one: Path, other: Path) -> bool:
    return one.is_file() and other.is_file() and one.read_bytes() == other.read_bytes()
