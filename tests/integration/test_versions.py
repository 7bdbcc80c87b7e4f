"""One site upgraded, and the others not: real processes of other software are refused whole, or work whole."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from fedscan.federation import admin, job_folder, remote_job, verdict
from fedscan.federation.versions import PROTOCOL, REFUSED_BY_VERSION

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

SOFTWARE: dict[str, dict[str, Any]] = {
    # An upgrade of Fedscan that speaks the same protocol: on disk and at work.
    "same": {"fedscan": "0.1.7", "installed": {"fedscan": "0.1.7"}},
    "newer": {"protocol": PROTOCOL + 1},
    "older": {"protocol": PROTOCOL - 1},
    "flare": {"nvflare": "2.9.1", "installed": {"nvflare": "2.9.1"}},
    # Upgraded on disk, and not restarted:
    "half": {"installed": {"fedscan": "0.2.0"}},
}
SITES = tuple(SOFTWARE)


@contextmanager
def software(changed: dict[str, Any]) -> Iterator[None]:
    """Processes that are started meanwhile are of that software."""
    before = os.environ.copy()
    here = str(Path(__file__).parent / "other_version")
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (here, before.get("PYTHONPATH"))))
    os.environ["FEDSCAN_TEST_SOFTWARE"] = json.dumps(changed)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def make_job(folder: Path, repository: Path, settings: list[str], sites: tuple[str, ...]) -> Path:
    job_folder.new(repository / "jobs" / "ct_fedavg", folder, settings, sites=list(sites))
    return folder


def start_all(running: Any, sites: tuple[str, ...]) -> None:
    for name in sites:
        with software(SOFTWARE[name]):
            running.start(name)
    admin.wait_for_sites(running.session, sites, lambda: None)


def test_who_speaks_another_protocol_is_refused_and_the_others_go_on(
    lab: Callable[..., Any], make_site: Callable[..., Path], repository: Path, tmp_path: Path
) -> None:
    sites = {name: make_site(tmp_path, name, "require_dp=false") for name in SITES}
    settings = ["model.preset=tiny", "rounds=2", "training.local_steps=2", "training.batch_size=8", "min_responses=1"]
    job = make_job(tmp_path / "job", repository, settings, SITES)
    with lab(tmp_path, sites, start=()) as running:
        start_all(running, SITES)
        ended = running.run(job)
        reasons = {name: " ".join(running.reasons(name)) for name in SITES}
        judged = verdict.read(running.run_folder(job) / verdict.FILE)

    assert judged is not None
    assert judged.good, judged.failings
    assert {name: share.answered for name, share in judged.sites.items()} == {
        name: 2 if name == "same" else 0 for name in SITES
    }
    assert reasons["same"] == ""
    for name in ("newer", "older"):
        said = SOFTWARE[name]["protocol"]
        assert f"the server speaks Fedscan protocol {PROTOCOL}, this site {said}" in reasons[name]
        [why] = judged.sites[name].refusals
        assert why.startswith(REFUSED_BY_VERSION)
        assert f"protocol {PROTOCOL} of this server" in why
    assert "NVFlare 2.9.1 is at work, Fedscan 0.1.0 was tested with 2.9.0" in reasons["flare"]
    assert "fedscan 0.1.0 is at work and 0.2.0 is installed: restart" in reasons["half"]
    assert remote_job.refused_at_deployment(ended) == dict.fromkeys(("flare", "half"), REFUSED_BY_VERSION)


def test_a_server_of_other_software_trains_nothing(
    lab: Callable[..., Any], make_site: Callable[..., Path], repository: Path, tmp_path: Path
) -> None:
    """The NVFlare that a server's Fedscan does not know: its reason stands in the verdict."""
    sites = {"same": make_site(tmp_path, "same", "require_dp=false")}
    job = make_job(tmp_path / "job", repository, ["model.preset=tiny", "rounds=2", "min_responses=1"], ("same",))
    with software(SOFTWARE["flare"]), lab(tmp_path, sites, start=()) as running:
        start_all(running, ("same",))
        running.run(job)
        assert running.reasons("same") == []
        judged = verdict.read(running.run_folder(job) / verdict.FILE)
    assert judged is not None
    assert not judged.good
    assert any("the server's software: NVFlare 2.9.1 is at work" in text for text in judged.failings)
