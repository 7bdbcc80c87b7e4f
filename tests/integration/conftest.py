"""Small stores, sites, jobs, and a federation that goes on running while a test submits jobs to it."""

from __future__ import annotations

import functools
import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ctslices.phantom import chest_slices
from ctslices.store import write_store
from fedscan.federation import admin, job_folder, kits, local_run, processes, records
from fedscan.federation.places import ServerPlaces, SitePlaces
from fedscan.privacy.site_file import Site
from fedscan.privacy.site_init import init, policy_with

SITES = ("hosp-a", "hosp-b", "hosp-c")
SERVER_SIDE = Path(__file__).parent / "server_side"
PATIENTS = 12


@pytest.fixture(scope="session")
def stores(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Three sites with 24, 32 and 40 phantom slices; every patient in the train split."""
    folder = tmp_path_factory.mktemp("stores")
    made = {}
    for number, site in enumerate(SITES):
        n = 24 + 8 * number
        hu, _ = chest_slices(np.random.default_rng(number), n)
        patient = np.arange(n) // 8
        made[site] = write_store(folder / site, hu, patient, splits=["train"] * (n // 8))
    return made


@pytest.fixture
def job(repository: Path, tmp_path: Path) -> Path:
    """Three rounds of four steps with the tiny preset."""
    settings = [
        "model.preset=tiny",
        "rounds=3",
        "training.local_steps=4",
        "training.batch_size=8",
        "training.warmup_steps=2",
        "min_responses=3",
        "round_timeout_s=120",
    ]
    job_folder.new(repository / "jobs" / "ct_fedavg", tmp_path / "job", settings)
    return tmp_path / "job"


@pytest.fixture(scope="session")
def make_site() -> Callable[..., Path]:
    """Makes a site with phantom patients of two slices each, and a policy that takes so few."""

    def make(folder: Path, name: str, *policy: str, patients: int = PATIENTS) -> Path:
        hu, _ = chest_slices(np.random.default_rng(sum(name.encode())), 2 * patients)
        store = write_store(folder / f"{name}-store", hu, np.arange(2 * patients) // 2, splits=["train"] * patients)
        settings = ["min_patients=10", "max_delta=1e-3", *policy]
        return init(folder / name, name=name, store=store, policy=policy_with(settings)).site.path

    return make


@pytest.fixture(scope="session")
def seconds_to_next_round() -> Callable[[Path, float], float]:
    """From a kill, in seconds of time.time(), to the end of the round that was in flight, or of its next try."""

    def seconds(run: Path, killed_at: float) -> float:
        ends = [datetime.fromisoformat(r.time).timestamp() for r in records.effective_rounds(run / "rounds.jsonl")]
        return min(end for end in ends if end > killed_at) - killed_at

    return seconds


@pytest.fixture(scope="session")
def private_settings() -> Callable[..., list[str]]:
    """`--set` of a private plan for sites of that size."""

    def make(*sites: str, settings: tuple[str, ...] = (), **privacy: Any) -> list[str]:
        part = {
            "noise_multiplier": 1.0,
            "delta": 1e-3,
            "from_scratch": True,
            "answer_after_s": 20.0,
            "sites": {site: {"sample_rate": 0.25, "expected_patients_per_step": 3.0} for site in sites},
        }
        return [
            "model.preset=tiny",
            "rounds=2",
            "training.local_steps=2",
            "training.warmup_steps=2",
            "training.precision=fp32",
            "weighting=uniform",
            "round_timeout_s=120",
            "min_responses=1",
            f"privacy={json.dumps(part | privacy)}",
            *settings,
        ]

    return make


class Lab:
    """A server, sites under their own site.json, and a session of the lead; each runs until it is stopped."""

    def __init__(self, folder: Path, sites: dict[str, Path], session: Any, federation: kits.Federation) -> None:
        self.folder, self.sites, self.session, self.federation = folder, sites, session, federation

    def site(self, name: str = "hosp-a") -> Site:
        return Site.open(self.sites[name])

    def steps_charged(self, name: str = "hosp-a") -> int:
        return sum(event.steps for event in self.site(name).open_ledger().events())

    def reasons(self, name: str = "hosp-a") -> list[str]:
        """What the site noted of refusals, in order."""
        path = self.site(name).state / "refusals.jsonl"
        lines = path.read_text().splitlines() if path.exists() else []
        return ["; ".join(json.loads(line)["reasons"]) for line in lines]

    def submit(self, job: Path) -> str:
        return admin.submit(self.session, job)

    def wait(self, job_id: str, timeout_s: float = 240.0) -> dict[str, Any]:
        """The job's meta when it has ended."""
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            meta: dict[str, Any] = self.session.get_job_meta(job_id)
            # NVFlare writes the deployment's detail a moment after the status.
            if str(meta.get("status", "")).startswith("FINISHED") and "job_deploy_detail" in meta:
                return meta
            time.sleep(0.3)
        raise AssertionError(f"job {job_id} did not end in {timeout_s:.0f} s")

    def run(self, job: Path) -> dict[str, Any]:
        return self.wait(self.submit(job))

    def run_folder(self, job: Path) -> Path:
        config = json.loads((job / job_folder.CLIENT_PATH).read_text())
        return self.folder / "runs" / config["submission"]["run_id"]

    def start(self, name: str) -> Any:
        return processes.start(self.federation, name)


@pytest.fixture(scope="session")
def lab() -> Callable[..., Any]:
    """Context manager: a running federation of these sites. The server may run what lies in `server_side`."""

    @contextmanager
    def running(
        folder: Path,
        sites: dict[str, Path],
        start: tuple[str, ...] | None = None,
        change: Callable[[kits.Federation], None] = lambda _: None,
    ) -> Iterator[Lab]:
        """`sites`: each site's site.json, or its slice store for a site without policy. `change`: of the new kits."""
        places = {name: _site_places(path, folder / f"{name}-state") for name, path in sites.items()}
        server = ServerPlaces(run_folder=str(folder / "runs" / "{run_id}"), shelf=folder / "shelf")
        federation = kits.provision(folder / "federation", places, server)
        _allow_everything_at_the_server(federation)
        change(federation)
        with ExitStack() as stack:
            stack.callback(processes.stop_all, folder)
            with _server_path(folder):
                parents = {kits.SERVER: processes.start(federation, kits.SERVER)}
            names = tuple(sites) if start is None else start
            parents |= {name: processes.start(federation, name) for name in names}
            check = functools.partial(local_run._all_alive, parents, federation)
            session = stack.enter_context(admin.session(federation.kit(kits.LEAD), kits.LEAD, check))
            admin.wait_for_sites(session, names, check)
            yield Lab(folder, sites, session, federation)

    return running


def _site_places(path: Path, state: Path) -> SitePlaces:
    return SitePlaces(site_file=path) if path.is_file() else SitePlaces(no_policy=True, store=path, state=state)


@contextmanager
def _server_path(folder: Path) -> Iterator[None]:
    """The server's process, and no other, finds `server_side`, and writes there what it hears."""
    before = os.environ.copy()
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (before.get("PYTHONPATH"), str(SERVER_SIDE))))
    os.environ["FEDSCAN_TEST_TAP"] = str(folder / "tap")
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def _allow_everything_at_the_server(federation: kits.Federation) -> None:
    path = federation.kit(kits.SERVER) / "local" / "resources.json"
    resources = json.loads(path.read_text())
    resources["class_allow_list"] = ["fedscan.federation.job.", "hostile_server."]
    path.write_text(json.dumps(resources))
