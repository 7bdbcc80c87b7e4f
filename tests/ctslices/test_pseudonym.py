from __future__ import annotations

import hashlib
import hmac
import stat
from pathlib import Path

import pytest

from ctslices.pseudonym import KeyFileError, create_key, default_key_path, load_key


def test_a_new_key_is_for_its_owner_alone_and_comes_back(tmp_path: Path) -> None:
    path = default_key_path(tmp_path / "store")
    assert path == tmp_path / "store.key"
    key = create_key(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert load_key(path) == key
    assert [p.name for p in tmp_path.iterdir()] == ["store.key"]
    assert key.secret.hex() not in repr(key)


def test_a_key_that_another_process_made_first_is_kept(tmp_path: Path) -> None:
    first = create_key(tmp_path / "k")
    assert create_key(tmp_path / "k") == first


def test_pseudonyms_are_hmacs_under_the_key(tmp_path: Path) -> None:
    one, other = create_key(tmp_path / "a"), create_key(tmp_path / "b")
    wanted = hmac.new(one.secret, b"patient\0PAT-7", hashlib.sha256).hexdigest()[:32]
    assert one.pseudonym("patient", "PAT-7") == wanted
    assert one.pseudonym("series", "PAT-7") != wanted
    assert other.pseudonym("patient", "PAT-7") != wanted
    assert one.fingerprint != other.fingerprint
    assert one.secret.hex() not in one.fingerprint


def test_an_open_broken_or_absent_key_is_refused(tmp_path: Path) -> None:
    create_key(tmp_path / "k")
    (tmp_path / "k").chmod(0o640)
    with pytest.raises(KeyFileError, match="got mode 0640, wanted 0600"):
        load_key(tmp_path / "k")
    (tmp_path / "short").write_text("abc")
    (tmp_path / "short").chmod(0o600)
    with pytest.raises(KeyFileError, match="64 hexadecimal digits: got 3 bytes"):
        load_key(tmp_path / "short")
    with pytest.raises(KeyFileError, match="not there"):
        load_key(tmp_path / "none")
