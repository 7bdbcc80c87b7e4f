"""Jobs that were altered after they were signed, or signed by somebody else, or sent a second time: no site takes one.

A server that is dishonest keeps the jobs, and sends them: what it does there stands in `attacking/job_store.py` and
`attacking/server_orders.py`. The federation is a real one, over mutual TLS; each refusal must stand in the chained log
of whoever refused.
"""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from job_store import Files, JobStore, packed, read_folder, unpacked
from nvflare.lighter.utils import load_private_key_file, sign_folders
from server_orders import deploy
from watched import WatchedServer, WatchedSite

from fedscan.federation import job_folder, kits
from fedscan.federation.messages import REFUSED_BY_POLICY
from fedscan.federation.places import ServerPlaces, SitePlaces
from fedscan.plan import Submission

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

SITES = ("hosp-a", "hosp-b")
CLIENT, SERVER = f"job/{job_folder.CLIENT_PATH}", f"job/{job_folder.SERVER_PATH}"
APP = f"job/{job_folder.APP_SITES}/"
SIGNATURE = ".__nvfl_sig.json"
NO_LEAD = "no lead's verified certificate signed the job"
NOT_SIGNED = "does not pass signature verification"


@pytest.fixture(scope="module")
def running(
    tmp_path_factory: pytest.TempPathFactory, lab: Callable[..., Any], make_site: Callable[..., Path]
) -> Iterator[Any]:
    folder = tmp_path_factory.mktemp("altered")
    with lab(folder, {site: make_site(folder, site) for site in SITES}) as one:
        yield one


@pytest.fixture(scope="module")
def store(running: Any) -> JobStore:
    return JobStore(running.federation)


@pytest.fixture(scope="module")
def strangers(tmp_path_factory: pytest.TempPathFactory) -> kits.Federation:
    """Another federation, under the same names."""
    folder = tmp_path_factory.mktemp("strangers")
    places = {site: SitePlaces(no_policy=True, store=folder, state=folder) for site in SITES}
    return kits.provision(folder / "other", places, ServerPlaces(run_folder=str(folder), shelf=folder))


@pytest.fixture
def job(repository: Path, tmp_path: Path, private_settings: Callable[..., list[str]]) -> Path:
    """A private job of one round that both sites would take."""
    settings = private_settings(*SITES, settings=("rounds=1", "tries_per_round=1"), answer_after_s=15.0)
    job_folder.new(repository / "jobs" / "ct_fedavg", tmp_path / "job", settings, SITES)
    return tmp_path / "job"


def edited(files: Files, path: str, change: Callable[[dict[str, Any]], object]) -> Files:
    config = json.loads(files[path])
    change(config)
    return files | {path: json.dumps(config).encode()}


def more_steps(config: dict[str, Any]) -> None:
    config["plan"]["training"]["local_steps"] = 3


def without(files: Files, *names: str) -> Files:
    return {path: content for path, content in files.items() if not (path.startswith(APP) and path.endswith(names))}


def signed_anew(files: Files, kit: Path, folder: Path) -> Files:
    """With another plan, and the signature of whose kit it is."""
    changed = unpacked(edited(files, CLIENT, more_steps), folder)
    key = next(path for name in ("client", "server") if (path := kit / "startup" / f"{name}.key").exists())
    sign_folders(str(changed / APP), load_private_key_file(key), str(key.with_suffix(".crt")))
    return read_folder(changed)


Change = Callable[[Files], Files]
ALTERED: dict[str, tuple[Change, str]] = {
    "a plan with other numbers": (lambda files: edited(files, CLIENT, more_steps), NOT_SIGNED),
    "a file more": (lambda files: files | {f"{APP}config/more.json": b"{}"}, NOT_SIGNED),
    "code": (lambda files: files | {f"{APP}custom/": b"", f"{APP}custom/spy.py": b"1"}, NOT_SIGNED),
    "no signature": (lambda files: without(files, SIGNATURE), "unsigned job rejected"),
    "no signature of its inner folder": (lambda files: without(files, f"config/{SIGNATURE}"), NOT_SIGNED),
    "the file that says all taken away": (
        lambda files: without(files, "config_fed_client.json"),
        "Missing required config",
    ),
}


@pytest.mark.parametrize("name", ALTERED)
def test_what_was_altered_in_the_servers_store_is_refused_by_each_site(
    running: Any, store: JobStore, job: Path, name: str
) -> None:
    change, reason = ALTERED[name]
    server, sites = WatchedServer(running), [WatchedSite(running, site) for site in SITES]
    job_id = store.altered(lambda: str(running.submit(job)), change)
    meta = running.wait(job_id)
    assert not meta["status"].endswith("COMPLETED")
    assert server.told("hosp-a: ", job=job_id), server.refused()
    for site in sites:
        must_refuse(site, job_id, reason)


def must_refuse(site: WatchedSite, job_id: str, reason: str) -> None:
    """Before anything of it runs; the reason is in refusals.jsonl and in the chained log."""
    site.must_have_done_nothing(job_id)
    assert any(reason in noted for noted in site.reasons()), site.reasons()
    assert site.told(reason), site.refused()
    assert [event.job for event in site.refused() if event.job] == [job_id]


@pytest.mark.parametrize(
    ("whose", "reason"),
    [("hosp-b", NO_LEAD), (kits.SERVER, NO_LEAD), ("a lead of another federation", NOT_SIGNED)],
)
def test_nor_is_what_somebody_else_signed_anew(
    running: Any, store: JobStore, strangers: kits.Federation, job: Path, tmp_path: Path, whose: str, reason: str
) -> None:
    """A site, or the server itself, has a certificate of this federation, too."""
    kit = strangers.kit(kits.LEAD) if whose.startswith("a lead") else running.federation.kit(whose)
    sites = [WatchedSite(running, site) for site in SITES]
    job_id = store.altered(lambda: str(running.submit(job)), lambda files: signed_anew(files, kit, tmp_path / "new"))
    running.wait(job_id)
    for site in sites:
        must_refuse(site, job_id, reason)


def test_what_was_altered_of_the_servers_own_part_does_not_begin(running: Any, store: JobStore, job: Path) -> None:
    """An honest server whose store somebody else wrote to."""
    server, sites = WatchedServer(running), [WatchedSite(running, site) for site in SITES]
    job_id = store.altered(lambda: str(running.submit(job)), lambda files: edited(files, SERVER, more_steps))
    meta = running.wait(job_id)
    assert any(NOT_SIGNED in entry for entry in meta["job_deploy_detail"])
    assert server.told("server: app app_server", NOT_SIGNED, job=job_id), server.refused()
    for site in sites:
        site.must_have_done_nothing(job_id)
        assert site.refused() == [], "it was not asked"


def test_what_was_altered_on_the_way_is_refused(running: Any, store: JobStore, job: Path) -> None:
    """As a site sees somebody in the middle; what was not altered is taken."""
    files, meta = store.taken(lambda: str(running.submit(job)))
    app = {path.removeprefix(APP): content for path, content in files.items() if path.startswith(APP) and path != APP}
    config = json.loads(app["config/config_fed_client.json"])
    more_steps(config)
    for altered in (
        app | {"config/config_fed_client.json": json.dumps(config).encode()},
        app | {"config/config_fed_client.json": app["config/config_fed_client.json"] + b" "},
        app | {f"config/{SIGNATURE}": app[SIGNATURE]},
    ):
        site, new = WatchedSite(running, "hosp-a"), str(uuid.uuid4())
        answer = deploy(running, "hosp-a", packed(altered), new, meta)
        assert NOT_SIGNED in answer["body"], answer
        must_refuse(site, new, NOT_SIGNED)
    site = WatchedSite(running, "hosp-a")
    answer = deploy(running, "hosp-a", packed(app), str(uuid.uuid4()), meta)
    assert answer["body"] == "deployed app_client to hosp-a"
    assert site.refused() == []


def test_a_job_with_code_is_refused_and_that_is_in_the_audit_log(running: Any, job: Path) -> None:
    """Signed by a lead; the site's own validator says so before NVFlare asks for rights."""
    (job / "app_client" / "custom").mkdir()
    (job / "app_client" / "custom" / "steal.py").write_text("print('here')\n")
    sites = [WatchedSite(running, site) for site in SITES]
    job_id = running.submit(job)
    running.wait(job_id)
    for site in sites:
        must_refuse(site, job_id, "custom/steal.py: does not belong in a job")
        assert site.told(REFUSED_BY_POLICY, job=job_id)


def test_a_job_that_ran_does_not_run_again(running: Any, store: JobStore, job: Path) -> None:
    """Sent a second time by its lead, signed anew; and laid into the store by the operator, as it was signed."""
    first = running.submit(job)
    assert running.wait(first)["status"].endswith("COMPLETED")
    assert all(running.steps_charged(site) > 0 for site in SITES)
    for again in (lambda: str(running.submit(job)), lambda: store.lay(store.files(first), store.meta(first))):
        sites = [WatchedSite(running, site) for site in SITES]
        job_id = again()
        running.wait(job_id)
        for site in sites:
            must_refuse(site, job_id, "its nonce was used before at this site")


def expiring(job: Path, seconds: float) -> datetime:
    expires = datetime.now(UTC) + timedelta(seconds=seconds)
    submission = job_folder.read_submission(job).model_copy(update={"expires": expires.isoformat()})
    job_folder.renew(job, Submission.model_validate(submission.model_dump()))
    return expires


def test_an_old_job_is_refused_after_its_time_even_if_it_never_ran(running: Any, store: JobStore, job: Path) -> None:
    """An operator keeps it back, and sends it later."""
    expires = expiring(job, 5.0)
    files, meta = store.taken(lambda: str(running.submit(job)))
    time.sleep(max(0.0, (expires - datetime.now(UTC)).total_seconds()) + 1.0)
    sites = [WatchedSite(running, site) for site in SITES]
    job_id = store.lay(files, meta)
    running.wait(job_id)
    for site in sites:
        must_refuse(site, job_id, "it expired")
