"""epsilon is cached by ledger head under a keyed hash: it saves time, and no edit of it saves budget."""

from __future__ import annotations

import shutil
import time
from pathlib import Path

import pytest

from fedscan.privacy.accounting import AccountingError, epsilon
from fedscan.privacy.event import Event
from fedscan.privacy.ledger import Charge, Ledger
from fedscan.privacy.ledger_cache import EpsilonCache
from fedscan.privacy.ledger_seal import seal, subkey, unseal

KEY = bytes(range(32))
DELTA = 1e-5
EVENT = Event(noise_multiplier=2.0, sample_rate=0.05, steps=20, unit="patient")
THEN = Event(noise_multiplier=1.0, sample_rate=0.02, steps=7, unit="patient")


@pytest.fixture
def place(tmp_path: Path) -> tuple[Path, bytes, Path]:
    return tmp_path / "ledger", KEY, tmp_path / "anchor"


@pytest.fixture
def ledger(place: tuple[Path, bytes, Path]) -> Ledger:
    made = Ledger.create(*place)
    spend(made)
    return made


def spend(ledger: Ledger, event: Event = EVENT) -> None:
    ledger.reserve(Charge("a" * 32, "1" * 64, 0, "2" * 64, event, frozenset({"p"})))


def cache_of(place: tuple[Path, bytes, Path]) -> Path:
    return place[0].with_name("ledger.epsilon")


def with_value(place: tuple[Path, bytes, Path], key: bytes, value: float) -> bytes:
    """The cache with its first figure replaced, sealed with `key`."""
    opened = unseal(subkey(KEY, "epsilon 1"), cache_of(place).read_bytes())
    assert opened is not None
    start = opened[0].index(b'"epsilon":"') + len(b'"epsilon":"')
    end = opened[0].index(b'"', start)
    return seal(key, opened[0][:start] + value.hex().encode() + opened[0][end:])[0]


def test_it_is_the_accountants_figure(ledger: Ledger) -> None:
    for _ in range(2):
        assert ledger.epsilon(DELTA) == epsilon([EVENT], DELTA)
        assert ledger.epsilon(1e-6) == epsilon([EVENT], 1e-6)
        assert ledger.epsilon(DELTA, THEN) == epsilon([EVENT, THEN], DELTA)


def test_a_second_asker_computes_nothing(ledger: Ledger, place: tuple[Path, bytes, Path]) -> None:
    """Shown by a figure that only the site's own key can plant; and by the clock, in another instance."""
    ledger.epsilon(DELTA, THEN)
    cache_of(place).write_bytes(with_value(place, subkey(KEY, "epsilon 1"), 77.0))
    assert Ledger.open(*place).epsilon(DELTA, THEN) == 77.0
    started = time.process_time()
    for _ in range(20):
        ledger.epsilon(DELTA, THEN)
    assert (time.process_time() - started) / 20 < 0.01


def test_every_charge_makes_it_anew(ledger: Ledger, place: tuple[Path, bytes, Path]) -> None:
    ledger.epsilon(DELTA)
    spend(ledger, THEN)
    assert ledger.epsilon(DELTA) == epsilon([EVENT, THEN], DELTA)
    assert Ledger.open(*place).epsilon(DELTA) == epsilon([EVENT, THEN], DELTA)


def test_an_edited_one_is_not_believed(ledger: Ledger, place: tuple[Path, bytes, Path]) -> None:
    cache, true = cache_of(place), ledger.epsilon(DELTA)
    kept = cache.read_bytes()
    forged = [
        with_value(place, subkey(bytes(32), "epsilon 1"), 0.0),
        with_value(place, subkey(KEY, "ledger 1"), 0.0),
        b"",
        b"{}\n",
        place[0].read_bytes().splitlines(keepends=True)[-1],
        *(kept[:at] + bytes([kept[at] ^ 1]) + kept[at + 1 :] for at in range(0, len(kept), 7)),
    ]
    for data in forged:
        cache.write_bytes(data)
        assert Ledger.open(*place).epsilon(DELTA) == true
    cache.chmod(0o666)
    cache.write_bytes(with_value(place, subkey(KEY, "epsilon 1"), 0.0))
    assert Ledger.open(*place).epsilon(DELTA) == true


def test_an_older_one_put_back_is_not_believed(ledger: Ledger, place: tuple[Path, bytes, Path], tmp_path: Path) -> None:
    ledger.epsilon(DELTA)
    shutil.copy(cache_of(place), tmp_path / "old")
    spend(ledger)
    true = ledger.epsilon(DELTA)
    shutil.copy(tmp_path / "old", cache_of(place))
    assert Ledger.open(*place).epsilon(DELTA) == true == epsilon([EVENT, EVENT], DELTA)


def test_one_of_another_ledger_with_the_same_key_is_not_believed(ledger: Ledger, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    other = Ledger.create(tmp_path / "other" / "ledger", KEY, tmp_path / "other" / "anchor")
    assert other.epsilon(DELTA) == 0.0
    shutil.copy(tmp_path / "other" / "ledger.epsilon", tmp_path / "ledger.epsilon")
    assert ledger.epsilon(DELTA) == epsilon([EVENT], DELTA)


def test_another_accountant_is_asked_anew(
    ledger: Ledger, place: tuple[Path, bytes, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    true = ledger.epsilon(DELTA)
    cache_of(place).write_bytes(with_value(place, subkey(KEY, "epsilon 1"), 0.0))
    assert ledger.epsilon(DELTA) == 0.0
    monkeypatch.setattr("fedscan.privacy.ledger_cache._accountant", lambda: "dp-accounting 99")
    assert ledger.epsilon(DELTA) == true


def test_what_cannot_be_accounted_for_is_not_cached(ledger: Ledger, place: tuple[Path, bytes, Path]) -> None:
    for _ in range(2):
        with pytest.raises(AccountingError):
            ledger.epsilon(2.0)
    assert not cache_of(place).exists()


def test_a_cache_that_cannot_be_written_costs_time_alone(ledger: Ledger, place: tuple[Path, bytes, Path]) -> None:
    cache_of(place).mkdir()
    assert ledger.epsilon(DELTA) == epsilon([EVENT], DELTA)


def test_it_does_not_grow(place: tuple[Path, bytes, Path]) -> None:
    cache = EpsilonCache(cache_of(place), KEY)
    for n in range(1, 40):
        cache.epsilon("0" * 64, [], 1e-5 / n, None)
    assert cache_of(place).stat().st_size < 2000
