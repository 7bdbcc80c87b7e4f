"""Which software may work together: the one rule for sites and server (docs/operator.md, "Upgrades").

Two ends that speak the same PROTOCOL work together, whatever their versions of Fedscan; two others never do. Each end
runs an NVFlare that its own Fedscan was tested with, as it is installed, or takes no part.
"""

from __future__ import annotations

import importlib.metadata

import nvflare

import fedscan

PROTOCOL = 1
"""Rises with every change to what travels, to what a plan means, or to the NVFlare that is tested."""
TESTED_NVFLARE = ("2.9.0",)
"""Gate and guard follow NVFlare's own messages: another version may send what they do not know."""
REFUSED_BY_VERSION = "refused by version"
"""All that a server learns of such a refusal; it depends on nothing but the software."""
CURE = "bring both to versions of one protocol (CHANGELOG.md names it), then restart"


class VersionError(RuntimeError):
    """This process's software may take no part: why."""

    def __init__(self, reasons: tuple[str, ...]) -> None:
        super().__init__("; ".join(reasons))
        self.reasons = reasons


def unfit() -> tuple[str, ...]:
    """Why this process may take no part in a job, each with its cure; empty: it may.

    What is installed is read anew: a process that was not restarted after an upgrade starts children of the new one.
    """
    return (
        *_other_nvflare(nvflare.__version__),
        *_half("fedscan", fedscan.__version__),
        *_half("nvflare", nvflare.__version__),
    )


def ensure_fit() -> None:
    """Raises VersionError."""
    if reasons := unfit():
        raise VersionError(reasons)


def other_protocol(record: object, here: str, there: str) -> str | None:
    """Why a task or an answer is not even read: it says another protocol. None: it says this one, or none at
    all, which is no record of ours.

    `here` and `there` name the two ends.
    """
    if not isinstance(record, dict) or "protocol" not in record:
        return None
    said = record["protocol"]
    if type(said) is int and said == PROTOCOL:
        return None
    known = str(said) if type(said) is int and 0 <= said < 10**6 else "an unknown one"
    return (
        f"{there} speaks Fedscan protocol {known}, {here} {PROTOCOL} (Fedscan {fedscan.__version__}): it is "
        f"not read; {CURE}"
    )


def refused_by_site() -> str:
    """What the server notes where a site answered REFUSED_BY_VERSION."""
    return (
        f"{REFUSED_BY_VERSION}: the site does not speak Fedscan protocol {PROTOCOL} of this server (Fedscan "
        f"{fedscan.__version__}), or its NVFlare is none that its Fedscan knows; its refusals.jsonl says which"
    )


def _other_nvflare(version: str) -> tuple[str, ...]:
    if version in TESTED_NVFLARE:
        return ()
    tested = " or ".join(TESTED_NVFLARE)
    return (
        f"NVFlare {version} is at work, Fedscan {fedscan.__version__} was tested with {tested}: install that one, and "
        "restart",
    )


def _half(package: str, running: str) -> tuple[str, ...]:
    """A package that was changed on disk since this process loaded it."""
    try:
        installed = importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return (f"{package} is not installed as a package: nobody can tell its version; install it with pip",)
    if installed == running:
        return ()
    return (f"{package} {running} is at work and {installed} is installed: restart this process",)
