"""A hospital's kit as provisioned, installed by `site install`, started by its own script, in a real federation."""

from __future__ import annotations

import contextlib
import json
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from ctslices.phantom import chest_slices
from ctslices.store import write_store
from fedscan.federation import (
    admin,
    byte_log,
    job_folder,
    kits,
    processes,
    remote_run,
    site_clean,
    site_doctor,
    site_dossier,
    site_preflight,
)
from fedscan.federation.local_run import RunError
from fedscan.federation.places import SERVER_FILE, ServerPlaces
from fedscan.federation.site_install import Choices, install
from fedscan.privacy.site_file import Site
from fedscan.privacy.site_init import policy_with

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

INSTALLED, AS_SENT = "hosp-a", "hosp-b"


@dataclass(frozen=True)
class Live:
    """Server and two sites that run: one installed, one as it was sent."""

    folder: Path
    federation: kits.Federation
    session: Any

    def kit(self, name: str) -> Path:
        return self.federation.kit(name)

    def console(self, name: str) -> str:
        return (self.kit(name) / "console.log").read_text(errors="replace")


def until(what: Callable[[], object], limit_s: float = 180.0) -> None:
    deadline = time.monotonic() + limit_s
    while not what():
        assert time.monotonic() < deadline, "it did not come about in time"
        time.sleep(0.3)


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    folder = tmp_path_factory.mktemp("installed")
    workspace = folder / "ws"
    workspace.mkdir()
    description = kits.project((INSTALLED, AS_SENT), kits.free_ports(2))
    (workspace / "project.yml").write_text(yaml.safe_dump(description, sort_keys=False))
    kits.run_provisioner(workspace)
    federation = kits.Federation(workspace, (INSTALLED, AS_SENT))
    places = ServerPlaces(run_folder=str(folder / "runs" / "{run_id}"), shelf=folder / "shelf")
    (federation.kit(kits.SERVER) / "local" / SERVER_FILE).write_text(places.model_dump_json())
    hu, _ = chest_slices(np.random.default_rng(5), 24)
    store = write_store(folder / "store", hu, np.arange(24) // 2, splits=["train"] * 12)
    install(federation.kit(INSTALLED), Choices(store=store, policy=policy_with(["min_patients=10", "max_delta=1e-3"])))
    with contextlib.ExitStack() as stack:
        stack.callback(processes.stop_all, folder)
        for name in (kits.SERVER, INSTALLED, AS_SENT):
            processes.start_by_script(federation.kit(name))
        session = stack.enter_context(admin.session(federation.kit(kits.LEAD), kits.LEAD, lambda: None))
        admin.wait_for_sites(session, (INSTALLED, AS_SENT), lambda: None)
        yield Live(folder, federation, session)


@pytest.fixture
def make_job(repository: Path, tmp_path: Path, private_settings: Callable[..., list[str]]) -> Callable[[str], Path]:
    def make(site: str) -> Path:
        settings = private_settings(site, settings=("rounds=1",))
        job_folder.new(repository / "jobs" / "ct_fedavg_dp", tmp_path / site, settings, (site,))
        return tmp_path / site

    return make


def test_the_preflight_of_a_running_site_finds_nothing_and_displaces_nobody(live: Live) -> None:
    joined = live.console(kits.SERVER).count("joined")
    heartbeats = _heartbeats(live)
    for _ in range(3):
        checks = site_preflight.check(live.kit(INSTALLED))
        assert [one for one in checks if one.level == "error"] == []
        good = {one.name for one in checks if one.level == "ok"}
        assert {"server", "clock", "listening-port", "process", "installed", "start-scripts"} <= good
    until(lambda: _heartbeats(live) >= heartbeats + 2)  # the site goes on, under its first registration
    assert live.console(kits.SERVER).count("joined") == joined
    assert "already registered" not in live.console(kits.SERVER)
    assert sorted(admin.connected(live.session)) == [INSTALLED, AS_SENT]


def _heartbeats(live: Live) -> int:
    totals = byte_log.totals(byte_log.read(Site.open(live.kit(INSTALLED)).state), byte_log.PARENT)
    return sum(total.messages for total in totals if "heart_beat" in total.channel)


def test_an_installed_site_trains_and_its_tools_know_it(
    live: Live, make_job: Callable[[str], Path], tmp_path: Path
) -> None:
    judged = remote_run.run(make_job(INSTALLED), live.kit(kits.LEAD), tmp_path / "RUN", lambda said: print(said.text))
    assert judged.good, judged.failings
    kit = live.kit(INSTALLED)
    site = Site.open(kit)
    assert len(site.open_ledger().events()) == 1
    text = site_dossier.render(site_dossier.read(kit))
    run = json.loads((tmp_path / "RUN" / "job" / job_folder.CLIENT_PATH).read_text())["submission"]["run_id"]
    assert f"| {run[:12]} |" in text
    assert "(nothing was sent yet)" not in text
    (job,) = site_clean.job_folders(kit)
    until(lambda: site_doctor.diagnose(kit).jobs == ())
    assert site_clean.clean(kit, 0.0).removed == ()  # it ended within this hour
    later = time.time() + 7200.0
    assert {item.path for item in site_clean.clean(kit, 0.01, now=later).removed} >= {job}
    assert not job.exists()
    assert site_doctor.diagnose(kit).process == "runs"
    assert [one for one in site_preflight.check(kit) if one.level == "error"] == []


def test_a_kit_that_was_not_installed_refuses(live: Live, make_job: Callable[[str], Path], tmp_path: Path) -> None:
    with contextlib.suppress(RunError):
        judged = remote_run.run(make_job(AS_SENT), live.kit(kits.LEAD), tmp_path / "RUN", lambda said: print(said.text))
        assert not judged.good
    assert not (tmp_path / "RUN" / "model.safetensors").exists()
    found = site_doctor.diagnose(live.kit(AS_SENT))
    assert "refused-files" in [seen.symptom.name for seen in found.seen]
    assert [one.name for one in site_preflight.check(live.kit(AS_SENT)) if one.level == "error"] == ["installed"]


def test_a_copied_kit_that_is_started_hears_that_its_name_is_taken(live: Live) -> None:
    """The first start keeps the name, and has nothing to say of it; the doctor of the second one has."""
    kit = live.kit(INSTALLED)
    copy = live.folder / "stolen"
    shutil.copytree(kit, copy, symlinks=True, ignore=shutil.ignore_patterns("*.fl", "log.*", "log_fl*", "*.log"))
    process = processes.start_by_script(copy)
    try:
        until(lambda: "displaced" in [seen.symptom.name for seen in site_doctor.diagnose(copy).seen], limit_s=240)
    finally:
        process.kill()
        process.wait(timeout=60)
    assert "displaced" not in [seen.symptom.name for seen in site_doctor.diagnose(kit).seen]
