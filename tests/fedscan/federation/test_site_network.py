"""The way to the server, looked at without registering. The peer here has the provisioned server's own certificate; the
real NVFlare server is asked in tests/integration/test_installed_site.py."""

from __future__ import annotations

import contextlib
import json
import shutil
import socket
import ssl
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import pytest

from fedscan.federation import site_network, site_preflight
from fedscan.federation.site_findings import Check
from fedscan.federation.site_kit import Kit

NOW = object()


class Peer:
    """A TLS server on loopback; what clients said is kept."""

    def __init__(self, startup: Path, date: object, demands_certificate: bool) -> None:
        self.heard: list[bytes] = []
        self.subjects: list[object] = []
        self._date = date
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._context.load_cert_chain(str(startup / "server.crt"), str(startup / "server.key"))
        self._context.load_verify_locations(str(startup / "rootCA.pem"))
        self._context.verify_mode = ssl.CERT_REQUIRED if demands_certificate else ssl.CERT_NONE
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            with contextlib.suppress(OSError), self._context.wrap_socket(connection, server_side=True) as tls:
                self.subjects.append(tls.getpeercert())
                self.heard.append(tls.recv(4096))
                if self._date == "hang up":
                    tls.unwrap()
                    continue
                date = datetime.now(UTC) if self._date is NOW else self._date
                head = f"Date: {format_datetime(date, usegmt=True)}\r\n" if isinstance(date, datetime) else ""
                tls.sendall(f"HTTP/1.1 400 Bad Request\r\n{head}\r\n".encode())

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join(timeout=30)


@contextlib.contextmanager
def peer(startup: Path, date: object = NOW, demands_certificate: bool = True) -> Iterator[Peer]:
    running = Peer(startup, date, demands_certificate)
    try:
        yield running
    finally:
        running.close()


def dial(kit: Path, port: int, host: str = "127.0.0.1") -> list[Check]:
    """Findings of the kit when its server is there."""
    path = kit / "startup/fed_client.json"
    content = json.loads(path.read_text())
    content["servers"][0]["service"]["target"] = f"{host}:{port}"
    path.write_text(json.dumps(content))
    return list(site_network.findings(Kit.open(kit)))


def names(found: list[Check]) -> list[tuple[str, str]]:
    return [(one.name, one.level) for one in found]


def test_a_server_that_answers_with_the_same_time(kit: Path, provisioned: Path) -> None:
    with peer(provisioned / "localhost/startup") as server:
        assert dial(kit, server.port) == []
        assert server.heard == [b"HEAD / HTTP/1.1\r\nHost: fedscan-preflight\r\nConnection: close\r\n\r\n"]
        assert "hosp-a" in str(server.subjects)


@pytest.mark.parametrize(
    ("ahead_s", "expected"),
    [(30, []), (-300, [("clock", "warning")]), (3600, [("clock", "error")]), (-3600, [("clock", "error")])],
)
def test_clocks_apart(kit: Path, provisioned: Path, ahead_s: int, expected: list[Any]) -> None:
    with peer(provisioned / "localhost/startup", datetime.now(UTC) + timedelta(seconds=ahead_s)) as server:
        assert names(dial(kit, server.port)) == expected


def test_a_server_that_tells_no_time(kit: Path, provisioned: Path) -> None:
    with peer(provisioned / "localhost/startup", None) as server:
        assert names(dial(kit, server.port)) == [("clock", "skipped")]
    assert site_network.server_date(b"HTTP/1.1 400 Bad\r\nDate: yesterday\r\n\r\n") is None


def test_nobody_there_and_no_such_name(kit: Path) -> None:
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))  # bound, not listening: refused
        (one, clock) = dial(kit, held.getsockname()[1])
    assert (one.name, one.level, clock.level) == ("server", "error", "skipped")
    assert "refused" in one.text
    assert "firewall" in one.fix
    (one, _) = dial(kit, 1, host="no-such-host.invalid")
    assert "no address is known for 'no-such-host.invalid'" in one.text


def test_a_server_of_another_federation(kit: Path, provisioned_again: Path) -> None:
    with peer(provisioned_again / "localhost/startup", demands_certificate=False) as server:
        (one, _) = dial(kit, server.port)
    assert one.level == "error"
    assert "does not show a certificate of this federation" in one.text


def test_another_participant_in_the_servers_place(kit: Path, provisioned: Path) -> None:
    """A site's listener certificate is of the federation, too, and must not pass for the server's."""
    with peer(provisioned / "hosp-b/startup") as server:
        (one, *_) = dial(kit, server.port)
    assert (one.name, one.level) == ("server", "error")
    assert "is 'hosp-b' of this federation, not its server 'localhost'" in one.text


def test_a_certificate_that_the_server_refuses(kit: Path, provisioned: Path, provisioned_again: Path) -> None:
    """TLS 1.3 tells a refusal after the handshake, with the first answer alone."""
    for name in ("client.crt", "client.key"):
        shutil.copy(provisioned_again / "hosp-a/startup" / name, kit / "startup" / name)
    with peer(provisioned / "localhost/startup") as server:
        (one, _) = dial(kit, server.port)
    assert (one.name, one.level) == ("server", "error")
    assert "refused this site's certificate" in one.text


def test_a_server_that_hangs_up_after_the_handshake(kit: Path, provisioned: Path) -> None:
    """NVFlare's own listener refuses an expired certificate so, without an alert."""
    with peer(provisioned / "localhost/startup", date="hang up") as server:
        (one, clock) = dial(kit, server.port)
    assert (one.name, one.level, clock.level) == ("server", "error", "skipped")
    assert "ended the connection unanswered" in one.text


def test_a_port_that_speaks_no_tls(kit: Path) -> None:
    listener = socket.create_server(("127.0.0.1", 0))

    def close_at_once() -> None:
        connection, _ = listener.accept()
        connection.recv(1)
        connection.close()

    thread = threading.Thread(target=close_at_once, daemon=True)
    thread.start()
    (one, _) = dial(kit, listener.getsockname()[1])
    thread.join(timeout=30)
    listener.close()
    assert (one.name, one.level) == ("server", "error")


def test_a_listening_port_that_another_process_holds(kit: Path, provisioned: Path) -> None:
    path = kit / "local/comm_config.json"
    content = json.loads(path.read_text())
    with socket.create_server(("127.0.0.1", 0)) as held, peer(provisioned / "localhost/startup") as server:
        content["internal"]["resources"]["port"] = held.getsockname()[1]
        path.write_text(json.dumps(content))
        assert names(dial(kit, server.port)) == [("listening-port", "error")]
    with peer(provisioned / "localhost/startup") as server:
        assert dial(kit, server.port) == []


def test_the_preflight_dials_unless_it_may_not(installed: Path, provisioned: Path) -> None:
    with peer(provisioned / "localhost/startup") as server:
        dial(installed, server.port)
        server.heard.clear()
        assert {one.name for one in site_preflight.check(installed)} == set(site_preflight.NAMES)
        assert len(server.heard) == 1
        site_preflight.check(installed, network=False)
        assert len(server.heard) == 1
