"""A site's volume is put back to an earlier state: ledger and audit log as they were, with all that lies beside them.

The anchors lie on another volume, as `fedscan site install --anchor DIR` lays them, and tell.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from fedscan.federation import site_anchors, site_own
from fedscan.federation.audit_log import ANCHOR, FOLDER, AuditError, AuditLog
from fedscan.federation.site_anchors import AnchorError, settle
from fedscan.federation.site_install import Choices, InstallError, install
from fedscan.federation.site_kit import Kit
from fedscan.privacy.event import Event
from fedscan.privacy.ledger import Charge, LedgerError
from fedscan.privacy.site_file import Site, SiteError

EVENT = Event(noise_multiplier=1.0, sample_rate=0.1, steps=4, unit="patient")


@pytest.fixture
def other_volume(tmp_path: Path) -> Path:
    folder = tmp_path / "other volume"
    folder.mkdir()
    return folder


def spend(site: Site, round_number: int) -> None:
    patients = frozenset({"4" * 32})
    site.open_ledger().reserve(Charge("1" * 32, "2" * 64, round_number, "3" * 64, EVENT, patients))
    AuditLog(site.state).append("answer", f"round {round_number}")


def put_back(private: Path, action: Callable[[], None]) -> None:
    """All of the volume as it was before `action`."""
    saved = private.with_name("saved")
    shutil.copytree(private, saved, symlinks=True)
    action()
    shutil.rmtree(private)
    shutil.copytree(saved, private, symlinks=True)


def private_of(kit: Path) -> Path:
    return Site.open(kit).path.resolve().parent


def texts(kit: Path, level: str) -> str:
    return " ".join(one.text for one in site_own.findings(Kit.open(kit)) if one.level == level)


def test_put_back_with_its_anchors_nothing_tells_and_check_says_so_before(installed: Path) -> None:
    site = Site.open(installed)
    spend(site, 0)
    assert "a backup of that volume, put back, would be noticed by the server's copy alone" in texts(
        installed, "warning"
    )
    assert "audit anchor: it lies on the audit log's volume" in texts(installed, "warning")
    put_back(private_of(installed), lambda: spend(site, 1))
    assert len(Site.open(installed).open_ledger().events()) == 1, "one round of two is forgotten"
    assert AuditLog(site.state).verify().ok


def test_put_back_while_the_anchors_lie_elsewhere_nothing_is_charged_or_noted(
    installed: Path, other_volume: Path
) -> None:
    spend(Site.open(installed), 0)
    done = install(installed, Choices(anchor=other_volume))
    assert [line.split(" is ")[0] for line in done.done] == ["the ledger's anchor", "the audit log's anchor"]
    site = Site.open(installed)
    spend(site, 1)
    put_back(private_of(installed), lambda: spend(site, 2))
    with pytest.raises(LedgerError, match="the anchor knows"):
        site.open_ledger()
    with pytest.raises(AuditError, match="is not continued"):
        AuditLog(site.state).append("answer", "as if nothing had been")
    assert not AuditLog(site.state).verify().ok
    assert "truncated or rolled back" in texts(installed, "error")


def test_anchors_are_moved_with_what_they_know_and_a_second_time(installed: Path, other_volume: Path) -> None:
    site = Site.open(installed)
    spend(site, 0)
    old = site.file.anchor
    before = site.open_ledger()
    install(installed, Choices(anchor=other_volume))
    site = Site.open(installed)
    assert site.file.anchor == other_volume / "hosp-a.ledger.anchor"
    assert site.file.audit_anchor == other_volume / "hosp-a.audit.anchor"
    assert (site.state / FOLDER / ANCHOR).is_symlink()
    assert not old.exists()
    with pytest.raises(LedgerError, match="anchor"):  # a process that has it open yet
        before.reserve(Charge("1" * 32, "2" * 64, 1, "3" * 64, EVENT, frozenset({"4" * 32})))
    spend(site, 1)
    assert (site.state / FOLDER / ANCHOR).is_symlink(), "a record does not bring the anchor back"
    assert AuditLog(site.state).verify().ok
    assert install(installed, Choices(anchor=other_volume)).done == ()
    third = other_volume.parent / "third"
    third.mkdir()
    install(installed, Choices(anchor=third))
    site = Site.open(installed)
    spend(site, 2)
    assert len(site.open_ledger().events()) == 3
    assert AuditLog(site.state).verify().ok
    assert "audit" not in texts(installed, "error")


def test_a_new_site_is_installed_with_both_elsewhere(
    kit: Path, store: Path, other_volume: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(kit, Choices(store=store, anchor=other_volume))
    site = Site.open(kit)
    spend(site, 0)
    assert sorted(path.name for path in other_volume.iterdir()) == ["hosp-a.audit.anchor", "hosp-a.ledger.anchor"]
    assert all(path.stat().st_mode & 0o077 == 0 for path in other_volume.iterdir())


def test_a_file_is_the_ledgers_alone(installed: Path, other_volume: Path) -> None:
    done = install(installed, Choices(anchor=other_volume / "a.anchor"))
    assert any("the audit log's stays where it is" in line for line in done.done)
    assert Site.open(installed).file.audit_anchor is None
    assert (other_volume / "a.anchor").is_file()


def test_a_move_that_was_stopped_goes_on(installed: Path, other_volume: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    site = Site.open(installed)
    spend(site, 0)
    with monkeypatch.context() as patched:

        def stop(*_: object) -> None:
            raise KeyboardInterrupt

        patched.setattr(site_anchors, "_name", stop)
        with pytest.raises(KeyboardInterrupt):
            install(installed, Choices(anchor=other_volume))
    spend(site, 1)  # on the anchor that is in use: the copy elsewhere is behind
    install(installed, Choices(anchor=other_volume))
    assert len(Site.open(installed).open_ledger().events()) == 2
    assert AuditLog(site.state).verify().ok


def test_a_rolled_back_ledger_does_not_get_an_anchor_that_fits_by_a_move(installed: Path, other_volume: Path) -> None:
    spend(Site.open(installed), 0)
    install(installed, Choices(anchor=other_volume))
    site = Site.open(installed)
    put_back(private_of(installed), lambda: spend(site, 1))
    third = other_volume.parent / "third"
    third.mkdir()
    with pytest.raises(InstallError, match="not moved"):
        install(installed, Choices(anchor=third))
    assert list(third.iterdir()) == []
    with pytest.raises(AnchorError, match="not moved"):
        settle(site, None, third / "audit.anchor")


def test_what_lies_there_already_is_not_overwritten(installed: Path, other_volume: Path, tmp_path: Path) -> None:
    spend(Site.open(installed), 0)
    (other_volume / "hosp-a.ledger.anchor").write_text("another's")
    (other_volume / "hosp-a.ledger.anchor").chmod(0o600)
    with pytest.raises(InstallError, match="not moved"):
        install(installed, Choices(anchor=other_volume))
    assert (other_volume / "hosp-a.ledger.anchor").read_text() == "another's"
    with pytest.raises(InstallError, match="no folder that this user may write"):
        install(installed, Choices(anchor=tmp_path / "not there" / "a.anchor"))
    spend(Site.open(installed), 1)


def test_site_json_that_a_person_edited_is_followed_by_install_and_checked(installed: Path, other_volume: Path) -> None:
    path = Site.open(installed).path.resolve()
    spend(Site.open(installed), 0)

    def name(place: object) -> None:
        path.write_text(json.dumps(json.loads(path.read_text()) | {"audit_anchor": place}))

    name(str(other_volume / "x.anchor"))
    assert "`fedscan site install KIT` brings it there" in texts(installed, "error")
    install(installed, Choices())
    assert "audit" not in texts(installed, "error")
    os.rename(other_volume, other_volume.with_name("not mounted"))
    assert "cannot be reached" in texts(installed, "error")
    os.rename(other_volume.with_name("not mounted"), other_volume)
    name(str(Site.open(installed).file.anchor))
    with pytest.raises(SiteError, match="are one file"):
        Site.open(installed)


def test_a_volume_that_was_put_back_does_not_overwrite_what_tells_of_it(installed: Path, other_volume: Path) -> None:
    """From a backup that is older than the move: its site.json knows nothing of the other volume, and whoever lays the
    anchors there once more, as the page says, would else take away all that was noted since."""
    spend(Site.open(installed), 0)

    def moved_and_used() -> None:
        install(installed, Choices(anchor=other_volume))
        spend(Site.open(installed), 1)

    put_back(private_of(installed), moved_and_used)
    noted = {path.name: path.read_bytes() for path in other_volume.iterdir()}
    with pytest.raises(InstallError, match="knows more than what lies here"):
        install(installed, Choices(anchor=other_volume))
    with pytest.raises(AnchorError, match="knows more than what lies here"):
        settle(Site.open(installed), None, other_volume / "hosp-a.audit.anchor")
    assert {path.name: path.read_bytes() for path in other_volume.iterdir()} == noted


def test_another_logs_anchor_is_not_overwritten(installed: Path, other_volume: Path, tmp_path: Path) -> None:
    """Two federations of one hospital, both with a site of this name, and one volume for anchors."""
    AuditLog(Site.open(installed).state).append("answer", "ours")
    other = AuditLog(tmp_path / "other", other_volume / "hosp-a.audit.anchor")
    other.append("answer", "theirs")
    with pytest.raises(AnchorError, match="another log's anchor"):
        settle(Site.open(installed), None, other_volume / "hosp-a.audit.anchor")
    other.append("answer", "theirs again")
    assert other.verify().ok
    AuditLog(Site.open(installed).state).append("answer", "ours again")
