"""Can the site reach its server, does the server know it, do the clocks agree? Nothing is registered.

A plain TLS handshake with the kit's certificate, and one line of HTTP that NVFlare's websocket listener refuses.
NVFlare's own preflight logs in as the site instead: a second start, which says PASSED also where it was refused.
"""

from __future__ import annotations

import contextlib
import socket
import ssl
from collections.abc import Iterator
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

from cryptography import x509

from fedscan.federation import site_processes
from fedscan.federation.site_certificates import common_name
from fedscan.federation.site_files import SET_CLOCK
from fedscan.federation.site_findings import Check, error, warning
from fedscan.federation.site_kit import Kit
from fedscan.federation.site_settings import listening_port

NAMES = ("server", "clock", "listening-port")
TIMEOUT_S = 10.0
WARN_CLOCK_S = 60.0
ERROR_CLOCK_S = 600.0
_NOT_NOW = (9, 10)
"""X509_V_ERR_CERT_NOT_YET_VALID, X509_V_ERR_CERT_HAS_EXPIRED of OpenSSL's x509_vfy.h."""
_REFUSED = "ask the operator; an expired or revoked certificate needs a renewed kit"
_REQUEST = b"HEAD / HTTP/1.1\r\nHost: fedscan-preflight\r\nConnection: close\r\n\r\n"


def findings(kit: Kit) -> Iterator[Check]:
    """Everything wrong with the way to the server, and with the site's own port."""
    yield from _server_and_clock(kit)
    yield from _port(kit)


def _server_and_clock(kit: Kit) -> Iterator[Check]:
    found = list(_server(kit))
    yield from found
    if any(one.level == "error" and one.name == "server" for one in found):
        yield Check("clock", "skipped", "the server's time is not known")


def _server(kit: Kit) -> Iterator[Check]:
    where = f"{kit.server.host}:{kit.server.port}"
    try:
        connection = socket.create_connection((kit.server.host, kit.server.port), timeout=TIMEOUT_S)
    except socket.gaierror:
        fix = "correct the DNS or /etc/hosts; the name is `name` (or `default_host`) of the server in project.yml"
        yield error("server", f"no address is known for {kit.server.host!r}", fix)
        return
    except OSError as trouble:
        text = f"no TCP connection to {where}: {trouble.strerror or 'no answer in time'}"
        fix = "open this port outwards in the firewall; ask the operator whether the server runs"
        yield error("server", text, fix)
        return
    with contextlib.closing(connection):
        yield from _handshake(kit, connection, where)


def _handshake(kit: Kit, connection: socket.socket, where: str) -> Iterator[Check]:
    try:
        context = _context(kit)
    except (ssl.SSLError, OSError):
        yield error("server", "the kit's certificate and key cannot be loaded", "see the finding on certificates")
        return
    try:
        with context.wrap_socket(connection, server_hostname=kit.server.host) as tls:
            yield from _identity(kit, tls, where)
            answer = _ask(tls)
    except ssl.SSLCertVerificationError as trouble:
        if trouble.verify_code in _NOT_NOW:
            text = f"{where} shows a certificate that does not hold by this machine's clock: {trouble.verify_message}"
            yield error("server", text, SET_CLOCK)
            return
        text = f"{where} does not show a certificate of this federation: {trouble.verify_message}"
        yield error("server", text, "a proxy that opens TLS stands between, or it is another server: ask the operator")
        return
    except ssl.SSLError as trouble:
        text = f"{where} refused this site's certificate or TLS ({trouble.reason or 'no reason given'})"
        yield error("server", text, _REFUSED)
        return
    except OSError as trouble:
        text = f"{where} broke off the TLS handshake: {trouble.strerror or 'no answer in time'}"
        yield error(
            "server", text, "a firewall or proxy that does not let TLS through unopened: ask the network's people"
        )
        return
    if answer == b"":
        yield error("server", f"{where} ended the connection unanswered: it refused this site's certificate", _REFUSED)
        return
    yield from _clock(answer or b"", datetime.now(UTC))


def _context(kit: Kit) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    # The name is compared with the kit's own below, as NVFlare does: hospitals may dial another host name.
    context.check_hostname = False
    context.load_verify_locations(cafile=str(kit.startup / "rootCA.pem"))
    context.load_cert_chain(str(kit.startup / "client.crt"), str(kit.startup / "client.key"))
    return context


def _identity(kit: Kit, tls: ssl.SSLSocket, where: str) -> Iterator[Check]:
    shown = tls.getpeercert(binary_form=True)
    name = common_name(x509.load_der_x509_certificate(shown)) if shown else ""
    if name != kit.server.identity:
        text = f"{where} is {name!r} of this federation, not its server {kit.server.identity!r}"
        yield error("server", text, "ask the operator which participant listens there")


def _ask(tls: ssl.SSLSocket) -> bytes | None:
    """The head of what the server answers; None where it waits for more, empty where it ended the connection.

    TLS 1.3 tells that our certificate was refused with the first answer alone: by an alert, or by the end.
    """
    tls.settimeout(TIMEOUT_S)
    tls.sendall(_REQUEST)
    found = b""
    try:
        while len(found) < 4096 and b"\r\n\r\n" not in found and (part := tls.recv(4096)):
            found += part
    except TimeoutError:
        return found or None
    return found


def _clock(answer: bytes, now: datetime) -> Iterator[Check]:
    date = server_date(answer)
    if date is None:
        yield Check("clock", "skipped", "the server tells no time (it does so over http alone)")
        return
    apart_s = abs((now - date).total_seconds())
    text = f"this machine's clock is {apart_s:.0f} s apart from the server's"
    fix = "turn on NTP (timedatectl set-ntp true); if it is on here, tell the operator"
    if apart_s > ERROR_CLOCK_S:
        yield error("clock", f"{text}: submissions and certificates seem expired, or not begun", fix)
    elif apart_s > WARN_CLOCK_S:
        yield warning("clock", text, fix)


def server_date(answer: bytes) -> datetime | None:
    """The Date header of an HTTP answer (RFC 9110, 6.6.1), in UTC."""
    for line in answer.split(b"\r\n"):
        name, _, value = line.partition(b":")
        if name.strip().lower() == b"date":
            try:
                return parsedate_to_datetime(value.decode("ascii").strip()).astimezone(UTC)
            except ValueError:
                return None
    return None


def _port(kit: Kit) -> Iterator[Check]:
    """The loopback port for the site's own job processes: free, or this site's that runs."""
    port = listening_port(kit)
    if port is None:
        return  # local/comm_config.json has a finding of its own
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # a closed connection that lingers is no listener
        try:
            probe.bind(("127.0.0.1", port))
            return
        except OSError as trouble:
            reason = trouble.strerror
    if any(port in site_processes.listening_ports(parent) for parent in site_processes.of_kit(kit.folder).parents):
        return
    fix = "end the process that holds it (ss -ltnp shows it), or ask the operator for another listening_host.port"
    yield error("listening-port", f"port {port} on loopback is taken by another process ({reason})", fix)
