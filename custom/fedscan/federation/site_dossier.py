"""`fedscan site dossier KIT`: a draft of the data-protection impact assessment, from what is really set.

Every number is read from policy, ledger, store and kit. What a person must answer is marked open. The same files give
the same text: it has no date of its own.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from ctslices.files import write_whole
from ctslices.manifest import Manifest
from ctslices.store import StoreError, read_manifest
from fedscan.federation import byte_log, kit_files, site_certificates, site_files, site_own, site_settings
from fedscan.federation.site_findings import Check
from fedscan.federation.site_kit import Kit
from fedscan.privacy.accounting import AccountingError
from fedscan.privacy.approvals import Approvals
from fedscan.privacy.ledger import Ledger, LedgerError
from fedscan.privacy.ledger_report import JobSpend, by_job, incidents
from fedscan.privacy.own_files import OwnFileError, read_object
from fedscan.privacy.policy import Policy, Unreadable
from fedscan.privacy.site_file import SITE_JSON, Site, SiteError, anchor_warning
from fedscan.privacy.store_facts import StoreFacts

_OF_JOBS = {"signed-jobs", "validator", "allow-list", "components", "settings"}
_OF_THE_GUARD = {"guard", "gate", "scope", "components", "site-config"}
_OF_LOGS = {"log-streaming", "log-config", "modes", "start-scripts"}
_OF_JUDGING = {"validator", "scope", "installed", "own-files"}
_OF_THE_DAY = {"renewal", "certificates", "owner"}
"""Findings that depend on the day or on who looks, not on what is set."""


class DossierError(ValueError):
    """The dossier cannot be drawn: which part is missing, and the cure."""


@dataclass(frozen=True)
class Bound:
    """What (epsilon, delta) says in words. `hits_at_1_percent`: share of members found by the best test with 1% false
    alarms, at most (Kairouz, Oh and Viswanath 2015, Theorem 2.1)."""

    epsilon: float
    delta: float

    @property
    def factor(self) -> float:
        """e^epsilon: hits for each false alarm, at most."""
        return math.exp(min(self.epsilon, 700.0))

    @property
    def hits_at_1_percent(self) -> float:
        """In 0..1."""
        false_alarms = 0.01
        return min(
            1.0,
            self.factor * false_alarms + self.delta,
            1.0 - (1.0 - self.delta - false_alarms) / self.factor,
        )


@dataclass(frozen=True)
class Facts:
    """All that the draft states."""

    kit: Kit
    site: Site
    policy: Policy
    policy_sha256: str
    manifest: Manifest
    store: StoreFacts
    ledger: Ledger
    jobs: tuple[JobSpend, ...]
    spent: Bound
    budget: Bound
    incidents: tuple[str, ...]
    looser: tuple[str, ...]
    """Fields of the policy that are set more openly than a new site's, with what follows."""
    findings: tuple[Check, ...]
    """Of the preflight, what is not as a strict kit's."""
    warnings: tuple[str, ...]
    sent: tuple[byte_log.Total, ...]
    blocked: tuple[byte_log.Total, ...]
    rights: dict[str, tuple[str, ...]]
    """What each role of the federation may do at this site."""
    approved: int
    refused: int
    certificates_end: str
    versions: dict[str, str]

    @property
    def left(self) -> float:
        """epsilon that the policy still has room for."""
        return max(0.0, self.budget.epsilon - self.spent.epsilon)

    @property
    def measures(self) -> tuple[tuple[str, str, bool], ...]:
        """What guards the site's surroundings, in words, and whether the preflight finds it so."""
        broken = {one.name for one in self.findings}
        where = f"{self.kit.server.host}:{self.kit.server.port}"
        said = (
            ("connections", f"the site dials {where} by mutual TLS", {"mutual-tls"}),
            ("local listener", "on loopback, with certificates on both sides", {"listener"}),
            ("jobs", f"signed, judged on arrival; the class {_text(kit_files.SITE_CLASSES)} alone", _OF_JOBS),
            ("shipped code", "refused from everybody", {"byoc", "kit-files", "authorization"}),
            ("commands", "no shell and no reading of files, for anybody", {"shell", "operate", "authorization"}),
            ("what leaves", "guard and gate see and count every message; error texts are withheld", _OF_THE_GUARD),
            ("logs", "stay here, readable by the site's user alone, without texts of exceptions", _OF_LOGS),
            ("start", "NVFlare's own scripts; private files; no other code", {"start-scripts", "modes", "links"}),
            ("judgement", "at deployment, before each round, at the door, by the policy on this machine", _OF_JUDGING),
        )
        return tuple((name, text, not checks & broken) for name, text, checks in said)

    @property
    def multi_series(self) -> int:
        """How many records have more than one series."""
        return sum(patient.series > 1 for patient in self.manifest.patients)


def read(folder: Path) -> Facts:
    """Raises KitError where the folder is no site's kit, DossierError where a part cannot be read."""
    kit = Kit.open(folder)
    try:
        site = Site.open(kit.local / SITE_JSON)
        policy = site.policy()
        if isinstance(policy, Unreadable):
            raise DossierError(f"the policy cannot be read, so there is nothing to assess: {'; '.join(policy.reasons)}")
        manifest = read_manifest(site.store)
        ledger = site.open_ledger()
        return _facts(kit, site, policy, manifest, ledger)
    except (SiteError, StoreError, LedgerError, AccountingError) as error:
        raise DossierError(f"{error}: see `fedscan site check`") from None


def _facts(kit: Kit, site: Site, policy: Policy, manifest: Manifest, ledger: Ledger) -> Facts:
    facts = StoreFacts.of(manifest.unit, ((p.id, p.split, p.slices) for p in manifest.patients))
    totals = byte_log.totals(byte_log.read(site.state))
    approvals = Approvals(site.state, site.key())
    end = site_certificates.soonest_end(kit.startup)
    return Facts(
        kit=kit,
        site=site,
        policy=policy,
        policy_sha256=hashlib.sha256(site.file.policy.read_bytes()).hexdigest(),
        manifest=manifest,
        store=facts,
        ledger=ledger,
        jobs=tuple(by_job(ledger.lines)),
        spent=Bound(ledger.epsilon(policy.max_delta), policy.max_delta),
        budget=Bound(policy.max_epsilon, policy.max_delta),
        incidents=tuple(incidents(ledger.lines)),
        looser=looser(policy),
        findings=tuple(_findings(kit)),
        warnings=tuple(anchor_warning(site)),
        sent=tuple(total for total in totals if total.to != byte_log.INSIDE and not total.blocked),
        blocked=tuple(total for total in totals if total.blocked),
        rights=_rights(kit),
        approved=len(approvals.approved()),
        refused=sum(1 for _ in approvals.refused()),
        certificates_end=f"{end[1]:%Y-%m-%d}" if end else "unknown",
        versions={name: metadata.version(name) for name in ("fedscan", "nvflare", "torch", "opacus", "dp-accounting")},
    )


def _findings(kit: Kit) -> list[Check]:
    found = [*site_settings.findings(kit), *site_files.findings(kit), *site_own.findings(kit)]
    return [one for one in found if one.level == "error" and one.name not in _OF_THE_DAY]


def _rights(kit: Kit) -> dict[str, tuple[str, ...]]:
    try:
        permissions: Any = read_object(kit.local / "authorization.json", "authorization")["permissions"]
        return {
            role: tuple(f"{right} ({value})" for right, value in sorted(rights.items()) if value != "none")
            if isinstance(rights, dict)
            else (f"all ({rights})",)
            for role, rights in permissions.items()
        }
    except (OwnFileError, KeyError, AttributeError):
        return {}


def looser(policy: Policy) -> tuple[str, ...]:
    """Every field that is more open than a new site's policy, with what follows from it."""
    new = Policy(policy_version=1)
    wider = {
        "require_dp": not policy.require_dp and new.require_dp,
        "max_epsilon": policy.max_epsilon > new.max_epsilon,
        "max_delta": policy.max_delta > new.max_delta,
        "min_patients": policy.min_patients < new.min_patients,
        "min_noise_multiplier": policy.min_noise_multiplier < new.min_noise_multiplier,
        "max_rounds": policy.max_rounds > new.max_rounds,
        "answers": bool(set(policy.answers) - set(new.answers)),
        "allow_image_unit": policy.allow_image_unit and not new.allow_image_unit,
        "allow_reproducible_noise": policy.allow_reproducible_noise and not new.allow_reproducible_noise,
    }
    return tuple(
        f"{name} is {_text(getattr(policy, name))}, a new site's is {_text(getattr(new, name))}: {_FOLLOWS[name]}"
        for name, is_wider in wider.items()
        if is_wider
    )


_FOLLOWS = {
    "require_dp": "plans without differential privacy train here, and nothing bounds what their models tell",
    "max_epsilon": "the bound on what a patient's membership changes is weaker by that factor in the exponent",
    "max_delta": "the bound may fail with a larger probability",
    "min_patients": "a smaller group is trained on, in which one patient weighs more",
    "min_noise_multiplier": "single steps with less noise are let in",
    "max_rounds": "longer plans are let in; the budget bounds them all the same",
    "answers": "a loss of the round may leave too, noised and charged",
    "allow_image_unit": "pictures count as patients; a person with twenty of them has a bound about 20 times weaker",
    "allow_reproducible_noise": "noise that anybody can repeat and subtract protects nobody",
}


def _text(value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, tuple):
        return ", ".join(map(str, value)) or "nothing"
    return f"{value:g}" if isinstance(value, float) else str(value)


def render(facts: Facts) -> str:
    """The draft as Markdown."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(  # nosec B701 # Markdown, not HTML; `_plain` takes markup out of every value
        loader=PackageLoader("fedscan.federation", "."),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        finalize=_plain,
        autoescape=False,  # it is Markdown; `finalize` takes out what could be markup
    )
    template = environment.get_template("site_dossier.md.j2")
    return template.render(facts=facts, policy=facts.policy, file=facts.site.file, strict=kit_files, text=_text)


def _plain(value: object) -> str:
    """Of names that others chose, no character that Markdown or HTML would follow."""
    if not isinstance(value, str):
        return str(value)
    return "".join(c if c.isprintable() and c not in "|`<>[]*\\" else "_" for c in value)


def write(facts: Facts, out: Path) -> None:
    """Whole or not at all, mode 0600: it tells how many patients there are. Raises OSError."""
    write_whole(out, render(facts).encode(), mode=0o600)
