"""Every byte counted: what a relay between a site and the server saw, against what the site's own log says left it.

The relay carries mutual TLS through unread. What it sees beyond the log is TLS (handshakes, records) and the
connection's own framing.
"""

from __future__ import annotations

import contextlib
import json
import socket
import ssl
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from ctslices.phantom import chest_slices
from ctslices.store import write_store
from fedscan.federation import byte_log, job_folder, kits, records
from fedscan.federation.audit_log import AuditLog

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

SITES = ("hosp-a", "hosp-b")
ROUNDS = 2
HANDSHAKE_BYTES = 4500
"""Of a client's side of a mutual TLS handshake with RSA certificates and the upgrade to a web socket, at most."""
RECORD_BYTES = 45
"""Of one frame: TLS record header and tag, and a web socket's header and mask. Frames of a MiB have many records."""
RECORD_SHARE = 0.0015
"""Of long frames, which TLS cuts into records of 16 KiB."""


class Relay:
    """Listens on a loopback port, and carries each connection on to the server's; counts what the clients sent."""

    def __init__(self, port: int) -> None:
        self.target = port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self.sent: list[int] = []
        self._lock = threading.Lock()
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            try:
                server = socket.create_connection(("127.0.0.1", self.target))
            except ConnectionRefusedError:  # the server does not listen yet
                client.close()
                continue
            with self._lock:
                self.sent.append(0)
                number = len(self.sent) - 1
            threading.Thread(target=self._carry, args=(client, server, number), daemon=True).start()
            threading.Thread(target=self._carry, args=(server, client, None), daemon=True).start()

    def _carry(self, source: socket.socket, target: socket.socket, number: int | None) -> None:
        try:
            while data := source.recv(1 << 16):
                if number is not None:
                    self.sent[number] += len(data)
                target.sendall(data)
        except OSError:
            pass
        for one in (source, target):
            one.close()


@dataclass
class Counted:
    """A run of two sites, each behind a relay of its own."""

    lab: Path
    run: Path
    relays: dict[str, Relay]
    listening: dict[str, set[str]]

    def log(self, site: str) -> list[byte_log.Total]:
        return byte_log.totals(byte_log.read(self.lab / f"{site}-state"))


@pytest.fixture(scope="module")
def counted(tmp_path_factory: pytest.TempPathFactory, lab: Callable[..., Any], repository: Path) -> Any:
    """Answers of 4 MB: NVFlare fetches them in parts of 2 MiB."""
    folder = tmp_path_factory.mktemp("counted")
    stores = {}
    for seed, site in enumerate(SITES):
        hu, _ = chest_slices(np.random.default_rng(seed), 24)
        stores[site] = write_store(folder / site, hu, np.arange(24) // 8, splits=["train"] * 3)
    settings = ["model.preset=small", f"rounds={ROUNDS}", "training.local_steps=2", "training.batch_size=4"]
    settings += ["training.warmup_steps=1", "training.precision=fp32", "min_responses=2", "round_timeout_s=120"]
    job = folder / "job"
    job_folder.new(repository / "jobs" / "ct_fedavg", job, settings, list(SITES))
    relays: dict[str, Relay] = {}

    def between(federation: kits.Federation) -> None:
        for site in SITES:
            path = federation.kit(site) / "startup" / "fed_client.json"
            startup = json.loads(path.read_text())
            service = startup["servers"][0]["service"]
            host, port = service["target"].rsplit(":", 1)
            relays[site] = Relay(int(port))
            service["target"] = f"{host}:{relays[site].port}"
            path.write_text(json.dumps(startup))

    with lab(folder / "lab", stores, change=between) as running:
        assert running.run(job)["status"] == "FINISHED:COMPLETED"
        _knock(next(iter(relays.values())).target)
        listening = {site: _listeners(running.federation.kit(site)) for site in SITES}
        run = running.run_folder(job)
    for relay in relays.values():
        relay.close()
    return Counted(folder / "lab", run, relays, listening)


def _knock(port: int) -> None:
    """Without a certificate, until the server has closed the connection."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    with (
        contextlib.suppress(OSError),
        socket.create_connection(("127.0.0.1", port), timeout=60) as plain,
        context.wrap_socket(plain) as wrapped,
    ):
        wrapped.send(b"GET / HTTP/1.1\r\n\r\n")
        wrapped.recv(1000)


def _listeners(kit: Path) -> set[str]:
    """Addresses at which processes of this kit listen."""
    found = set()
    for process in psutil.process_iter():
        try:
            if any(part.startswith(str(kit)) for part in process.cmdline()):
                found |= {c.laddr.ip for c in process.net_connections("inet") if c.status == psutil.CONN_LISTEN}
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
    return found


@pytest.mark.parametrize("site", SITES)
def test_the_log_accounts_for_what_left_within_the_overhead_of_tls(counted: Counted, site: str) -> None:
    rows = [row for row in counted.log(site) if row.to != byte_log.INSIDE and not row.blocked]
    logged, frames = sum(row.bytes for row in rows), sum(row.messages for row in rows)
    connections = counted.relays[site].sent
    seen = sum(connections)
    overhead = seen - logged
    print(f"{site}: {seen} bytes on the wire in {len(connections)} connections, {logged} in the log ({frames} frames)")
    print(f"{site}: the log accounts for {logged / seen:.2%}; {overhead} bytes are TLS and framing")
    assert len(connections) >= 2, "the parent's and the job's"
    assert 0 < overhead < HANDSHAKE_BYTES * len(connections) + RECORD_BYTES * frames + RECORD_SHARE * logged


@pytest.mark.parametrize("site", SITES)
def test_long_answers_are_counted_where_the_server_fetches_them(counted: Counted, site: str) -> None:
    rounds = list(records.effective_rounds(counted.run / "rounds.jsonl"))
    tensors = sum(int(record.sites[site].bytes_received or 0) for record in rounds)
    (fetched,) = [row for row in counted.log(site) if row.channel.startswith("return_only/download_service__")]
    assert len(rounds) == ROUNDS
    assert tensors > ROUNDS * 4 * 10**6
    assert tensors < fetched.bytes < 1.01 * tensors + 10**5
    assert not [row for row in counted.log(site) if row.blocked]


def test_each_process_has_its_file_and_each_file_is_the_sites_own(counted: Counted) -> None:
    files = sorted((counted.lab / "hosp-a-state" / byte_log.FOLDER).iterdir())
    assert len(files) == 2
    assert files[-1].name == "parent.jsonl"
    assert {file.stat().st_mode & 0o777 for file in files} == {0o600}
    assert files[0].parent.stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("site", SITES)
def test_a_site_listens_on_loopback_alone(counted: Counted, site: str) -> None:
    assert counted.listening[site] == {"127.0.0.1"}


def test_the_audit_logs_of_server_and_site_tell_the_run_and_hold(counted: Counted) -> None:
    kit = counted.lab / "federation" / kits.PROJECT / "prod_00" / kits.SERVER
    server, site = AuditLog(kit).verify(), AuditLog(counted.lab / "hosp-a-state").verify()
    assert (server.ok, site.ok) == (True, True), (server.faults, site.faults)
    told = [(event.what, event.who, event.text) for event in server.events]
    assert told[0][0] == "start"
    assert any(what == "command" and who == kits.LEAD and "submit_job" in text for what, who, text in told)
    assert {who for what, who, _ in told if what == "register"} >= set(SITES)
    assert [text for what, _, text in told if what == "job"] == ["deployed", "launched", "started", "ended"]
    assert any(what == "round" and "lines of rounds.jsonl" in text for what, _, text in told)
    assert any(what == "refused" and "PEER_DID_NOT_RETURN_A_CERTIFICATE" in text for what, _, text in told)
    said = [(event.what, event.text) for event in site.events]
    assert said[0][0] == "start"
    assert ("command", "train.deploy") in said
    assert sum(what == "answer" for what, _ in said) == ROUNDS
