"""The sites that `--site NAME=...` names: each a site.json with policy and ledger, or (for trials) a bare store."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from fedscan.federation.findings import Finding
from fedscan.plan import Plan
from fedscan.privacy.site_file import SITE_JSON, Site, SiteError

NO_POLICY = "no policy, no ledger"
REPRODUCIBLE_NOISE = "reproducible noise: demo only"


@dataclass(frozen=True)
class Sources:
    """What was named, sorted by site."""

    site_files: dict[str, Path] = field(default_factory=dict)
    """Absolute paths of each site.json."""
    bare: dict[str, Path] = field(default_factory=dict)
    """Absolute paths of stores without policy and ledger."""
    stores: dict[str, Path] = field(default_factory=dict)
    """The slice store of every site whose own files can be read."""
    errors: tuple[Finding, ...] = ()


def read(sites: Mapping[str, Path]) -> Sources:
    """Which site is what. A site.json that cannot be read is an error among the sources' own."""
    site_files, bare, stores, errors = {}, {}, {}, []
    for name, path in sorted(sites.items()):
        if not is_site(path):
            bare[name] = stores[name] = path.resolve()
            continue
        try:
            site = Site.open(path)
        except SiteError as error:
            errors.append(Finding("error", f"--site {name}", str(error)))
            continue
        if site.name != name:
            text = f"{path} is the site {site.name!r}: say --site {site.name}=... (plans name sites, too)"
            errors.append(Finding("error", f"--site {name}", text))
        site_files[name], stores[name] = site.path.resolve(), site.store
    return Sources(site_files, bare, stores, tuple(errors))


def is_site(path: Path) -> bool:
    """Whether `path` is a site.json, or a folder that holds one; else it is taken for a store."""
    return path.is_file() or any((path / place).exists() for place in (SITE_JSON, f"local/{SITE_JSON}"))


def findings(sources: Sources, no_policy: bool) -> Iterator[Finding]:
    """What keeps these sites from running."""
    yield from sources.errors
    for name in sources.bare if not no_policy else ():
        yield Finding(
            "error",
            f"--site {name}",
            "is a store alone, which has no policy and no ledger: make a site of it with `fedscan site init`, or say "
            "--no-policy",
        )


def private_findings(sources: Sources, plan: Plan) -> list[Finding]:
    """A private plan needs a ledger at every site."""
    if plan.privacy is None:
        return []
    text = "a private plan must be charged, but a store alone has no ledger: make a site with `fedscan site init`"
    return [Finding("error", f"--site {name}", text) for name in sources.bare]


def stamps(sources: Sources, reproducible_noise_seed: int | None) -> tuple[str, ...]:
    """What every output of a run of these sites must say of it."""
    said = []
    if sources.bare:
        said.append(NO_POLICY if not sources.site_files else f"{NO_POLICY}: {', '.join(sources.bare)}")
    if reproducible_noise_seed is not None:
        said.append(REPRODUCIBLE_NOISE)
    return tuple(said)
