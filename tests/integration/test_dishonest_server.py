"""A server that leaves out who asks: NVFlare's sites then obey without asking their own authorization.json.

hosp-a has the counter in its parent process, hosp-b has not: what comes back from hosp-b shows that the way is one.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from server_orders import order
from watched import WatchedSite

from fedscan.federation import byte_log, kits

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

COUNTED, OPEN = "hosp-a", "hosp-b"
PATIENT = "PATIENT-4711"
ORDERS = {
    "a shell": ("sys.shell", "cat patients.txt"),
    "a listing": ("sys.shell", "ls local"),
    "the machine": ("sys.info", ""),
    "its resources": ("resource_manager.report_resources", ""),
    "its environment": ("sys.report_env", ""),
    "its jobs": ("train.check_status", ""),
    "a run folder's place": ("train.delete_run", "x"),
    "a command of no site": (PATIENT, ""),
}


@pytest.fixture(scope="module")
def running(
    tmp_path_factory: pytest.TempPathFactory, lab: Callable[..., Any], make_site: Callable[..., Path]
) -> Iterator[Any]:
    folder = tmp_path_factory.mktemp("dishonest")

    def plant(federation: kits.Federation) -> None:
        for site in (COUNTED, OPEN):
            (federation.kit(site) / "patients.txt").write_text(PATIENT)
        path = federation.kit(OPEN) / "local" / "resources.json"
        resources = json.loads(path.read_text())
        resources["components"] = [c for c in resources["components"] if "SiteByteCounter" not in c["path"]]
        path.write_text(json.dumps(resources))

    sites = {site: make_site(folder, site) for site in (COUNTED, OPEN)}
    with lab(folder, sites, change=plant) as one:
        yield one


def test_without_the_counter_a_site_reads_out_its_files(running: Any) -> None:
    assert PATIENT in order(running, OPEN, "sys.shell", "cat patients.txt")["body"]
    assert "privacy.json" in order(running, OPEN, "sys.shell", "ls local")["body"]
    assert order(running, OPEN, "sys.info", "")["code"] == "ok"


@pytest.mark.parametrize("name", ORDERS)
def test_with_it_nothing_leaves(running: Any, name: str) -> None:
    answer = order(running, COUNTED, *ORDERS[name])
    assert answer["body"] in ("None", "withheld by the site", "invalid_request"), answer
    assert answer["code"] in ("ok", "timeout")


def test_what_was_asked_and_stayed_is_noted_at_the_site(running: Any) -> None:
    order(running, COUNTED, "sys.shell", "cat patients.txt")
    kept_in = [e.text for e in WatchedSite(running, COUNTED).events() if e.what == "refused"]
    assert any("gate: admin/admin: an answer to a command that is on no list" in text for text in kept_in)
    state = running.site(COUNTED).state
    assert any(
        "admin/admin: an answer to a command that is on no list" in reason for reason in running.reasons(COUNTED)
    )
    assert any(total.blocked and total.channel == "admin/admin" for total in byte_log.totals(byte_log.read(state)))
    assert PATIENT not in (state / "refusals.jsonl").read_text()
