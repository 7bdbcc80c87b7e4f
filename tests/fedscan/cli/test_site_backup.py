"""`fedscan site backup`, `restore`, `land`, `move`: a whole site, with its store, comes back or goes elsewhere."""

from __future__ import annotations

import json
import shutil
import stat
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from ctslices.store import SliceStore, write_store
from fedscan.cli.main import app
from fedscan.privacy.approvals import Approvals
from fedscan.privacy.charging import ledger_facts
from fedscan.privacy.event import Event
from fedscan.privacy.facts import LedgerFacts
from fedscan.privacy.ledger import Charge
from fedscan.privacy.policy import Policy, Unreadable
from fedscan.privacy.site_file import Site
from fedscan.training.site_store import store_facts

EVENT = Event(noise_multiplier=2.0, sample_rate=0.05, steps=20, unit="patient")
APPROVED = "7" * 64


def ask(*arguments: object) -> dict:
    done = CliRunner().invoke(app, [*(str(a) for a in arguments), "--json"])
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout)


@pytest.fixture
def site(tmp_path: Path) -> Site:
    hu = np.random.default_rng(0).normal(0, 100, (24, 16, 16)).astype(np.int16)
    store = write_store(tmp_path / "store", hu, np.arange(24) // 2, shard_slices=10)
    store.with_name("store.key").write_text("the store's key")
    anchor = tmp_path / "apart" / "a.anchor"
    limits = ("--cores", "2", "--set", "max_epsilon=3")
    ask("site", "init", tmp_path / "a", "--name", "a", "--store", store, "--anchor", anchor, *limits)
    made = Site.open(tmp_path / "a")
    Approvals(made.state, made.key()).approve(APPROVED, "a person")
    facts = store_facts(store)
    made.open_ledger().reserve(Charge("a" * 32, "1" * 64, 0, "2" * 64, EVENT, facts.trained))
    return made


def same_site(one: Site, two: Site) -> None:
    assert (two.name, two.limits.cores, two.key()) == ("a", 2, one.key())
    assert two.policy() == Policy(policy_version=1, max_epsilon=3.0)
    assert set(Approvals(two.state, two.key()).approved()) == {APPROVED}
    assert two.pseudonym_key.read_text() == "the store's key"
    ledger = two.open_ledger()
    assert ledger.events() == [EVENT]
    assert len(set().union(*ledger.populations.values())) > 5


@pytest.mark.parametrize("with_store", [True, False])
def test_a_whole_site_comes_back(site: Site, tmp_path: Path, with_store: bool) -> None:
    package = tmp_path / "backup.tar"
    said = ask("site", "backup", package, "--site", site.path, *(["--with-store"] if with_store else []))
    head = site.open_ledger().head
    assert said["head"] == {"count": head.count, "mac": head.mac}
    opened = SliceStore.open(site.store).hu[:]
    back = tmp_path / "back" / "a"
    (tmp_path / "back").mkdir()
    store = [] if with_store else ["--store", shutil.copytree(site.store, tmp_path / "back" / "s")]
    shutil.move(site.path.parent, tmp_path / "lost")
    lost = Site.open(tmp_path / "lost")
    done = ask("site", "restore", package, "--into", back, "--anchor", lost.file.anchor, *store)
    assert (done["site"], done["ledger"]) == (str(back / "site.json"), "whole")
    restored = Site.open(back)
    same_site(lost, restored)
    assert restored.store == (back / "store" if with_store else tmp_path / "back" / "s")
    assert np.array_equal(SliceStore.open(restored.store).hu[:], opened)
    files = [path for path in back.rglob("*") if path.is_file()]
    assert {stat.S_IMODE(path.stat().st_mode) for path in files} == {0o600}


def test_a_whole_site_moves(site: Site, tmp_path: Path) -> None:
    package, new = tmp_path / "moved.tar", tmp_path / "machine" / "a"
    new.parent.mkdir()
    code = ask("site", "land", new)["code"]
    assert ask("site", "land", new)["code"] == code
    mistyped = code[:20] + ("0" if code[20] != "0" else "1") + code[21:]
    for to in (code[:12], code[:64], mistyped, "x"):
        wrong = CliRunner().invoke(app, ["site", "move", str(package), "--to", to, "--site", str(site.path)])
        assert wrong.exit_code == 1
        assert "error: --to must be the 72 hexadecimal digits" in wrong.output
        assert isinstance(ledger_facts(site), LedgerFacts), "it did not move"
    moved = ask("site", "move", package, "--to", code, "--site", site.path, "--with-store")
    assert moved["entry"] == site.open_ledger().head.count
    retired = ledger_facts(site)
    assert isinstance(retired, Unreadable)
    assert "moved to another machine" in retired.reasons[0]
    done = ask("site", "restore", package, "--into", new, "--anchor", tmp_path / "machine" / "a.anchor")
    assert done["ledger"] == "moved"
    same_site(site, Site.open(new))


def test_into_a_kits_private_folder_under_the_site_json_that_is_there(site: Site, tmp_path: Path) -> None:
    """A lost KIT.private comes back under KIT/local/site.json, which names its files."""
    (tmp_path / "kit" / "local").mkdir(parents=True)
    anchor = tmp_path / "apart" / "kit.anchor"
    store = shutil.copytree(site.store, tmp_path / "kit-store")
    ask("site", "init", tmp_path / "kit", "--name", "a", "--store", store, "--anchor", anchor)
    in_kit = Site.open(tmp_path / "kit")
    in_kit.open_ledger().reserve(Charge("a" * 32, "1" * 64, 0, "2" * 64, EVENT, frozenset({"p"})))
    ask("site", "backup", tmp_path / "kit.tar", "--site", tmp_path / "kit")
    shutil.rmtree(tmp_path / "kit.private")
    restore = ("site", "restore", tmp_path / "kit.tar", "--into", tmp_path / "kit.private")
    ask(*restore, "--anchor", anchor, "--store", store)
    assert Site.open(tmp_path / "kit").open_ledger().events() == [EVENT]


def test_a_removal_that_is_younger_than_the_backup_is_asked_for_again(site: Site, tmp_path: Path) -> None:
    """The old store brings the patient back, and the record is lost: the anchor knows that there was one."""
    package = tmp_path / "b.tar"
    ask("site", "backup", package, "--site", site.path, "--with-store")
    facts = store_facts(site.store)
    site.open_ledger().record_removal(facts.everybody, facts.everybody - {min(facts.trained)})
    shutil.move(site.path.parent, tmp_path / "lost")
    anchor = site.file.anchor
    done = ask("site", "restore", package, "--into", tmp_path / "a", "--anchor", anchor)
    assert done["ledger"] == "restored"
    assert "1 removal records are among them: run those `store forget` again" in done["warnings"][0]
    again = Site.open(tmp_path / "a").open_ledger()
    again.record_removal(facts.everybody, facts.everybody - {min(facts.trained)})
    assert again.removed == {min(facts.trained)}


def test_a_removal_that_the_backup_knows_is_held_against_an_old_store(site: Site, tmp_path: Path) -> None:
    facts = store_facts(site.store)
    site.open_ledger().record_removal(facts.everybody, facts.everybody - {min(facts.trained)})
    package = tmp_path / "b.tar"
    ask("site", "backup", package, "--site", site.path, "--with-store")
    shutil.move(site.path.parent, tmp_path / "lost")
    ask("site", "restore", package, "--into", tmp_path / "a", "--anchor", site.file.anchor)
    known = ledger_facts(Site.open(tmp_path / "a"))
    assert isinstance(known, LedgerFacts)
    assert known.removed & store_facts(tmp_path / "a" / "store").everybody == {min(facts.trained)}


def test_a_store_that_comes_too_late_for_site_json_is_said(site: Site, tmp_path: Path) -> None:
    ask("site", "backup", tmp_path / "p.tar", "--site", site.path)
    again = ("site", "restore", tmp_path / "p.tar", "--into", site.path.parent, "--anchor", site.file.anchor)
    assert ask(*again, "--store", site.store)["warnings"] == []
    [warning] = ask(*again, "--store", tmp_path / "other")["warnings"]
    assert f"names the store {site.store}: correct `store` in it" in warning
