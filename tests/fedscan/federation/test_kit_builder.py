"""Kits of site_configs/project.yml, really provisioned: each rule of a strict kit, and what the builder refuses."""

from __future__ import annotations

import copy
import importlib
import json
import os
import shutil
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from nvflare.apis.fl_constant import AdminCommandNames as Command
from nvflare.fuel.sec.authz import AuthzContext, Person, parse_policy_config
from nvflare.lighter.constants import CtxKey
from nvflare.lighter.provision import prepare_builders, prepare_project
from nvflare.lighter.provisioner import Provisioner
from nvflare.security.security import COMMAND_CATEGORIES

from fedscan.federation import consortium, kit_builder, kit_files, kits, places
from fedscan.federation.kit_builder import KitError, StrictKitBuilder
from fedscan.federation.messages import REFUSED_BY_POLICY
from fedscan.federation.places import PlacesError, site_places
from fedscan.federation.validator import SiteValidator

SERVER = "fedscan.example.org"
SITES = ("hosp-a", "hosp-b", "hosp-c")
Description = dict[str, Any]
Make = Callable[[Description, Path], Path]


@pytest.fixture(scope="module")
def project_file(repository: Path) -> Path:
    return repository / "site_configs" / "project.yml"


@pytest.fixture
def description(project_file: Path) -> Description:
    return consortium.read_project(project_file)


@pytest.fixture(scope="module")
def made(project_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The kits, by the command of the page, under a umask that would leave them open."""
    folder = tmp_path_factory.mktemp("provisioned")
    nvflare = Path(sys.executable).with_name("nvflare")
    done = subprocess.run(
        [nvflare, "provision", "-p", project_file, "-w", folder / "consortium"],
        cwd=folder,
        capture_output=True,
        text=True,
        umask=0o022,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "holds the root key" in done.stdout
    return folder / "consortium" / "ct-consortium"


def _provision(description: Description, workspace: Path) -> tuple[Path | None, list[str]]:
    """In this process: the finished folder, if any, and NVFlare's error lines."""
    mask = os.umask(0o022)
    os.umask(mask)
    try:
        builders = prepare_builders(description)
        ctx = Provisioner(str(workspace), builders).provision(prepare_project(copy.deepcopy(description)))
    finally:
        os.umask(mask)
    done = None if ctx.get(CtxKey.BUILD_ERROR) else ctx.get_result_location()
    return (Path(done) if done else None), ctx.get_errors()


def _json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def test_the_project_has_a_server_three_hospitals_and_people_of_each_role(description: Description) -> None:
    kinds = [p["type"] for p in description["participants"]]
    assert (kinds.count("server"), kinds.count("client")) == (1, 3)
    roles = {p["role"] for p in description["participants"] if p["type"] == "admin"}
    assert roles == set(kit_files.ROLES)
    orgs = [p["org"] for p in description["participants"] if p["type"] == "client"]
    assert len(set(orgs)) == 3  # one organisation for two hospitals would make each the operator of the other's site


def test_each_key_of_the_project_file_is_explained(project_file: Path) -> None:
    """Line by line: each line with a value has a comment at its end, or stands below one, or repeats such a line."""
    explained: set[str] = set()
    above = False
    for line in project_file.read_text(encoding="utf-8").splitlines():
        text = line.strip()
        if not text or text.startswith("#"):
            above = bool(text)
            continue
        key = text.removeprefix("- ").partition(":")[0]
        if above or "#" in line or text.endswith(":"):
            explained.add(key)
        assert key in explained or key in {"path", "name", "description", "config_folder", "template_file"}, line
        above = above and text.startswith("- ")


def test_every_file_and_folder_is_its_owners_alone(made: Path) -> None:
    everything = [made, *made.rglob("*")]
    assert len(everything) > 100
    for path in everything:
        wanted = 0o700 if path.is_dir() or path.suffix == ".sh" else 0o600
        assert stat.S_IMODE(path.stat().st_mode) == wanted, path
    assert (made / "state" / "cert.json").is_file()


def test_an_open_state_of_earlier_versions_is_closed(description: Description, tmp_path: Path) -> None:
    assert _provision(description, tmp_path)[0]
    state = tmp_path / "ct-consortium" / "state"
    state.chmod(0o755)
    (state / "cert.json").chmod(0o644)
    _site(description, connection_security="clear")
    assert _provision(description, tmp_path)[0] is None  # refused; closed all the same
    assert stat.S_IMODE((state / "cert.json").stat().st_mode) == 0o600
    assert stat.S_IMODE(state.stat().st_mode) == 0o700


OWN, OTHER, COORDINATOR = "hospital_a", "hospital_b", "coordinator"
SHELL = [Command.SHELL_CAT, Command.SHELL_LS, Command.SHELL_PWD, Command.SHELL_HEAD, Command.SHELL_TAIL]
SHELL += [Command.SHELL_GREP]
OPERATE = [Command.SHUTDOWN, Command.RESTART, Command.SYS_INFO, Command.REPORT_ENV, Command.REPORT_RESOURCES]
VIEW = [Command.CHECK_STATUS, Command.SHOW_ERRORS, Command.SHOW_STATS, Command.SHOW_SCOPES]
LOGS = [Command.CONFIGURE_JOB_LOG, Command.CONFIGURE_SITE_LOG, Command.GET_JOB_LOG]
EVERYBODY = [(role, org) for role in kit_files.ROLES for org in (OWN, OTHER, COORDINATOR)]


@pytest.fixture(scope="module")
def may(made: Path) -> Callable[..., bool]:
    """Asks NVFlare's own policy, as a kit holds it."""

    def ask(kit: str, site_org: str, who: tuple[str, str], right: str, submitter: str = "x@y") -> bool:
        policy, error = parse_policy_config(
            _json(made / "prod_00" / kit / "local" / "authorization.json"), COMMAND_CATEGORIES
        )
        assert not error
        user = Person("me@here", who[1], who[0])
        allowed, _ = policy.evaluate(site_org, AuthzContext(right, user, Person(submitter, COORDINATOR, "lead")))
        return bool(allowed)

    return ask


def test_at_a_site_nobody_ships_code_or_has_a_shell(may: Callable[..., bool]) -> None:
    for who in EVERYBODY:
        for right in ["byoc", "server-predeployed-flwr", *SHELL, *LOGS, Command.CALL]:
            assert not may("hosp-a", OWN, who, right), (who, right)


def test_at_a_site_only_its_own_people_look_and_only_its_own_administrators_operate(may: Callable[..., bool]) -> None:
    for who in EVERYBODY:
        own_admin = who == ("org_admin", OWN)
        for right in OPERATE:
            assert may("hosp-a", OWN, who, right) == own_admin, (who, right)
        for right in VIEW:
            assert may("hosp-a", OWN, who, right) == (who[1] == OWN and who[0] != "project_admin"), (who, right)
        assert may("hosp-a", OWN, who, Command.ABORT_JOB) == own_admin
        assert may("hosp-a", OWN, who, Command.SUBMIT_JOB) == (who[0] == "lead")


def test_at_the_server_leads_submit_and_have_their_own_jobs_alone(may: Callable[..., bool]) -> None:
    for who in EVERYBODY:
        assert may(SERVER, COORDINATOR, who, Command.SUBMIT_JOB) == (who[0] == "lead")
        for right in ["byoc", "server-predeployed-flwr", *SHELL, *LOGS, Command.CALL]:
            assert not may(SERVER, COORDINATOR, who, right), (who, right)
    for right in (Command.DOWNLOAD_JOB, Command.ABORT_JOB, Command.DELETE_JOB, Command.CLONE_JOB, Command.APP_COMMAND):
        lead = ("lead", COORDINATOR)
        if right != Command.CLONE_JOB:  # a right of its own name, in no category
            assert may(SERVER, COORDINATOR, lead, right, submitter="me@here"), right
        assert not may(SERVER, COORDINATOR, lead, right), right
        assert not may(SERVER, COORDINATOR, ("member", COORDINATOR), right, submitter="me@here"), right


def test_the_coordinator_runs_the_server_and_a_hospital_does_not(may: Callable[..., bool]) -> None:
    for right in OPERATE:
        assert may(SERVER, COORDINATOR, ("project_admin", COORDINATOR), right)
        for who in [("org_admin", OWN), ("lead", COORDINATOR), ("member", COORDINATOR)]:
            assert not may(SERVER, COORDINATOR, who, right)


@pytest.mark.parametrize("kit", [SERVER, *SITES])
def test_one_list_of_classes_and_no_log_goes_anywhere(made: Path, kit: str) -> None:
    resources = _json(made / "prod_00" / kit / "local" / "resources.json")
    classes = kit_files.SITE_CLASSES if kit in SITES else kit_files.SERVER_CLASSES
    assert resources["class_allow_list"] == list(classes)
    for name in classes:
        module, _, kind = name.rpartition(".")
        assert getattr(importlib.import_module(module), kind).__module__ == module
    assert resources["class_list_enforcement_mode"] == "enforce"
    paths = [component["path"] for component in resources["components"]]
    assert not [path for path in paths if ".logging." in path]
    if kit in SITES:
        assert resources["allow_log_streaming"] is False
        assert resources["client"]["site_config"] == {}  # else unknown keys of this file go to everybody
        assert resources["app_validator"] == {"path": kit_files.VALIDATOR, "args": {}}


def test_one_privacy_scope_with_the_guard_and_no_other_to_ask_for(made: Path) -> None:
    for site in SITES:
        privacy = _json(made / "prod_00" / site / "local" / "privacy.json")
        (scope,) = privacy["scopes"]
        assert privacy["default_scope"] == scope["name"]
        assert [f["path"] for f in scope["task_result_filters"]] == [kit_files.GUARD]
        assert privacy["components"] == list(kit_files.PRIVACY_COMPONENTS)
        assert not (made / "prod_00" / site / "local" / "privacy.json.sample").exists()


def test_a_kit_that_nobody_installed_refuses_every_job(made: Path, tmp_path: Path, repository: Path) -> None:
    kit = tmp_path / "hosp-a"
    shutil.copytree(made / "prod_00" / "hosp-a", kit)
    scope = _json(kit / "local" / "privacy.json")["scopes"][0]
    with pytest.raises(PlacesError, match="must name site_file"):
        site_places(scope["properties"])
    app = kit / "some-job" / "app_hosp-a"
    shutil.copytree(repository / "jobs" / "ct_fedavg_dp" / "app_client", app)
    reason, _ = SiteValidator().validate(str(app))
    assert reason == REFUSED_BY_POLICY
    assert "site.json" in (kit / "local" / "refusals.jsonl").read_text()


def test_defaults_that_nvflare_falls_back_to_are_as_strict(made: Path) -> None:
    for kit in (SERVER, *SITES):
        local = made / "prod_00" / kit / "local"
        for name in ("resources.json", "authorization.json", "log_config.json"):
            assert _json(local / f"{name}.default") == _json(local / name)


def test_the_servers_stores_lie_below_its_kit_and_silent_sites_are_missed_soon(made: Path) -> None:
    local = made / "prod_00" / SERVER / "local"
    text = (local / "resources.json").read_text()
    assert "/tmp" not in text
    assert text.count("{$FEDSCAN_KIT}/") == 2
    assert _json(local / "resources.json")["servers"][0]["heart_beat_timeout"] == 60
    own = places.server_places(local)
    assert own.shelf == made / "prod_00" / SERVER / "shelf"
    assert own.run("a" * 32) == made / "prod_00" / SERVER / "runs" / ("a" * 32)


@pytest.mark.parametrize("kit", [SERVER, *SITES])
def test_the_port_for_own_job_processes_is_on_loopback_with_certificates(made: Path, kit: str) -> None:
    inner = _json(made / "prod_00" / kit / "local" / "comm_config.json")["internal"]
    assert inner["scheme"] == "tcp"
    assert inner["resources"] == {"host": "localhost", "connection_security": "mtls"}
    startup = made / "prod_00" / kit / "startup"
    root = x509.load_pem_x509_certificate((startup / "rootCA.pem").read_bytes())
    listener = x509.load_pem_x509_certificate((startup / "server.crt").read_bytes())
    listener.verify_directly_issued_by(root)


def test_jobs_must_be_signed_and_connections_are_mutual(made: Path) -> None:
    server = _json(made / "prod_00" / SERVER / "startup" / "fed_server.json")
    assert server["require_signed_jobs"] is True
    assert server["servers"][0]["connection_security"] == "mtls"
    for site in SITES:
        client = _json(made / "prod_00" / site / "startup" / "fed_client.json")
        assert client["require_signed_jobs"] is True
        assert client["client"]["connection_security"] == "mtls"
        assert client["servers"][0]["service"] == {"target": f"{SERVER}:8002", "scheme": "http"}


def test_logs_cannot_fill_a_disk(made: Path) -> None:
    handlers = _json(made / "prod_00" / "hosp-a" / "local" / "log_config.json")["handlers"].values()
    files = [h for h in handlers if "filename" in h]
    assert sum(h["maxBytes"] * (h["backupCount"] + 1) for h in files) <= 100 * 2**20


@pytest.fixture
def started(made: Path, tmp_path: Path) -> Callable[[str], dict[str, str]]:
    """What the Python that a start script starts would find, in an environment that means it ill."""

    def start(kit: str) -> dict[str, str]:
        copied = tmp_path / kit
        shutil.copytree(made / "prod_00" / kit, copied)
        stub = tmp_path / "bin" / "python3"
        stub.parent.mkdir(exist_ok=True)
        stub.write_text('#!/bin/sh\necho "UMASK=$(umask)"\necho "CWD=$(pwd)"\necho "ARGS=$*"\nenv\n')
        stub.chmod(0o755)
        given = {"PATH": f"{stub.parent}:/usr/bin:/bin", "PYTHONPATH": "/elsewhere", "NVFLARE_SECURE_LOGGING": "false"}
        script = copied / "startup" / "sub_start.sh"
        done = subprocess.run(
            [script, "--once"], cwd=tmp_path, env=given, capture_output=True, text=True, umask=0o022, check=True
        )
        return dict(line.split("=", 1) for line in done.stdout.splitlines() if "=" in line)

    return start


@pytest.mark.parametrize("kit", [SERVER, "hosp-a"])
def test_start_scripts_close_the_umask_keep_exception_texts_and_load_no_other_code(
    started: Callable[[str], dict[str, str]], tmp_path: Path, kit: str
) -> None:
    found = started(kit)
    assert found["UMASK"] == "0077"
    assert found["NVFLARE_SECURE_LOGGING"] == "true"
    assert found["PYTHONSAFEPATH"] == "1"
    assert "PYTHONPATH" not in found
    assert found["CWD"] == found[kit_files.KIT_VARIABLE] == str(tmp_path / kit)
    assert "secure_train=true" in found["ARGS"]


def test_what_a_kit_holds_is_what_its_functions_give_again(made: Path) -> None:
    local = made / "prod_00" / "hosp-a" / "local"
    assert kit_files.site_resources(_json(local / "resources.json")) == _json(local / "resources.json")
    assert kit_files.log_config(_json(local / "log_config.json")) == _json(local / "log_config.json")
    server = _json(made / "prod_00" / SERVER / "local" / "resources.json")
    assert kit_files.server_resources(server) == server
    script = (local.parent / "startup" / "sub_start.sh").read_text()
    assert kit_files.start_script(script) == script


def test_a_start_script_of_another_nvflare_is_not_taken_for_strict() -> None:
    assert "umask" in kit_files.start_script_flaws("#!/bin/sh\nexec python3\n")
    assert "PYTHONPATH" in kit_files.start_script_flaws(kit_files.start_script("#!/bin/sh\nexec python3\n"))


def _site(description: Description, **settings: Any) -> None:
    next(p for p in description["participants"] if p["type"] == "client").update(settings)


def _open_listener(description: Description) -> None:
    _site(description, listening_host={"default_host": "0.0.0.0", "port": 8102, "connection_security": "mtls"})


def _clear_listener(description: Description) -> None:
    _site(description, listening_host={"default_host": "localhost", "port": 8102})


def _listener_elsewhere(description: Description) -> None:
    host = {"default_host": "localhost", "host_names": ["10.0.0.7"], "connection_security": "mtls"}
    _site(description, listening_host=host)


def _static(description: Description, **arguments: Any) -> None:
    builder = next(b for b in description["builders"] if b["path"].endswith("StaticFileBuilder"))
    builder["args"].update(arguments)
    if arguments.get("require_signed_jobs", True) is None:
        del builder["args"]["require_signed_jobs"]


def _strict_last(description: Description) -> None:
    description["builders"].append(description["builders"].pop(0))


def _relay(description: Description) -> None:
    host = {"default_host": "localhost", "port": 8103, "connection_security": "mtls"}
    description["participants"].append({"name": "r", "type": "relay", "org": "x", "listening_host": host})


REFUSED: dict[str, tuple[Callable[[Description], None], str]] = {
    "one-way TLS": (lambda d: _site(d, connection_security="tls"), "connection_security must be mtls"),
    "no TLS": (lambda d: _site(d, connection_security="clear"), "connection_security must be mtls"),
    "no TLS for all": (lambda d: d.update(connection_security="clear"), "connection_security must be mtls"),
    "streamed logs": (lambda d: _site(d, allow_log_streaming=True), "allow_log_streaming must be false"),
    "streamed logs of all": (lambda d: d.update(allow_log_streaming=True), "allow_log_streaming must be false"),
    "a listener for all": (_open_listener, "listening_host must be on loopback"),
    "a listener without TLS": (_clear_listener, "listening_host must be on loopback"),
    "a listener elsewhere too": (_listener_elsewhere, "listening_host must be on loopback"),
    "unsigned jobs": (lambda d: _static(d, require_signed_jobs=False), "require_signed_jobs: true"),
    "nothing on signatures": (lambda d: _static(d, require_signed_jobs=None), "require_signed_jobs: true"),
    "a docker image": (lambda d: _static(d, docker_image="x"), "docker_image"),
    "our builder last": (_strict_last, "must be the first"),
    "a relay": (_relay, "relays are not used"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_project_that_asks_for_less_gets_no_kits(description: Description, tmp_path: Path, case: str) -> None:
    change, words = REFUSED[case]
    change(description)
    done, errors = _provision(description, tmp_path)
    assert done is None
    assert words in "; ".join(errors)
    assert not list(tmp_path.glob("*/prod_*"))
    assert [path for path in tmp_path.rglob("*") if path.stat().st_mode & 0o077] == []  # a root key is there by then


@pytest.mark.parametrize("days", [-1, 360, True, "60", 1.5])
def test_days_of_renewal_are_a_number_below_a_certificates_life(days: Any) -> None:
    with pytest.raises(KitError, match="renew_days"):
        StrictKitBuilder(days)


def test_grpc_by_choice(description: Description, tmp_path: Path) -> None:
    _static(description, scheme="grpc")
    done, _ = _provision(description, tmp_path)
    assert done
    assert _json(done / "hosp-a" / "startup" / "fed_client.json")["servers"][0]["service"]["scheme"] == "grpc"


def test_loopback_federations_and_the_project_file_have_the_same_builders(description: Description) -> None:
    theirs = [builder["path"] for builder in description["builders"]]
    assert [builder["path"] for builder in kits.builders()] == theirs
    assert theirs[0] == f"{kit_builder.__name__}.StrictKitBuilder"
