"""Differential privacy in a job: what `job new` fills in, and what `job check` says of it."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

from fedscan.federation.findings import Finding, JobError
from fedscan.plan import Plan
from fedscan.privacy.event import EventError, run_event
from fedscan.privacy.outlook import MEASURED, average_noise_per_patient, noise_per_patient, outlook
from fedscan.privacy_plan import PrivacyPlan

_NOISE, _TARGET = "privacy.noise_multiplier", "privacy.target_epsilon"
_LENGTHS = {"rounds", "training.local_steps"}


def fill_in(
    raw: dict[str, Any],
    settings: Sequence[str],
    patients: Mapping[str, int] | None = None,
    sample_rate: float | None = None,
) -> None:
    """Fills sampling from declared sizes and the noise from target_epsilon into a raw plan; `settings` were applied.

    A noise multiplier that the template brings is found anew when this command changes what it was found for, unless
    the command names one itself. Raises JobError; pydantic.ValidationError for a plan that is wrong otherwise.
    """
    if not isinstance(raw.get("privacy"), dict) and not patients and sample_rate is None:
        return
    from fedscan.privacy import resolve  # the accountant takes a second to load

    try:
        if patients:
            resolve.declare(raw, patients, sample_rate)
        elif sample_rate is not None:
            raise resolve.ResolveError("--sample-rate goes with --patients a=500,b=300: sampling needs the sizes")
        privacy = raw.get("privacy")
        if isinstance(privacy, dict):
            _forget_what_changed(privacy, {setting.partition("=")[0] for setting in settings}, bool(patients))
        resolve.resolve(raw)
    except resolve.ResolveError as error:
        raise JobError([Finding("error", "plan.privacy", str(error))]) from None


def _forget_what_changed(privacy: dict[str, Any], set_names: set[str], resized: bool) -> None:
    if _NOISE in set_names:
        if _TARGET not in set_names:
            privacy["target_epsilon"] = None
    elif privacy.get("target_epsilon") is not None and (
        resized or set_names & _LENGTHS or any(name.startswith("privacy.") for name in set_names)
    ):
        privacy.pop("noise_multiplier", None)


def findings(plan: Plan, sites: Collection[str]) -> Iterator[Finding]:
    """What there is to know of a plan's privacy, whose job runs at `sites` (none: not yet named)."""
    if plan.privacy is None:
        return
    for site in sorted(set(sites) - set(plan.privacy.sites)):
        yield Finding("error", f"site {site}", "the plan has no sampling for it: name it in --patients of `job new`")
    if sites:
        for site in sorted(set(plan.privacy.sites) - set(sites)):
            yield Finding("warning", f"plan.privacy.sites.{site}", "no site of the job has this name")
    if plan.privacy.unit == "image":
        text = (
            "the guarantee is for a single image, which is weaker: over n images of one patient it is n times epsilon"
        )
        yield Finding("warning", "plan.privacy.unit", text)
    for site in sorted(plan.privacy.sites):
        yield from _site(plan, plan.privacy, site)
    if len(plan.privacy.sites) > 1:
        yield from _average(plan, plan.privacy)
    if plan.privacy.from_scratch and plan.init_sha256 is None:
        text = "training begins from scratch: expect two ragged dark areas, whatever the noise per patient"
        yield Finding("warning", "plan.privacy.from_scratch", text)
    else:
        yield Finding("note", "plan.privacy", f"the words for pictures are as {MEASURED}")


def _average(plan: Plan, privacy: PrivacyPlan) -> Iterator[Finding]:
    nu = average_noise_per_patient(plan)
    declared = average_noise_per_patient(plan.model_copy(update={"weighting": "declared"}))
    better = f"; with weighting=declared it would be {declared:.3g}" if declared < 0.9 * nu else ""
    whole = sum(sampling.declared_patients for sampling in privacy.sites.values())
    together = "" if outlook(nu, whole).patients_for_next is None else " at all sites together"
    yield from _expectation("average of the sites", nu, whole, after=together + better)


def _site(plan: Plan, privacy: PrivacyPlan, site: str) -> Iterator[Finding]:
    from fedscan.privacy.accounting import AccountingError, epsilon

    where = f"plan.privacy.sites.{site}"
    patients = privacy.sites[site].declared_patients
    yield from _delta(privacy, where, patients)
    try:
        event = run_event(plan, site)
        spent = epsilon([event], privacy.delta)
    except (AccountingError, EventError) as error:
        yield Finding("error", where, f"its privacy cannot be accounted for: {error}")
        return
    said = f"epsilon {spent:.4g} at delta {privacy.delta:g} after {event.steps} steps; "
    if privacy.target_epsilon is not None and spent > privacy.target_epsilon:
        yield Finding(
            "error",
            where,
            f"epsilon {spent:.6g} exceeds target_epsilon {privacy.target_epsilon:g}: make the job anew, which finds "
            f"noise_multiplier, or raise it from {privacy.noise_multiplier:g}",
        )
    yield from _expectation(where, noise_per_patient(privacy, site), patients, before=said)


def _delta(privacy: PrivacyPlan, where: str, patients: float) -> Iterator[Finding]:
    wise = (
        f"take at most {_rounded_down(0.1 / patients):g}, a tenth of 1 / {patients:.0f} (its declared {privacy.unit}s)"
    )
    if privacy.delta * patients >= 1.0:
        yield Finding("error", where, f"delta {privacy.delta:g} would let one {privacy.unit} be published: {wise}")
    elif privacy.delta * patients > 0.1 * (1.0 + 1e-9):
        yield Finding("warning", where, f"delta {privacy.delta:g} is large: {wise}")


def _rounded_down(value: float) -> float:
    """To one significant digit."""
    unit = 10.0 ** math.floor(math.log10(value))
    return math.floor(value / unit * (1.0 + 1e-9)) * unit


def _expectation(where: str, nu: float, patients: float, *, before: str = "", after: str = "") -> Iterator[Finding]:
    expected = outlook(nu, patients)
    yield Finding("warning" if expected.warns else "note", where, f"{before}{expected}{after}")
