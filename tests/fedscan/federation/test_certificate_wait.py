"""A site whose certificate does not hold now says so once a minute, and goes on when it holds."""

from __future__ import annotations

import logging
from datetime import datetime, timedelta
from pathlib import Path

import pytest

from fedscan.federation import certificate_wait, kit_files, site_certificates


def ends_of(startup: Path) -> tuple[datetime, datetime]:
    certificate = site_certificates.load(startup / "client.crt")
    return certificate.not_valid_before_utc, certificate.not_valid_after_utc


def test_what_does_not_hold_is_said_with_its_times(kit: Path) -> None:
    startup = kit / "startup"
    begins, ends = ends_of(startup)
    second = timedelta(seconds=1)
    assert certificate_wait.why_not(startup, begins + second) is None
    assert certificate_wait.why_not(startup, ends - second) is None
    for when in (begins - second, ends + second):
        said = certificate_wait.why_not(startup, when)
        assert said is not None
        assert f"and the clock says {when:%Y-%m-%d %H:%M}" in said


def test_a_certificate_that_cannot_be_read_is_nvflares_to_say(tmp_path: Path) -> None:
    assert certificate_wait.why_not(tmp_path) is None


def test_it_is_waited_for(kit: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    _, ends = ends_of(kit / "startup")
    clock = iter([*[ends + timedelta(hours=1)] * 3, ends - timedelta(hours=1)])
    real = certificate_wait.why_not
    monkeypatch.setenv(kit_files.KIT_VARIABLE, str(kit))
    monkeypatch.setattr(certificate_wait, "LOOK_EVERY_S", 0.0)
    monkeypatch.setattr(certificate_wait, "why_not", lambda startup: real(startup, next(clock)))
    with caplog.at_level(logging.ERROR):
        certificate_wait.wait_until_it_holds()
    assert caplog.text.count(certificate_wait.WORDS) == 1
    assert next(clock, None) is None


def test_without_a_kit_nothing_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    looked_at: list[object] = []
    monkeypatch.delenv(kit_files.KIT_VARIABLE, raising=False)
    monkeypatch.setattr(certificate_wait, "why_not", looked_at.append)
    certificate_wait.wait_until_it_holds()
    assert looked_at == []
