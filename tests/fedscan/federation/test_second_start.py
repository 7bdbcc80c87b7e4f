"""Who keeps a name: decided by what is heard, with connections that are none."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from nvflare.apis.client import Client
from nvflare.apis.fl_context import FLContext
from nvflare.apis.shareable import Shareable
from nvflare.fuel.f3.cellnet.defs import MessagePropKey
from nvflare.fuel.f3.endpoint import Endpoint
from nvflare.fuel.f3.message import Message
from nvflare.private.defs import CellMessageHeaderKeys, ClientType
from nvflare.private.fed.server.client_manager import ClientManager

from fedscan.federation import second_start
from fedscan.federation.second_start import Names, SecondStart, is_heard


class Connection:
    """Heard a while ago; answers a ping or not."""

    def __init__(self, silent_s: float, *, answers: bool) -> None:
        self.last_activity = time.time() - silent_s
        self._answers = answers

    def send_heartbeat(self, frame_type: int) -> None:
        if self._answers:
            self.last_activity = time.time()


@pytest.fixture(autouse=True)
def _short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(second_start, "YOUNG_S", 1.0)
    monkeypatch.setattr(second_start, "ASKED_S", 0.3)
    monkeypatch.setattr(second_start, "_LOOK_S", 0.01)


def _timed(call: Callable[[], bool]) -> tuple[bool, float]:
    started = time.monotonic()
    return call(), time.monotonic() - started


@pytest.mark.parametrize("silent_s", [0.0, 5.0])
def test_one_that_answers_is_heard(silent_s: float) -> None:
    """However long it had nothing to say."""
    assert is_heard(Connection(silent_s, answers=True), lambda: True)


def test_one_that_closes_is_gone_at_once() -> None:
    heard, took_s = _timed(lambda: is_heard(Connection(0.0, answers=False), lambda: False))
    assert (heard, took_s < 0.3) == (False, True)


@pytest.mark.parametrize(
    ("silent_s", "waits_s"), [(0.0, 1.0), (0.4, 0.6), (100.0, 0.3), pytest.param(-100.0, 1.0, id="clock set back")]
)
def test_a_silent_one_has_until_it_is_no_longer_young(silent_s: float, waits_s: float) -> None:
    heard, took_s = _timed(lambda: is_heard(Connection(silent_s, answers=False), lambda: True))
    assert not heard
    assert waits_s - 0.05 < took_s < waits_s + 0.25


def test_one_newcomer_waits_for_a_name() -> None:
    names = Names()
    assert names.wait("hosp-a")
    assert not names.wait("hosp-a")
    assert names.wait("hosp-b")
    names.waited("hosp-a")
    assert names.wait("hosp-a")


def test_one_that_speaks_and_never_reads_costs_one_thread() -> None:
    """Of its own newcomers: their number is for whoever has the certificate to choose."""
    stuck = threading.Event()

    class Deaf(Connection):
        def send_heartbeat(self, frame_type: int) -> None:
            stuck.wait(30.0)

    deaf = Deaf(0.0, answers=False)
    before = threading.active_count()
    try:
        for _ in range(20):
            threading.Timer(0.02, lambda: setattr(deaf, "last_activity", time.time())).start()
            assert is_heard(deaf, lambda: True)
        assert threading.active_count() <= before + 3
    finally:
        stuck.set()


CONSOLE = "_admin_2b1e3d0c-6f0a-4a57-9d0e-0b7f7d1c9a11"


@pytest.mark.parametrize(
    ("over", "kind", "name", "may"),
    [
        pytest.param("hosp-a", ClientType.REGULAR, "hosp-a", True, id="over its own"),
        pytest.param("hosp-a.0000", ClientType.REGULAR, "hosp-a", False, id="over that of one of its jobs"),
        pytest.param("hosp-b", ClientType.REGULAR, "hosp-a", False, id="over another site's"),
        pytest.param(None, ClientType.REGULAR, "hosp-a", False, id="over none"),
        pytest.param("hosp-a.0000", ClientType.RELAY, "hosp-a", False, id="as a relay"),
        pytest.param(CONSOLE, ClientType.ADMIN, "lead@example.org", True, id="a person"),
        pytest.param(CONSOLE, ClientType.ADMIN, "hosp-a", False, id="a person by a site's name"),
        pytest.param(CONSOLE, ClientType.REGULAR, "hosp-a", False, id="a site over a console's"),
        pytest.param("hosp-a.0000", ClientType.ADMIN, "lead@example.org", False, id="a person over a site's"),
    ],
)
def test_a_login_counts_over_the_connection_of_its_name(over: str | None, kind: str, name: str, may: bool) -> None:
    """NVFlare ends the site's login before it even looks what kind a new one of its name is."""
    clients: Any = SimpleNamespace(name_to_clients={"hosp-a": object()})
    assert second_start._may_log_in(clients, name, over, kind) is may


def test_a_login_from_elsewhere_leaves_the_sites_own_as_it_is(caplog: pytest.LogCaptureFixture) -> None:
    """And says who tried, by the connection's certificate: another site's word on a name is not believed."""
    SecondStart()
    try:
        clients = ClientManager("project")
        mine = Client("hosp-a", "token")
        clients.clients["token"] = clients.name_to_clients["hosp-a"] = mine
        request = Message({CellMessageHeaderKeys.CLIENT_NAME: "hosp-a"}, Shareable())
        request.set_prop(MessagePropKey.ENDPOINT, Endpoint("hosp-b"))
        context = FLContext()  # without NVFlare's secure mode it asks for no certificate: what is tried is the name
        assert clients.authenticated_client(request, context, ClientType.REGULAR) is None
        assert clients.clients == {"token": mine}
        assert "a login as hosp-a over the connection of hosp-b was refused" in caplog.text
        assert "second start" not in caplog.text
        request.set_prop(MessagePropKey.ENDPOINT, Endpoint("hosp-a"))
        assert clients.authenticated_client(request, context, ClientType.REGULAR) is not None
    finally:
        second_start.uninstall()
