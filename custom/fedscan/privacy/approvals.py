"""Plans that a person at the site approved, and those that were refused: small signed files in the site's state."""

from __future__ import annotations

import contextlib
import getpass
import hashlib
import hmac
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from ctslices.files import write_whole
from fedscan.plan import Plan
from fedscan.privacy.own_files import OwnFileError, read_object

MAX_REFUSED = 64
MAX_REFUSED_BYTES = 256 * 1024
_DIGEST = re.compile(r"^[0-9a-f]{64}$")
_MAX_REASONS = 50


@dataclass(frozen=True)
class Approval:
    """One approval."""

    plan_digest: str
    approved_by: str
    time: str
    """UTC, ISO 8601."""


@dataclass(frozen=True)
class RefusedPlan:
    """A plan that this site refused, as it came."""

    name: str
    """Of its file: the plan's digest, or a hash of what came where that is no plan."""
    plan: Plan | None
    reasons: tuple[str, ...]
    time: str


class Approvals:
    """STATE/approvals/DIGEST.json and STATE/refused/DIGEST.json."""

    def __init__(self, state: Path, key: bytes) -> None:
        self._approved = state / "approvals"
        self._refused = state / "refused"
        self._key = hmac.new(key, b"fedscan approval 1", hashlib.sha256).digest()

    def approve(self, plan_digest: str, approved_by: str | None = None) -> Approval:
        """Records and signs that this user approves the plan. Raises ValueError for no digest, OSError."""
        if not _DIGEST.fullmatch(plan_digest):
            raise ValueError("a plan's digest is 64 lower-case hexadecimal digits")
        approval = Approval(
            plan_digest=plan_digest,
            approved_by=approved_by or getpass.getuser(),
            time=datetime.now(UTC).isoformat(timespec="seconds"),
        )
        body = {**approval.__dict__, "mac": self._mac(approval)}
        _private(self._approved)
        write_whole(self._approved / f"{plan_digest}.json", json.dumps(body).encode(), mode=0o600)
        return approval

    def withdraw(self, plan_digest: str) -> bool:
        """Takes an approval back; whether there was one."""
        if not _DIGEST.fullmatch(plan_digest):
            raise ValueError("a plan's digest is 64 lower-case hexadecimal digits")
        with contextlib.suppress(FileNotFoundError):
            (self._approved / f"{plan_digest}.json").unlink()
            return True
        return False

    def approved(self) -> dict[str, Approval]:
        """All approvals whose signature holds, by plan digest; others count as none."""
        found = (self._read(path) for path in sorted(self._approved.glob("*.json")))
        return {approval.plan_digest: approval for approval in found if approval is not None}

    def _read(self, path: Path) -> Approval | None:
        try:
            body = read_object(path, "approval")
        except OwnFileError:
            return None
        fields = {name: body.get(name) for name in ("plan_digest", "approved_by", "time")}
        if not all(isinstance(value, str) for value in fields.values()):
            return None
        approval = Approval(**{name: str(value) for name, value in fields.items()})
        good = hmac.compare_digest(self._mac(approval).encode(), str(body.get("mac")).encode())
        return approval if good and path.name == f"{approval.plan_digest}.json" else None

    def _mac(self, approval: Approval) -> str:
        text = json.dumps([approval.plan_digest, approval.approved_by, approval.time])
        return hmac.new(self._key, text.encode(), hashlib.sha256).hexdigest()

    def keep_refused(self, plan: object, reasons: tuple[str, ...]) -> None:
        """Keeps a refused plan (JSON data) for `--list`, the newest MAX_REFUSED; too long a one only by its hash."""
        try:
            text = json.dumps(plan, sort_keys=True, separators=(",", ":"), allow_nan=False)
        except (TypeError, ValueError, RecursionError):
            plan, text = None, "no JSON"
        name = hashlib.sha256(text.encode()).hexdigest()
        body = {
            "time": datetime.now(UTC).isoformat(timespec="seconds"),
            "reasons": [reason[:1000] for reason in reasons[:_MAX_REASONS]],
            "plan": plan if len(text) <= MAX_REFUSED_BYTES else None,
        }
        _private(self._refused)
        write_whole(self._refused / f"{name}.json", json.dumps(body).encode(), mode=0o600)
        for old in sorted(self._refused.glob("*.json"), key=lambda path: path.stat().st_mtime_ns)[:-MAX_REFUSED]:
            old.unlink(missing_ok=True)

    def refused(self) -> Iterator[RefusedPlan]:
        """The refused plans that are kept, newest first."""
        for path in sorted(self._refused.glob("*.json"), key=lambda path: -path.stat().st_mtime_ns):
            try:
                body = read_object(path, "refused plan")
            except OwnFileError:
                continue
            reasons = body.get("reasons")
            yield RefusedPlan(
                name=path.stem,
                plan=_as_plan(body.get("plan")),
                reasons=tuple(str(reason) for reason in reasons) if isinstance(reasons, list) else (),
                time=str(body.get("time")),
            )


def _as_plan(data: object) -> Plan | None:
    try:
        return Plan.model_validate(data)
    except ValueError:
        return None


def _private(folder: Path) -> None:
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
