"""Libraries that quote headers are silent inside, and as before outside."""

from __future__ import annotations

import logging
import warnings

import pytest

from ctslices.quiet import quiet


def _speak(secret: str) -> None:
    warnings.warn(secret, UserWarning, stacklevel=1)
    logging.getLogger("pydicom").warning(secret)
    logging.getLogger("pydicom.pixels.decoders").error(secret)


def test_nothing_comes_through_and_all_is_restored(caplog: pytest.LogCaptureFixture) -> None:
    logging.getLogger("pydicom.pixels.decoders")
    with quiet():
        _speak("inside")
        with quiet():
            _speak("twice inside")
        _speak("inside again")
    assert "inside" not in caplog.text
    with pytest.warns(UserWarning, match="outside"):
        _speak("outside")
    assert caplog.text.count("outside") == 2


def test_it_is_restored_after_an_error(caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(ZeroDivisionError), quiet():
        _ = 1 / 0
    logging.getLogger("pydicom").warning("outside")
    assert "outside" in caplog.text


def test_other_loggers_speak_on(caplog: pytest.LogCaptureFixture) -> None:
    with quiet():
        logging.getLogger("ctslices").warning("our own")
    assert "our own" in caplog.text
