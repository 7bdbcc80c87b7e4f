"""Crafted jobs against a site's policy, through real provisioned processes: none trains, none answers.

One federation runs for all of them; its lead signs whatever he is given, and its server runs any controller.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from watched import WatchedSite

from fedscan.federation import job_folder, wall
from fedscan.federation.messages import REFUSED_BY_POLICY
from fedscan.privacy.accounting import epsilon
from fedscan.privacy.event import Event

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

Config = dict[str, Any]
SITE = "hosp-a"
CLIENT, SERVER = job_folder.CLIENT_PATH, job_folder.SERVER_PATH
ONE_ROUND = Event(noise_multiplier=1.0, sample_rate=0.25, steps=2, unit="patient")
STORE_SPY = """
from nvflare.apis.fl_component import FLComponent
class Spy(FLComponent):
    def handle_event(self, event_type, fl_ctx):
        open("/tmp/fedscan-spy", "w").write("I was here")
"""


@pytest.fixture(scope="module")
def running(
    tmp_path_factory: pytest.TempPathFactory, lab: Callable[..., Any], make_site: Callable[..., Path]
) -> Iterator[Any]:
    """One site whose budget takes one round and not two."""
    folder = tmp_path_factory.mktemp("attacks")
    budget = (epsilon([ONE_ROUND], 1e-3) + epsilon([ONE_ROUND] * 2, 1e-3)) / 2
    with lab(folder, {SITE: make_site(folder, SITE, f"max_epsilon={budget}")}) as one:
        yield one


@pytest.fixture
def new_job(repository: Path, tmp_path: Path, private_settings: Callable[..., list[str]]) -> Callable[..., Path]:
    """Makes a private job of one round that the policy takes; `change` is done to its files before it is signed."""

    def make(name: str = "job", change: Callable[[Path], None] = lambda job: None, **privacy: Any) -> Path:
        settings = private_settings(
            SITE, settings=("rounds=1", "tries_per_round=1"), **{"answer_after_s": 3.0} | privacy
        )
        job = tmp_path / name
        job_folder.new(repository / "jobs" / "ct_fedavg", job, settings, [SITE])
        change(job)
        return job

    return make


def edit(path: Path, change: Callable[[Config], object]) -> Callable[[Path], None]:
    def apply(job: Path) -> None:
        config = json.loads((job / path).read_text())
        change(config)
        (job / path).write_text(json.dumps(config))

    return apply


def plan(change: Callable[[Config], object]) -> Callable[[Path], None]:
    """In both apps: the server would else be another's."""

    def apply(job: Path) -> None:
        for path in (CLIENT, SERVER):
            edit(path, lambda config: change(config["plan"]))(job)

    return apply


def ship_code(job: Path) -> None:
    custom = job / "app_client" / "custom"
    custom.mkdir()
    (custom / "spy.py").write_text(STORE_SPY)


def ship_code_and_name_it(job: Path) -> None:
    ship_code(job)
    edit(CLIENT, lambda c: c["components"].append({"id": "spy", "path": "spy.Spy", "args": {}}))(job)


def as_yaml(job: Path) -> None:
    """A second configuration of the same name, which NVFlare can read as well."""
    (job / "app_client" / "config" / "config_fed_client.yml").write_text("format_version: 2\n")


def filters(where: str, path: str) -> Callable[[Path], None]:
    chain = [{"tasks": ["*"], "filters": [{"path": path, "args": {}}]}]
    return edit(CLIENT, lambda c: c.update({where: chain}))


EXECUTOR = "nvflare.app_common.executors.client_api_launcher_executor.ClientAPILauncherExecutor"
ATTACKS: dict[str, tuple[Callable[[Path], None], str]] = {
    "DP off": (plan(lambda p: p.update(privacy=None, weighting="examples")), "require_dp"),
    "a wrong delta": (plan(lambda p: p["privacy"].update(delta=9e-3)), "max_delta"),
    "a delta of nearly one": (plan(lambda p: p["privacy"].update(delta=0.999)), "privacy.delta"),
    "too little noise": (plan(lambda p: p["privacy"].update(noise_multiplier=0.01)), "min_noise_multiplier"),
    "image-level unit": (plan(lambda p: p["privacy"].update(unit="image")), "allow_image_unit"),
    "a learning rate beyond the bound": (plan(lambda p: p["training"].update(learning_rate=1e9)), "learning_rate"),
    "more than the budget": (plan(lambda p: p["training"].update(local_steps=200_000)), "max_epsilon"),
    "a variable in the plan": (plan(lambda p: p["privacy"].update(noise_multiplier="{NOISE}")), "noise_multiplier"),
    "a variable's value beside it": (edit(CLIENT, lambda c: c.update(NOISE=0.001)), "no place for 'NOISE'"),
    "literal arguments": (
        edit(CLIENT, lambda c: c["executors"][0]["executor"]["args"].update(store="/etc", policy=None)),
        "executors must be",
    ),
    "another executor": (edit(CLIENT, lambda c: c["executors"][0]["executor"].update(path=EXECUTOR)), "executors must"),
    "another task name": (
        edit(CLIENT, lambda c: c["executors"][0].update(tasks=["train", "export"])),
        "executors must",
    ),
    "a result filter after the site's": (
        filters("task_result_filters", "nvflare.app_common.filters.exclude_vars.ExcludeVars"),
        "task_result_filters must be",
    ),
    "a data filter": (
        filters("task_data_filters", "nvflare.app_common.filters.exclude_vars.ExcludeVars"),
        "task_data_filters must be",
    ),
    "an event handler": (
        edit(
            CLIENT,
            lambda c: c["components"].append(
                {"id": "to_fed", "path": "nvflare.app_common.widgets.convert_to_fed_event.ConvertToFedEvent"}
            ),
        ),
        "components must be",
    ),
    "code shipped": (ship_code, "does not belong in a job"),
    "an event handler of shipped code": (ship_code_and_name_it, "does not belong in a job"),
    "a second configuration": (as_yaml, "does not belong in a job"),
    "expired": (
        edit(CLIENT, lambda c: c["submission"].update(expires="2020-01-01T00:00:00+00:00")),
        "it expired",
    ),
}


@pytest.mark.parametrize("name", ATTACKS)
def test_a_crafted_job_is_refused_at_deployment(running: Any, new_job: Callable[..., Path], name: str) -> None:
    change, reason = ATTACKS[name]
    charged, noted, site = running.steps_charged(), len(running.reasons()), WatchedSite(running, SITE)
    meta = running.run(new_job(change=change))
    assert not meta["status"].endswith("COMPLETED")
    said = [entry for entry in meta["job_deploy_detail"] if entry.startswith(SITE)]
    assert said == [f"{SITE}: NVFLARE_ERROR: {REFUSED_BY_POLICY}"], "no more than the constant"
    assert len(running.reasons()) == noted + 1
    assert reason in running.reasons()[-1]
    assert site.told("deploy: "), site.refused()
    assert site.told(REFUSED_BY_POLICY)
    assert running.steps_charged() == charged
    assert nothing_left(running)
    assert not Path("/tmp/fedscan-spy").exists()


def nothing_left(running: Any) -> bool:
    entries = wall.read(running.site().state / "wall.jsonl")
    return not [e for e in entries if e["kind"] == "tensors" and e["direction"] == "out"]


def test_a_scope_without_the_sites_filter_is_unknown_here(running: Any, new_job: Callable[..., Path]) -> None:
    """meta.json is signed by nobody and names the privacy scope: a site has one, with its filter in it."""
    charged, site = running.steps_charged(), WatchedSite(running, SITE)
    meta = running.run(new_job(change=edit(Path(job_folder.META), lambda m: m.update(scope="open"))))
    assert not meta["status"].endswith("COMPLETED")
    assert any("privacy scope 'open' is not allowed" in entry for entry in meta["job_deploy_detail"])
    assert site.told("job: NVFLARE_ERROR: privacy scope 'open' is not allowed"), site.refused()
    assert (running.steps_charged(), nothing_left(running)) == (charged, True)


def test_a_hostile_server_gets_a_constant_for_each_crafted_task(running: Any, new_job: Callable[..., Path]) -> None:
    """The deployed plan is good; the tasks are of another plan, run, round, model, form, ledger or name."""
    charged, site = running.steps_charged(), WatchedSite(running, SITE)
    workflow = [{"id": "fedavg", "path": "hostile_server.HostileFedAvg", "args": {}}]
    job = new_job(change=edit(SERVER, lambda c: c.update(workflows=workflow)))
    running.run(job)
    lines = (running.run_folder(job) / "replies.jsonl").read_text().splitlines()
    replies = {entry["asked"]: entry for entry in map(json.loads, lines)}
    aside = {f"aside {name}" for name in ("export", "validate", "submit_model", "train2", "*")}
    assert len(replies) == 7 + len(aside) + 1
    for asked, reply in replies.items():
        assert reply["code"] == ("TASK_UNKNOWN" if asked in aside else REFUSED_BY_POLICY), asked
        assert reply["keys"] == [], asked
    assert site.told("round in run", "belongs to another plan"), site.refused()
    assert (running.steps_charged(), nothing_left(running)) == (charged, True)


def test_an_old_signed_job_replayed_is_refused(running: Any, new_job: Callable[..., Path]) -> None:
    """Its nonce was taken when it was deployed first, whatever came of it then."""
    workflow = [{"id": "fedavg", "path": "hostile_server.HostileFedAvg", "args": {}}]
    first = running.submit(new_job(change=edit(SERVER, lambda c: c.update(workflows=workflow))))
    running.wait(first)
    charged = running.steps_charged()
    again = running.wait(running.session.clone_job(first))
    assert f"{SITE}: NVFLARE_ERROR: {REFUSED_BY_POLICY}" in again["job_deploy_detail"]
    assert "nonce was used before" in running.reasons()[-1]
    assert (running.steps_charged(), nothing_left(running)) == (charged, True)


def test_of_two_jobs_at_once_that_together_pass_the_budget_one_is_refused_and_so_is_every_later_one(
    running: Any, new_job: Callable[..., Path]
) -> None:
    """Both fit alone when they are deployed. The last test of this file: it spends the budget."""
    assert running.steps_charged() == 0
    jobs = [new_job(f"job-{k}", answer_after_s=25.0) for k in range(2)]
    ids = [running.submit(job) for job in jobs]
    for job_id in ids:
        running.wait(job_id)
    assert running.steps_charged() == ONE_ROUND.steps
    answered = [(running.run_folder(job) / "model.safetensors").exists() for job in jobs]
    assert sorted(answered) == [False, True]
    assert "max_epsilon" in running.reasons()[-1]
    # epsilon split over jobs: the third asks for what the first did
    meta = running.run(new_job("job-3"))
    assert f"{SITE}: NVFLARE_ERROR: {REFUSED_BY_POLICY}" in meta["job_deploy_detail"]
    assert "max_epsilon" in running.reasons()[-1]
    assert running.steps_charged() == ONE_ROUND.steps
