"""site.json is the site's: strict, of one meaning, nobody else's to write; its places are kept apart."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fedscan.privacy.facts import LedgerFacts
from fedscan.privacy.limits import Limits
from fedscan.privacy.own_files import OwnFileError, read_key
from fedscan.privacy.policy import Policy, Unreadable
from fedscan.privacy.site_check import check
from fedscan.privacy.site_file import Site, SiteError
from fedscan.privacy.store_facts import StoreFacts
from fedscan.training.site_store import store_facts


def write(folder: Path, **fields: Any) -> Path:
    """A site.json with these fields changed; None takes one away."""
    whole: dict[str, Any] = {
        "site_version": 1,
        "name": "a",
        "store": "store",
        "ledger": "own/ledger.jsonl",
        "anchor": "/far/a.anchor",
        "key": "own/ledger.key",
        "policy": "own/policy.json",
        "state": "own/state",
    }
    whole = {name: value for name, value in (whole | fields).items() if value is not None}
    path = folder / "site.json"
    path.write_text(json.dumps(whole))
    path.chmod(0o600)
    return path


def test_places_count_from_the_folder_of_site_json(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir("/")
    monkeypatch.setenv("HOME", "/home/somebody")
    site = Site.open(write(tmp_path, state="~/state", limits={"cores": 4, "quiet_hours": ["22:00-06:00"]}))
    assert site.store == tmp_path / "store"
    assert site.file.ledger == tmp_path / "own" / "ledger.jsonl"
    assert site.file.anchor == Path("/far/a.anchor")
    assert site.state == Path("/home/somebody/state")
    assert site.pseudonym_key == tmp_path / "store.key"
    assert site.limits == Limits(cores=4, quiet_hours=("22:00-06:00",))
    assert Site.open(write(tmp_path, pseudonym_key="k")).pseudonym_key == tmp_path / "k"


def test_a_kit_and_a_folder_stand_for_their_site_json(tmp_path: Path) -> None:
    (tmp_path / "local").mkdir()
    write(tmp_path, name="of-the-folder")
    write(tmp_path / "local", name="of-the-kit")
    assert Site.open(tmp_path).name == "of-the-kit"
    (tmp_path / "local" / "site.json").unlink()
    assert Site.open(tmp_path).name == "of-the-folder"
    (tmp_path / "site.json").unlink()
    with pytest.raises(SiteError, match="fedscan site init"):
        Site.open(tmp_path)


@pytest.mark.parametrize(
    ("fields", "word"),
    [
        ({"site_version": 2}, "site_version"),
        ({"site_version": None}, "site_version"),
        ({"ledger": None}, "ledger"),
        ({"anchor": None}, "anchor"),
        ({"policy": None}, "policy"),
        ({"policy": {}}, "policy"),
        ({"policy": ""}, "policy"),
        ({"name": "a/b"}, "name"),
        ({"name": ""}, "name"),
        ({"threads": 4}, "threads: there is no such field"),
        ({"limits": {"core": 4}}, "limits.core: there is no such field"),
        ({"limits": {"cores": 0}}, "limits.cores"),
        ({"limits": {"gpu": "yes"}}, "limits.gpu"),
        ({"limits": {"quiet_hours": ["8-9"]}}, "quiet_hours"),
        ({"anchor": "own/ledger.jsonl"}, "one file"),
        ({"ledger": "store/ledger.jsonl"}, "ledger lies in the store"),
        ({"ledger": "x/../store/ledger.jsonl"}, "ledger lies in the store"),
        ({"key": "store/deep/ledger.key"}, "key lies in the store"),
        ({"policy": "store"}, "policy lies in the store"),
        ({"anchor": "store/anchor"}, "anchor lies in the store"),
        ({"state": "store/state"}, "state lies in the store"),
        ({"key": "~nobody-of-this-name/key"}, "is no place that can be found"),
        ({"key": "a\0b"}, "is no place that can be found"),
    ],
)
def test_what_is_wrong_with_site_json_is_said(tmp_path: Path, fields: dict[str, Any], word: str) -> None:
    with pytest.raises(SiteError, match=word):
        Site.open(write(tmp_path, **fields))


def test_a_link_does_not_hide_that_a_ledger_lies_in_the_store(tmp_path: Path) -> None:
    (tmp_path / "store").mkdir()
    (tmp_path / "own").symlink_to(tmp_path / "store")
    with pytest.raises(SiteError, match="lies in the store"):
        Site.open(write(tmp_path))


def test_a_site_json_of_others_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path)
    path.chmod(0o620)
    with pytest.raises(SiteError, match="written by others"):
        Site.open(path)
    with pytest.raises(SiteError, match="cannot be read"):
        Site.open(tmp_path / "none.json")
    path.unlink()
    os.mkfifo(path, 0o600)
    with pytest.raises(SiteError, match="no plain file"):
        Site.open(path)


def test_a_field_that_is_there_twice_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path)
    path.write_text(path.read_text().replace('"policy":', '"policy": "other.json", "policy":'))
    with pytest.raises(SiteError, match="twice"):
        Site.open(path)


@pytest.mark.parametrize(
    ("text", "mode", "word"),
    [
        ("ab" * 32, 0o640, "open to others"),
        ("ab" * 31, 0o600, "64 hexadecimal digits"),
        ("ab" * 33, 0o600, "64 hexadecimal digits"),
        ("xy" * 32, 0o600, "64 hexadecimal digits"),
        ("", 0o600, "64 hexadecimal digits"),
    ],
)
def test_a_key_that_is_none_is_refused_and_not_shown(tmp_path: Path, text: str, mode: int, word: str) -> None:
    path = tmp_path / "key"
    path.write_text(text)
    path.chmod(mode)
    with pytest.raises(OwnFileError, match=word) as refused:
        read_key(path, "the key")
    assert not text or text not in str(refused.value)
    path.write_text("ab" * 32 + "\n")
    path.chmod(0o600)
    assert read_key(path, "the key") == b"\xab" * 32


def test_a_store_is_known_by_its_manifest_alone(site: Site) -> None:
    facts = store_facts(site.store)
    assert isinstance(facts, StoreFacts)
    assert (facts.unit, facts.units, len(facts.trained), len(facts.held_out)) == ("patient", 60, 60, 0)
    (site.store / "manifest.json").unlink()
    gone = store_facts(site.store)
    assert isinstance(gone, Unreadable)
    assert "not a slice store" in gone.reasons[0]


def test_of_pictures_the_units_are_the_images_that_are_trained_on() -> None:
    rows = [("a", "train", 25), ("b", "train", 10), ("c", "holdout", 25)]
    facts = StoreFacts.of("image", rows)
    assert (facts.units, facts.trained, facts.held_out) == (35, {"a", "b"}, {"c"})
    assert StoreFacts.of("patient", rows).units == 2
    assert facts.everybody == {"a", "b", "c"}


def test_a_fit_site_has_no_error(make_site: Callable[..., Site]) -> None:
    site = make_site()
    found = check(site, store_facts(site.store))
    assert [finding.level for finding in found] == ["warning"]
    assert "anchor" in found[0].text
    assert isinstance(site.policy(), Policy)
    assert LedgerFacts(spent=()).patients == frozenset()
