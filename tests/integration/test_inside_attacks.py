"""A job's component inside a site's job process tries to tell a patient's number: read at the server what arrives.

Two sites run the same component: hosp-a behind gate and counter, hosp-b without them. What arrives from hosp-b shows
that a way is a way; nothing arrives from hosp-a, and its answers are good.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ctslices.phantom import chest_slices
from ctslices.store import write_store
from fedscan.federation import byte_log, job_folder, kits, records

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

GATED, OPEN = "hosp-a", "hosp-b"
INSIDE = Path(__file__).parent / "inside"
SPIES = (
    {"id": "logs", "path": "nvflare.app_common.logging.job_log_streamer.JobLogStreamer", "args": {}},
    {"id": "attacker", "path": "inside_attacker.Attacker", "args": {}},
)
WAYS = (
    "sticky",
    "reserved",
    "log",
    "errorlog",
    "requestheader",
    "earlykey",
    "earlyheader",
    "earlydxo",
    "earlymeta",
    "earlyrecord",
    "earlytensor",
    "latekey",
    "lateheader",
    "cookie",
    "latedxo",
    "latemeta",
    "laterecord",
    "latetensor",
    "fedevent",
    "analytics",
    "aux",
    "othersite",
    "cell",
    "cellerror",
    "parentchannel",
    "cellnet",
    "bulk",
    "twice",
    "classname",
    "file",
    "siteconfig",
)


def weaken(federation: kits.Federation) -> None:
    """Both kits allow any class, stream logs, have no validator, and say more than they should when they register."""
    for site in (GATED, OPEN):
        local = federation.kit(site) / "local"
        resources = json.loads((local / "resources.json").read_text())
        resources["class_allow_list"] = ["*"]
        resources["allow_log_streaming"] = True
        resources["patients"] = "PATIENT-siteconfig-4711"
        del resources["client"]["site_config"]
        privacy = json.loads((local / "privacy.json").read_text())
        if site == OPEN:
            resources["components"] = [c for c in resources["components"] if "fedscan" not in c["path"]]
            privacy["components"] = []
        (local / "resources.json").write_text(json.dumps(resources))
        (local / "privacy.json").write_text(json.dumps(privacy))


@pytest.fixture(scope="module")
def attacked(
    tmp_path_factory: pytest.TempPathFactory, lab: Callable[..., Any], repository: Path
) -> tuple[Path, Path, dict[str, Any]]:
    """The lab's folder, the run's folder, and NVFlare's word on the job."""
    folder = tmp_path_factory.mktemp("inside")
    stores = {}
    for seed, site in enumerate((GATED, OPEN)):
        hu, _ = chest_slices(np.random.default_rng(seed), 24)
        stores[site] = write_store(folder / site, hu, np.arange(24) // 8, splits=["train"] * 3)
    settings = ["model.preset=tiny", "rounds=2", "training.local_steps=2", "training.batch_size=4"]
    settings += ["training.warmup_steps=1", "min_responses=1", "tries_per_round=1", "round_timeout_s=120"]
    job = folder / "job"
    job_folder.new(repository / "jobs" / "ct_fedavg", job, settings, [GATED, OPEN])
    config = json.loads((job / job_folder.CLIENT_PATH).read_text())
    config["components"] += SPIES
    (job / job_folder.CLIENT_PATH).write_text(json.dumps(config))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(INSIDE))
        with lab(folder / "lab", stores, change=weaken) as running:
            meta = running.run(job)
            return folder / "lab", running.run_folder(job), meta


def arrived(lab: Path, site: str) -> bytes:
    """All bytes that the server's parent process received on connections of this site's processes."""
    found = b""
    for path in (lab / "tap").glob("*.frames"):
        data, at = path.read_bytes(), 0
        while at < len(data):
            end = data.index(b"\n", at) + 1
            head = json.loads(data[at:end])
            if head["from"].partition(".")[0] == site:
                found += data[end : end + head["bytes"]]
            at = end + head["bytes"]
    return found


@pytest.mark.parametrize("way", WAYS)
def test_each_way_is_open_without_the_gate(attacked: tuple[Path, Path, Any], way: str) -> None:
    assert f"PATIENT-{way}-4711".encode() in arrived(attacked[0], OPEN)


def test_nothing_slips_out_past_the_gate(attacked: tuple[Path, Path, Any]) -> None:
    found = arrived(attacked[0], GATED)
    assert len(found) > 10**6, "its answers arrived"
    assert set(re.findall(rb"PATIENT-\w+", found)) == set()
    assert b"4711" not in found


def test_the_run_goes_on_with_the_answers_that_the_guard_passed(attacked: tuple[Path, Path, Any]) -> None:
    _, run, meta = attacked
    assert meta["status"] == "FINISHED:COMPLETED"
    rounds = list(records.effective_rounds(run / "rounds.jsonl"))
    assert [record.sites[GATED].answered for record in rounds] == [True, True]


def test_what_stayed_is_noted_at_the_site_without_its_content(attacked: tuple[Path, Path, Any]) -> None:
    state = attacked[0] / f"{GATED}-state"
    notes = (state / "refusals.jsonl").read_text()
    assert "PATIENT" not in notes
    for what in ("fed.event", "patients/bye", "taken out: header/?", "result: it was changed after"):
        assert what in notes, what
    blocked = {total.channel for total in byte_log.totals(byte_log.read(state)) if total.blocked}
    assert "patients/bye" in blocked
    assert not any("submit_update" in channel for channel in blocked)
