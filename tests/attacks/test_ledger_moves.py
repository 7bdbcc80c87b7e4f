"""Budget is not won back by a backup, a move, a lost disk or a lost anchor."""

from __future__ import annotations

import io
import json
import shutil
import tarfile
from dataclasses import dataclass
from pathlib import Path

import pytest
from typer.testing import CliRunner

from fedscan.cli.main import app
from fedscan.privacy.event import Event
from fedscan.privacy.ledger import Charge, Entry, Head, Ledger, LedgerError
from fedscan.privacy.ledger_recovery import with_check
from fedscan.privacy.ledger_report import head_text, incidents
from fedscan.privacy.site_file import Site

EVENT = Event(noise_multiplier=2.0, sample_rate=0.05, steps=20, unit="patient")
DEARER = Event(noise_multiplier=1.0, sample_rate=0.1, steps=50, unit="patient")


def command(*arguments: object, code: int = 0) -> str:
    done = CliRunner().invoke(app, [str(a) for a in arguments])
    assert done.exit_code == code, done.output
    return done.output


@dataclass
class Hospital:
    """A site whose anchor lies apart, as on another volume."""

    home: Path

    @property
    def folder(self) -> Path:
        return self.home / "a"

    @property
    def anchor(self) -> Path:
        return self.home / "other-volume" / "a.anchor"

    @property
    def store(self) -> Path:
        return self.home / "store"

    @property
    def site(self) -> Site:
        return Site.open(self.folder)

    @property
    def ledger(self) -> Ledger:
        return self.site.open_ledger()

    def spend(self, rounds: int, event: Event = EVENT, run_id: str = "a" * 32) -> list[Entry]:
        return [
            self.ledger.reserve(Charge(run_id, "1" * 64, number, "2" * 64, event, frozenset({"p1", "p2"})))
            for number in range(rounds)
        ]

    def backup(self, name: str = "backup.tar") -> Path:
        package = self.home / name
        command("site", "backup", package, "--site", self.folder)
        return package

    def lose_the_disk(self) -> None:
        shutil.rmtree(self.folder)

    def restore(self, package: Path, code: int = 0, into: str = "a", anchor: Path | None = None) -> str:
        return command(
            *("site", "restore", package, "--into", self.home / into),
            *("--anchor", anchor or self.anchor, "--store", self.store),
            code=code,
        )


@pytest.fixture
def hospital(tmp_path: Path) -> Hospital:
    made = Hospital(tmp_path)
    made.anchor.parent.mkdir()
    command("site", "init", made.folder, "--name", "a", "--store", made.store, "--anchor", made.anchor)
    made.spend(2)
    return made


def spent(ledger: Ledger) -> dict[Event, int]:
    steps: dict[Event, int] = {}
    for event in ledger.events():
        one = event.model_copy(update={"steps": 1})
        steps[one] = steps.get(one, 0) + event.steps
    return steps


def test_the_newest_backup_goes_on_as_it_was(hospital: Hospital) -> None:
    package, before, head = hospital.backup(), hospital.ledger.events(), hospital.ledger.head
    hospital.lose_the_disk()
    assert "as new as its anchor" in hospital.restore(package)
    ledger = hospital.ledger
    assert (ledger.events(), ledger.head) == (before, head)
    assert list(ledger.populations.values()) == [frozenset({"p1", "p2"})]
    hospital.spend(1)
    assert len(hospital.ledger.events()) == 3


def test_an_old_backup_is_charged_what_the_anchor_knows(hospital: Hospital) -> None:
    """Rounds, another job's rounds, and a round that had the budget of a third: all of it."""
    package, kept = hospital.backup(), hospital.ledger.head
    lost = [*hospital.spend(3), *hospital.spend(2, DEARER, "b" * 32)]
    before, newest = spent(hospital.ledger), hospital.ledger.head
    hospital.lose_the_disk()
    assert "what the lost entries spent was charged" in hospital.restore(package)
    ledger = hospital.ledger
    assert spent(ledger) == before
    assert ledger.head.count == newest.count + 1
    assert all(ledger.contains(head) for head in (kept, newest, ledger.head, *(entry.head for entry in lost)))
    assert not ledger.contains(Head(newest.count, "0" * 64))
    assert all(ledger.paid_for(entry.number) is None for entry in lost)
    assert f"entries {kept.count + 1} to {newest.count} were lost" in incidents(ledger.lines)[-1]
    hospital.spend(1)
    assert sum(spent(hospital.ledger).values()) == sum(before.values()) + EVENT.steps


def test_an_old_backup_does_not_hide_a_run_without_dp(hospital: Hospital) -> None:
    package = hospital.backup()
    hospital.ledger.note_unprotected("d" * 32, "1" * 64)
    hospital.lose_the_disk()
    said = hospital.restore(package).replace("\n", " ")
    assert "1 runs without differential privacy are among them" in said
    assert json.loads(command("budget", "--site", hospital.folder, "--json"))["unprotected_runs"] == 1


def test_the_same_old_backup_twice_wins_nothing_either(hospital: Hospital) -> None:
    package = hospital.backup()
    hospital.spend(3)
    for more in (0, 2):
        hospital.spend(more)
        before = spent(hospital.ledger)
        hospital.lose_the_disk()
        hospital.restore(package)
        assert spent(hospital.ledger) == before


def test_an_old_ledger_copied_by_hand_is_refused(hospital: Hospital) -> None:
    old = hospital.site.file.ledger.read_bytes()
    count = hospital.ledger.head.count
    hospital.spend(1)
    hospital.site.file.ledger.write_bytes(old)
    with pytest.raises(LedgerError, match=f"^entry {count + 1}: it is missing"):
        _ = hospital.ledger


def test_a_backup_without_its_anchor_is_refused(hospital: Hospital) -> None:
    package = hospital.backup()
    hospital.spend(1)
    hospital.lose_the_disk()
    said = hospital.restore(package, code=1, anchor=hospital.home / "new.anchor")
    assert "Without its anchor an older ledger would not be noticed" in said.replace("\n", " ")
    assert not (hospital.folder / "site.json").exists()
    assert "what the lost entries spent" in hospital.restore(package)


def test_a_backup_with_the_anchor_of_another_ledger_is_refused(hospital: Hospital) -> None:
    """Made with the same key, and spent less; or a copy that went on by itself."""
    package = hospital.backup()
    other = hospital.home / "other"
    other.mkdir()
    Ledger.create(other / "ledger", hospital.site.key(), other / "anchor")
    copied = hospital.home / "copied.anchor"
    shutil.copy(hospital.anchor, copied)
    hospital.restore(package, into="copy", anchor=copied)
    Site.open(hospital.home / "copy").open_ledger().record_removal({"p1"}, set())
    hospital.spend(2)
    newer = hospital.backup("newer.tar")
    for file, anchor, word in (
        (package, other / "anchor", "belongs to another ledger"),
        (newer, copied, "went on by itself"),
    ):
        hospital.lose_the_disk()
        assert word in hospital.restore(file, code=1, anchor=anchor).replace("\n", " ")
        assert not (hospital.folder / "site.json").exists()


def test_a_copy_that_spent_what_the_anchor_does_not_know_is_refused(hospital: Hospital) -> None:
    copied = hospital.home / "copied.anchor"
    shutil.copy(hospital.anchor, copied)
    hospital.restore(hospital.backup(), into="copy", anchor=copied)
    there = Site.open(hospital.home / "copy")
    there.open_ledger().reserve(Charge("c" * 32, "1" * 64, 0, "2" * 64, DEARER, frozenset({"p1"})))
    package = hospital.home / "fork.tar"
    command("site", "backup", package, "--site", there.path)
    hospital.spend(9)
    hospital.lose_the_disk()
    assert "spent what the anchor does not know" in hospital.restore(package, code=1).replace("\n", " ")


def test_a_package_never_holds_the_anchor(hospital: Hospital) -> None:
    """With it an old ledger would bring the witness that it is new."""
    with tarfile.open(hospital.backup()) as tar:
        assert all(hospital.anchor.read_bytes() != tar.extractfile(info).read() for info in tar.getmembers())  # type: ignore[union-attr]
        assert not [name for name in tar.getnames() if "anchor" in name]


def test_two_machines_cannot_both_go_on_from_a_backup(hospital: Hospital) -> None:
    """The second has no anchor; with a copy of it, each lacks the heads that a server recorded from the other."""
    package = hospital.backup()
    hospital.restore(package, code=1, into="second", anchor=hospital.home / "second.anchor")
    copied = hospital.home / "copied.anchor"
    shutil.copy(hospital.anchor, copied)
    hospital.restore(package, into="third", anchor=copied)
    here = hospital.spend(1)[0]
    there = Site.open(hospital.home / "third").open_ledger()
    assert not there.contains(here.head)


def test_a_restore_over_a_living_ledger_changes_nothing(hospital: Hospital) -> None:
    package = hospital.backup()
    hospital.spend(2)
    before = hospital.ledger.head
    hospital.restore(package)  # it went on from the package's: it stays as it is
    assert hospital.ledger.head == before
    other = hospital.backup("newer.tar")
    hospital.lose_the_disk()
    hospital.restore(package)
    assert "is another than the package's" in hospital.restore(other, code=1).replace("\n", " ")


def moved(hospital: Hospital, into: str = "new") -> Path:
    code = command("site", "land", hospital.home / into).strip()
    package = hospital.home / "moved.tar"
    command("site", "move", package, "--to", code, "--site", hospital.folder)
    return package


def test_a_moved_ledger_goes_on_there_and_is_retired_here(hospital: Hospital) -> None:
    before = hospital.ledger.events()
    package = moved(hospital)
    said = hospital.restore(package, into="new", anchor=hospital.home / "new.anchor")
    assert "it moved in here" in said
    there = Site.open(hospital.home / "new").open_ledger()
    assert there.events() == before
    assert there.contains(hospital.ledger.head)
    assert [line.record.kind for line in there.lines[-2:]] == ["moved_out", "moved_in"]
    there.reserve(Charge("a" * 32, "1" * 64, 9, "2" * 64, EVENT, frozenset({"p1"})))
    with pytest.raises(LedgerError, match="moved to another machine"):
        hospital.spend(1)
    with pytest.raises(LedgerError, match="moved to another machine"):
        hospital.ledger.record_removal({"p1"}, set())


def test_the_old_machines_ledger_from_before_the_move_is_refused(hospital: Hospital) -> None:
    old = hospital.site.file.ledger.read_bytes()
    moved(hospital)
    hospital.site.file.ledger.write_bytes(old)
    with pytest.raises(LedgerError, match="it is missing"):
        _ = hospital.ledger


def test_a_backup_from_before_the_move_does_not_bring_the_old_machine_back(hospital: Hospital) -> None:
    """Two machines would each have what was left of the budget. The anchor knows that the site has gone."""
    old = hospital.backup()
    package = moved(hospital)
    hospital.restore(package, into="new", anchor=hospital.home / "new.anchor")
    hospital.lose_the_disk()
    said = hospital.restore(old, code=1).replace("\n", " ")
    assert "moved to another machine" in said
    assert not (hospital.folder / "site.json").exists()
    there = Site.open(hospital.home / "new")
    backup = hospital.home / "new.tar"
    command("site", "backup", backup, "--site", there.path)
    there.open_ledger().reserve(Charge("a" * 32, "1" * 64, 9, "2" * 64, EVENT, frozenset({"p1"})))
    shutil.rmtree(hospital.home / "new")
    hospital.restore(backup, into="new", anchor=hospital.home / "new.anchor")  # there a lost disk is a lost disk
    assert spent(Site.open(hospital.home / "new").open_ledger())[EVENT.model_copy(update={"steps": 1})] == 60


def test_a_package_lands_once_and_only_where_it_was_sent(hospital: Hospital) -> None:
    package = moved(hospital)
    for into in ("elsewhere", "new2"):
        command("site", "land", hospital.home / into)
        said = hospital.restore(package, code=1, into=into, anchor=hospital.home / f"{into}.anchor")
        assert "moved to another place than this one" in said.replace("\n", " ")
    hospital.restore(package, into="new", anchor=hospital.home / "new.anchor")
    assert not (hospital.home / "new.landing").exists()
    shutil.rmtree(hospital.home / "new")
    again = hospital.restore(package, code=1, into="new", anchor=hospital.home / "again.anchor")
    assert "landed already" in again
    here = hospital.restore(package, code=1)  # back on the old machine
    assert "moved to another place" in here


def test_a_move_goes_to_one_place(hospital: Hospital) -> None:
    moved(hospital)
    said = command(
        *("site", "move", hospital.home / "b.tar", "--to", with_check("f" * 64), "--site", hospital.folder),
        code=1,
    )
    assert "moved to another machine already" in said
    code = command("site", "land", hospital.home / "new").strip()
    command("site", "move", hospital.home / "c.tar", "--to", code, "--site", hospital.folder)  # a stopped move ends
    assert [line.record.kind for line in hospital.ledger.lines].count("moved_out") == 1
    assert "error" in command("site", "move", hospital.home / "d.tar", "--to", "x", "--site", hospital.folder, code=1)


def test_a_round_under_way_at_the_move_is_not_answered_and_the_move_can_be_ended(hospital: Hospital) -> None:
    """An entry behind the move would make of the next package one that lands nowhere."""
    entry = hospital.spend(1)[0]
    moved(hospital)
    with pytest.raises(LedgerError, match="moved to another machine"):
        hospital.ledger.note_answer(entry.number, "5" * 64)
    code = command("site", "land", hospital.home / "new").strip()
    again = hospital.home / "again.tar"
    command("site", "move", again, "--to", code, "--site", hospital.folder)
    hospital.restore(again, into="new", anchor=hospital.home / "new.anchor")
    assert len(Site.open(hospital.home / "new").open_ledger().events()) == 3


def test_a_landing_that_was_cut_ends_by_the_same_command(hospital: Hospital) -> None:
    """Cut after the entry, before the anchor, or before the secret was used up."""
    package, anchor = moved(hospital), hospital.home / "new.anchor"
    secret = (hospital.home / "new.landing").read_bytes()
    hospital.restore(package, into="new", anchor=anchor)
    head = Site.open(hospital.home / "new").open_ledger().head
    (hospital.home / "new.landing").write_bytes(secret)
    (hospital.home / "new.landing").chmod(0o600)
    anchor.unlink()
    hospital.restore(package, into="new", anchor=anchor)
    assert Site.open(hospital.home / "new").open_ledger().head == head
    assert not (hospital.home / "new.landing").exists()


def test_a_lost_anchor_is_renewed_only_for_a_ledger_that_is_new_enough(hospital: Hospital) -> None:
    old = hospital.site.file.ledger.read_bytes()
    recorded = hospital.spend(2)[-1].head
    newest = hospital.site.file.ledger.read_bytes()
    renew = ("site", "renew-anchor", "--site", hospital.folder)
    assert "nothing to renew" in command(*renew, code=1)
    hospital.anchor.unlink()
    assert "ask the server" in command(*renew, code=1)
    assert "COUNT:MAC" in command(*renew, "--head", "7", code=1)
    hospital.site.file.ledger.write_bytes(old)
    assert "it is an older copy" in command(*renew, "--head", head_text(recorded), code=1)
    received = hospital.site.state / "received_head.json"
    received.write_text(json.dumps({"count": recorded.count, "mac": recorded.mac}))
    received.chmod(0o600)
    early = json.loads(old.splitlines()[0])
    assert "it is an older copy" in command(*renew, "--head", f"1:{early['mac']}", code=1)
    hospital.site.file.ledger.write_bytes(newest)
    command(*renew, "--head", head_text(recorded))
    assert sum(event.steps for event in hospital.ledger.events()) == 4 * EVENT.steps
    assert "the anchor was lost and made anew" in incidents(hospital.ledger.lines)[-1]
    hospital.anchor.write_text("edited")
    assert "anchor was edited" in command(*renew, "--head", head_text(recorded), code=1)


def test_a_ledger_cut_to_its_first_entry_gets_no_anchor_as_if_nothing_was_spent(hospital: Hospital) -> None:
    """No server need be asked for a ledger without a charge; whom it charged for lies beside it still."""
    whole = hospital.site.file.ledger.read_bytes()
    hospital.site.file.ledger.write_bytes(whole.splitlines(keepends=True)[0])
    hospital.anchor.unlink()
    renew = ("site", "renew-anchor", "--site", hospital.folder)
    said = command(*renew, code=1).replace("\n", " ")
    assert "knew patients whom it does not name" in said
    head = json.loads(whole.splitlines()[0])["mac"]
    assert "knew patients whom it does not name" in command(*renew, "--head", f"1:{head}", code=1).replace("\n", " ")
    assert not hospital.anchor.exists()


def test_a_torn_line_beside_a_lost_anchor_is_charged(hospital: Hospital) -> None:
    head = hospital.ledger.head
    with hospital.site.file.ledger.open("ab") as file:
        file.write(b'{"n":')
    hospital.anchor.unlink()
    command("site", "renew-anchor", "--site", hospital.folder, "--head", head_text(head))
    assert len(hospital.ledger.events()) == 3


def _repacked(package: Path, change: dict[str, bytes], without: str | None = None) -> Path:
    out = package.with_name("repacked.tar")
    out.unlink(missing_ok=True)
    with tarfile.open(package) as old, tarfile.open(out, "w") as new:
        held = {info.name: old.extractfile(info).read() for info in old.getmembers()}  # type: ignore[union-attr]
        end = {"complete.json": held.pop("complete.json")}
        held.pop(without or "", None)
        for name, data in (held | change | end).items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            new.addfile(info, io.BytesIO(data))
    return out


@pytest.mark.parametrize(
    "name", ["../evil", "/etc/evil", "ledger.jsonl.lock", "store/../../evil", "state/x", "a.anchor"]
)
def test_a_package_cannot_put_files_elsewhere(hospital: Hospital, name: str) -> None:
    package = _repacked(hospital.backup(), {name: b"x"})
    hospital.lose_the_disk()
    assert "none of a site's" in hospital.restore(package, code=1)
    assert not (hospital.home / "evil").exists()


@pytest.mark.parametrize("name", ["policy.json", "ledger.jsonl", "ledger.key"])
def test_a_package_that_lacks_a_file_is_refused(hospital: Hospital, name: str) -> None:
    """Without its policy a site would come back with the default one, without its ledger with an empty one."""
    package = _repacked(hospital.backup(), {}, without=name)
    hospital.lose_the_disk()
    assert "was cut off" in hospital.restore(package, code=1)
    assert not (hospital.folder / "site.json").exists()


def test_a_ledger_edited_in_the_package_is_refused(hospital: Hospital) -> None:
    package = hospital.backup()
    data = hospital.site.file.ledger.read_bytes()
    for changed in (data.replace(b'"steps":20', b'"steps":2', 1), data[:-40]):
        if hospital.folder.exists():
            hospital.lose_the_disk()
        assert "entry" in hospital.restore(_repacked(package, {"ledger.jsonl": changed}), code=1)


def test_a_package_that_was_cut_is_refused(hospital: Hospital) -> None:
    """Also where whole files are left: without its policy a site would come back with the default one."""
    package = hospital.backup()
    whole = package.read_bytes()
    with tarfile.open(package) as tar:
        starts = [info.offset for info in tar.getmembers()]
    assert len(starts) == 6
    for cut in (100, *starts[1:], *(start + 700 for start in starts[:-1])):
        package.write_bytes(whole[:cut])
        if hospital.folder.exists():
            hospital.lose_the_disk()
        hospital.restore(package, code=1)
        assert not (hospital.folder / "site.json").exists()
    package.write_bytes(whole)
    hospital.restore(package)


def test_a_package_is_for_the_owner_alone_and_never_overwritten(hospital: Hospital) -> None:
    package = hospital.backup()
    assert package.stat().st_mode & 0o777 == 0o600
    assert "is there already" in command("site", "backup", package, "--site", hospital.folder, code=1)
