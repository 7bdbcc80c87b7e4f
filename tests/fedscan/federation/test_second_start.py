"""Who keeps a name: decided by what is heard, with connections that are none."""

from __future__ import annotations

import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from fedscan.federation import second_start
from fedscan.federation.second_start import Names, is_heard


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


@pytest.mark.parametrize(
    ("heard_s", "since_s", "speaks"),
    [
        pytest.param(2.0, 10.0, True, id="over the connection that it has"),
        pytest.param(2.0, 1.0, False, id="before its name got a new one: it was restarted"),
        pytest.param(20.0, 100.0, False, id="long ago"),
        pytest.param(2.0, None, False, id="no connection of that name"),
    ],
)
def test_a_login_is_at_work_while_it_speaks_over_its_names_connection(
    monkeypatch: pytest.MonkeyPatch, heard_s: float, since_s: float | None, speaks: bool
) -> None:
    monkeypatch.setattr(second_start, "YOUNG_S", 15.0)
    now = time.time()
    clients: Any = SimpleNamespace(name_to_clients={"hosp-a": SimpleNamespace(last_connect_time=now - heard_s)})
    since = None if since_s is None else now - since_s
    assert second_start._speaks(clients, "hosp-a", since) is speaks
    assert not second_start._speaks(clients, "hosp-b", since)
