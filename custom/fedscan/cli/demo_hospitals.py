"""The demo's hospitals: their exports, their slice stores, and their own key, ledger and policy."""

from __future__ import annotations

import hashlib

from fedscan.cli.demo_steps import Demo, DemoError


def write_exports(demo: Demo) -> str:
    """demo/exports/NAME: a hospital's export as its scanner writes it, with labels.csv and the mess of real ones."""
    from ctslices.phantom import PROFILES
    from ctslices.phantom_export import write_hospital_export

    everybody = sum(demo.settings.patients)
    written = 0
    for number, (profile, patients) in enumerate(zip(PROFILES, demo.settings.patients, strict=False)):

        def tell(done: int, _: int, before: int = written, name: str = profile.name) -> None:
            demo.progress.update((before + done) / everybody, f"{name}, {before + done} of {everybody} patients")

        write_hospital_export(demo.out / "exports" / profile.name, profile, patients, demo.settings.seed + number, tell)
        written += patients
    return f"{written} phantom patients in {len(demo.settings.patients)} hospitals"


def prepare_stores(demo: Demo) -> str:
    """demo/stores/NAME: each hospital's slice store; its key and rejected.jsonl lie beside it."""
    from ctslices.files import write_whole
    from ctslices.options import Options
    from ctslices.prepare import Site, prepare

    slices = 0
    (demo.out / "stores").mkdir(exist_ok=True)
    for number, name in enumerate(demo.hospitals):

        def tell(phase: str, done: int, total: int, number: int = number, name: str = name) -> None:
            phases = ("reading headers", "converting", "writing")
            inner = (phases.index(phase) + done / max(total, 1)) / 3 if phase in phases else 0.0
            demo.progress.update((number + inner) / len(demo.hospitals), f"{name}, {phase} {done}/{total}")

        # Phantoms need no secret, and a known key makes the split, and so the whole demo, the same each time.
        key = demo.out / "stores" / f"{name}.key"
        if not key.exists():
            write_whole(key, hashlib.sha256(f"fedscan demo {name}".encode()).hexdigest().encode() + b"\n", mode=0o600)
        export = demo.out / "exports" / name
        options = Options(every_mm=demo.settings.every_mm)
        slices += prepare(export, demo.stores[name], options, Site(labels=export / "labels.csv"), tell).slices
    return f"{slices} slices of 64 x 64 pixels"


def make_sites(demo: Demo) -> str:
    """demo/sites/NAME: a hospital's key, ledger with its anchor, policy and site.json, as `fedscan site init` makes
    them. What is there is kept: a new ledger would be a new budget."""
    from fedscan.privacy.site_init import init, policy_with

    if (demo.out / "run-private").exists() and not (demo.out / "sites").exists():
        raise DemoError(
            f"{demo.out / 'sites'} is gone, and with it the ledgers of {demo.out / 'run-private'}: put it back, or "
            "start anew with --fresh"
        )
    policy = policy_with(demo.settings.policy)
    for name, folder in demo.sites.items():
        if not (folder / "site.json").exists():
            init(folder, name=name, store=demo.stores[name], policy=policy)
    return f"each with a budget of epsilon {policy.max_epsilon:g} at delta {policy.max_delta:g}"
