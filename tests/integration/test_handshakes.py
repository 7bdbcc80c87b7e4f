"""Nobody gets in: a provisioned consortium at work, and people, kits and connections that have no business in it.

Each is refused, and the refusal is in the chained log of whoever refused.
"""

from __future__ import annotations

import contextlib
import io
import json
import shutil
import socket
import ssl
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import psutil
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from nvflare.fuel.flare_api.api_spec import AuthorizationError

from fedscan.federation import admin, consortium, consortium_run, job_folder, kits, processes
from fedscan.federation.admin import AdminError, NotAllowedError
from fedscan.federation.audit_log import AuditLog
from fedscan.federation.consortium import Consortium
from fedscan.federation.messages import REFUSED_BY_POLICY
from fedscan.federation.site_folder import notes_of

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

SITES = ("hosp-a", "hosp-b", "hosp-c")
LEAD, OPERATOR, OBSERVER = (f"{name}@fedscan.example.org" for name in ("lead", "operator", "observer"))
IT_A, IT_B = (f"it@hospital-{letter}.example.org" for letter in "ab")
LIMIT_S = 120.0
HANDSHAKE = "a connection, in its TLS handshake: "
STRANGERS = ("PEER_DID_NOT_RETURN_A_CERTIFICATE", "unable to get local issuer certificate", "certificate has expired")


@dataclass(frozen=True)
class Certificate:
    """PEM files."""

    crt: Path
    key: Path


@dataclass(frozen=True)
class World:
    """Ours, at work, and another consortium under the same names."""

    ours: Consortium
    other: Consortium
    check: Callable[[], None]

    def ports(self, name: str) -> list[int]:
        """At which the process of a participant listens."""
        return [address.port for address in self.listening(name)]

    def listening(self, name: str) -> list[Any]:
        """Addresses."""
        kit = str(self.ours.kit(name).resolve())
        mine = [p for p in processes.belonging_to(self.ours.folder) if kit in p.cmdline()]
        assert len(mine) == 1
        return [c.laddr for c in mine[0].net_connections("tcp") if c.status == psutil.CONN_LISTEN]

    def connected(self) -> dict[str, float]:
        """Sites, as the server sees them now, with the time of their last heartbeat."""
        with self.session(OBSERVER) as session:
            return {c.name: c.last_connect_time for c in session.get_system_info().client_info}

    def noted(self, name: str, *words: str, who: str = "") -> bool:
        """Whether a refusal with these words is in the chained log of a participant, which holds."""
        found = AuditLog(notes_of(self.ours.kit(name))).verify()
        assert found.ok, found.faults
        refused = [event for event in found.events if event.what == "refused" and who in ("", event.who)]
        return any(all(word in event.text for word in words) for event in refused)

    @contextlib.contextmanager
    def session(self, person: str) -> Iterator[Any]:
        with admin.session(self.ours.kit(person), person, self.check) as session:
            yield session


@pytest.fixture(scope="module")
def world(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    folder = tmp_path_factory.mktemp("handshakes")
    project = consortium.read_project(repository / "site_configs" / "project.yml")
    copied = consortium.loopback_copy(project, SITES, kits.free_ports(1)[0])
    ours = consortium.provision(folder / "ours", copied)
    other = consortium.provision(folder / "other", copied)
    with consortium_run.running(ours) as check:
        yield World(ours, other, check)


def _kit_certificate(kit: Path) -> Certificate:
    return Certificate(kit / "startup" / "client.crt", kit / "startup" / "client.key")


def _expired(world: World, folder: Path) -> Certificate:
    """hosp-a's, signed by our root, until yesterday."""
    state = json.loads((world.ours.folder / "ct-consortium" / "state" / "cert.json").read_text())
    root_key = serialization.load_pem_private_key(state["root_pri_key"].encode(), password=None)
    like = x509.load_pem_x509_certificate(state["hosp-a"]["cert"].encode())
    key = rsa.generate_private_key(65537, 2048)
    now = datetime.now(UTC)
    builder = (
        x509.CertificateBuilder(like.issuer, like.subject, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - timedelta(days=361))
        .not_valid_after(now - timedelta(days=1))
    )
    certificate = builder.sign(root_key, hashes.SHA256())  # type: ignore[arg-type]
    pem = serialization.Encoding.PEM
    made = Certificate(folder / "expired.crt", folder / "expired.key")
    made.crt.write_bytes(certificate.public_bytes(pem))
    made.key.write_bytes(key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()))
    return made


def _context(certificate: Certificate | None) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    if certificate:
        context.load_cert_chain(certificate.crt, certificate.key)
    return context


def _talk(port: int, certificate: Certificate | None) -> bytes:
    """What a listener says over TLS to a request; nothing where it ends the connection."""
    context = _context(certificate)
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=30) as plain, context.wrap_socket(plain) as secure:
            secure.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
            return secure.recv(1000)
    except (ssl.SSLError, ConnectionError):
        return b""


def _stays_open(port: int, certificate: Certificate | None) -> bool:
    """Whether a listener that never speaks first keeps a TLS connection once it has seen the certificate."""
    context = _context(certificate)
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=5) as plain, context.wrap_socket(plain) as secure:
            return secure.recv(1000) != b""
    except TimeoutError:
        return True
    except (ssl.SSLError, ConnectionError):
        return False


def test_no_site_listens_beyond_loopback(world: World) -> None:
    for name in (world.ours.server, *SITES):
        addresses = world.listening(name)
        assert addresses
        assert {address.ip for address in addresses} <= {"127.0.0.1", "::1"}, name
    assert all(len(world.ports(site)) == 1 for site in SITES)


def test_the_server_speaks_with_certificates_of_its_own_root_alone(world: World, tmp_path: Path) -> None:
    port = int(world.ours.description["participants"][0]["fed_learn_port"])
    assert _talk(port, _kit_certificate(world.ours.kit("hosp-a"))).startswith(b"HTTP/")
    assert _talk(port, None) == b""
    assert _talk(port, _kit_certificate(world.other.kit("hosp-a"))) == b""
    assert _talk(port, _expired(world, tmp_path)) == b""
    assert all(world.noted(world.ours.server, HANDSHAKE, why) for why in STRANGERS)


@pytest.mark.parametrize("name", ["localhost", *SITES])
def test_nor_does_a_port_for_own_job_processes(world: World, tmp_path: Path, name: str) -> None:
    """Another local user finds the port, and has no certificate; in clear it hears nothing at all."""
    public = int(world.ours.description["participants"][0]["fed_learn_port"])
    (port,) = set(world.ports(name)) - {public}
    assert _stays_open(port, _kit_certificate(world.ours.kit("hosp-a")))
    for stranger in (None, _kit_certificate(world.other.kit("hosp-a")), _expired(world, tmp_path)):
        assert not _stays_open(port, stranger)
    with socket.create_connection(("127.0.0.1", port), timeout=30) as plain:
        plain.sendall(b"\x00" * 64)
        with contextlib.suppress(ConnectionError):
            assert b"NVFLARE" not in plain.recv(1000)
    assert all(world.noted(name, HANDSHAKE, why) for why in (*STRANGERS, "WRONG_VERSION_NUMBER"))


def _copied(kit: Path, to: Path, certificate_of: Path) -> Path:
    """A kit with another kit's certificate and key in the place of its own."""
    for part in ("startup", "local"):
        shutil.copytree(kit / part, to / part, symlinks=True)
    for name in ("client.crt", "client.key"):
        shutil.copyfile(certificate_of / "startup" / name, to / "startup" / name)
    return to


@pytest.mark.parametrize("whose", ["hosp-a", OBSERVER, "other lead"])
def test_nobody_logs_in_as_a_lead_with_another_certificate(world: World, tmp_path: Path, whose: str) -> None:
    certificate_of = world.other.kit(LEAD) if whose == "other lead" else world.ours.kit(whose)
    kit = _copied(world.ours.kit(LEAD), tmp_path / "lead", certificate_of)
    with pytest.raises(AdminError), admin.session(kit, LEAD, world.check, timeout_s=15):
        pass
    words = (HANDSHAKE, STRANGERS[1]) if whose == "other lead" else ("failed to verify client identity", "CNMismatch")
    assert world.noted(world.ours.server, *words)


@pytest.mark.parametrize("whose", ["hosp-b", LEAD])
def test_no_site_registers_under_another_sites_name(world: World, tmp_path: Path, whose: str) -> None:
    """It gives up by itself, and the live site of that name does not notice."""
    kit = _copied(world.ours.kit("hosp-c"), tmp_path / "false", world.ours.kit(whose))
    process = processes.start_by_script(kit)
    try:
        assert process.wait(timeout=LIMIT_S) != 0
    finally:
        processes.stop_all(tmp_path)
        process.wait()
    ended = time.time()
    assert "Successfully registered" not in (kit / "console.log").read_text(errors="replace")
    _wait_for(lambda: world.connected()["hosp-c"] > ended)
    world.check()
    assert world.noted(world.ours.server, "conn_manager: Error processing frame")


def _wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + LIMIT_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(1.0)


WORDS = ("not authorized", "withheld by the site", "failed to shut down all clients")


def _answers(session: Any, site: str) -> Iterator[tuple[str, str]]:
    """Every command that would show or change something at the site, and what comes of it."""
    asked: dict[str, Callable[[], object]] = {
        "cat": lambda: session.cat_target(site, file="local/privacy.json"),
        "ls": lambda: session.ls_target(site),
        "environment": lambda: session.get_client_env([site]),
        "resources": lambda: session.report_resources("client", [site]),
        "restart": lambda: session.restart("client", [site]),
        "shutdown": lambda: session.shutdown("client", [site]),
    }
    for what, ask in asked.items():
        try:
            with contextlib.redirect_stdout(io.StringIO()):
                said = str(ask())
        except Exception as error:  # noqa: BLE001 - NVFlare has many kinds; its words are what is judged
            said = str(error)
        yield what, said


@pytest.mark.parametrize("person", [LEAD, OPERATOR, OBSERVER, IT_B])
def test_nobody_from_elsewhere_looks_into_a_site_or_stops_it(world: World, person: str) -> None:
    with world.session(person) as session:
        for what, said in _answers(session, "hosp-a"):
            assert any(words in said for words in WORDS), (what, said)
    world.check()
    for right in ("cat", "ls", "report_resources", "restart", "shutdown"):
        assert world.noted("hosp-a", f"not authorized: {right}", who=person), right


@pytest.mark.parametrize("person", [OPERATOR, OBSERVER, IT_A])
def test_only_leads_submit(world: World, person: str, repository: Path, tmp_path: Path) -> None:
    job_folder.new(repository / "jobs" / "ct_fedavg", tmp_path / "job", ["model.preset=tiny"], SITES)
    with world.session(person) as session, pytest.raises(NotAllowedError):
        admin.submit(session, tmp_path / "job")
    assert world.noted(world.ours.server, "not authorized: submit_job", who=person)


def _deployed(world: World, job: Path) -> str:
    """What server and sites said to a lead's job."""
    with world.session(LEAD) as session:
        job_id = admin.submit(session, job)
        _wait_for(lambda: "job_deploy_detail" in admin.meta(session, job_id))
        return "; ".join(admin.meta(session, job_id)["job_deploy_detail"])


def test_a_lead_ships_no_code(world: World, repository: Path, tmp_path: Path) -> None:
    job = tmp_path / "job"
    job_folder.new(repository / "jobs" / "ct_fedavg", job, ["model.preset=tiny"], SITES)
    (job / "app_client" / "custom").mkdir()
    (job / "app_client" / "custom" / "steal.py").write_text("print('here')\n")
    detail = _deployed(world, job)
    assert "BYOC" in detail or REFUSED_BY_POLICY in detail, detail
    assert "OK" not in detail.replace("server: OK", "")
    assert all(world.noted(site, "job: ", REFUSED_BY_POLICY) for site in SITES)


def test_a_kit_that_was_not_installed_takes_no_job(world: World, repository: Path, tmp_path: Path) -> None:
    job_folder.new(repository / "jobs" / "ct_fedavg", tmp_path / "job", ["model.preset=tiny"], SITES)
    detail = _deployed(world, tmp_path / "job")
    assert all(f"{site}: NVFLARE_ERROR: {REFUSED_BY_POLICY}" in detail for site in SITES), detail
    for site in SITES:
        assert "site.json" in (world.ours.kit(site) / "local" / "refusals.jsonl").read_text()
        assert world.noted(site, "deploy: site.json cannot be read")


def test_what_server_and_sites_wrote_is_their_owners_alone(world: World) -> None:
    files = [path for path in world.ours.folder.rglob("*") if not path.is_symlink()]
    assert [path for path in files if path.name == "log.txt"]
    assert [path for path in files if path.stat().st_mode & 0o077] == []
    server = world.ours.kit(world.ours.server)
    assert (server / "jobs-storage").is_dir()
    assert (server / "snapshot-storage").is_dir()


def test_own_administrators_stop_their_own_site(world: World) -> None:
    kit = str(world.ours.kit("hosp-a").resolve())

    def running() -> bool:
        return any(kit in p.cmdline() for p in processes.belonging_to(world.ours.folder))

    assert running()
    with world.session(IT_A) as session, contextlib.redirect_stdout(io.StringIO()):
        session.shutdown("client", ["hosp-a"])
    _wait_for(lambda: not running())
    assert (world.ours.kit("hosp-a") / "shutdown.fl").exists()  # what keeps a service manager from starting it again


def test_a_sites_kit_used_as_an_admins_does_not_get_in_beside_the_site(world: World, tmp_path: Path) -> None:
    kit = _copied(world.ours.kit(LEAD), tmp_path / "lead", world.ours.kit("hosp-b"))
    with pytest.raises(AdminError), admin.session(kit, "hosp-b", timeout_s=15):
        pass
    assert world.noted(world.ours.server, "a login as hosp-b over the connection of _admin_")


def test_a_sites_kit_used_as_an_admins_has_no_rights(world: World, repository: Path, tmp_path: Path) -> None:
    """While the site is away, NVFlare lets it log in under its own name, without a role: the policy gives that
    nothing. After the test that stops hosp-a."""
    kit = _copied(world.ours.kit(LEAD), tmp_path / "lead", world.ours.kit("hosp-a"))
    job_folder.new(repository / "jobs" / "ct_fedavg", tmp_path / "job", ["model.preset=tiny"], SITES)
    with admin.session(kit, "hosp-a", timeout_s=LIMIT_S) as session:
        with pytest.raises(NotAllowedError):
            admin.submit(session, tmp_path / "job")
        for ask in (session.list_jobs, session.get_system_info, session.list_studies):
            with pytest.raises(AuthorizationError):
                ask()
        for what, said in _answers(session, "hosp-c"):
            assert any(words in said for words in WORDS), (what, said)
    for right in ("submit_job", "list_jobs", "check_status"):
        assert world.noted(world.ours.server, f"not authorized: {right}", who="hosp-a"), right
