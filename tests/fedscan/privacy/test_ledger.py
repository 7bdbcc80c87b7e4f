"""The ledger as its callers see it: reserve, answers, spend, patients."""

from __future__ import annotations

import os
import secrets
import stat
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from filelock import FileLock

from fedscan.privacy import ledger_disk
from fedscan.privacy.event import Event
from fedscan.privacy.ledger import Charge, Head, Ledger, LedgerError
from fedscan.privacy.ledger_records import JobOpened, Torn

KEY = bytes(range(32))
RUN, OTHER_RUN = "a" * 32, "b" * 32
PLAN, MODEL, ANSWER = "1" * 64, "2" * 64, "3" * 64
EVENT = Event(noise_multiplier=2.0, sample_rate=0.05, steps=20, unit="patient")
DEARER = Event(noise_multiplier=1.0, sample_rate=0.1, steps=50, unit="patient")
PATIENTS = frozenset({"p1", "p2", "p3"})


def charge(round_number: int = 0, run_id: str = RUN, event: Event = EVENT, population=PATIENTS) -> Charge:
    return Charge(
        run_id=run_id,
        plan_digest=PLAN,
        round_number=round_number,
        model_digest=MODEL,
        event=event,
        population=population,
    )


@pytest.fixture
def place(tmp_path: Path) -> tuple[Path, bytes, Path]:
    (tmp_path / "site").mkdir()
    (tmp_path / "other").mkdir()
    return tmp_path / "site" / "ledger.jsonl", KEY, tmp_path / "other" / "anchor"


def test_a_new_ledger_has_spent_nothing_and_has_a_head(place) -> None:
    ledger = Ledger.create(*place)
    assert ledger.events() == []
    assert ledger.head.count == 1
    assert len(ledger.head.mac) == 64
    assert ledger.contains(ledger.head)
    assert dict(ledger.populations) == {}
    assert ledger.removed == frozenset()
    assert ledger.epsilon(1e-5) == 0.0


def test_a_reserve_is_there_for_everybody_who_opens_the_ledger_later(place) -> None:
    entry = Ledger.create(*place).reserve(charge(4))
    again = Ledger.open(*place)
    assert again.events() == [EVENT]
    assert again.head == entry.head == Head(entry.number, entry.head.mac)
    paid = again.paid_for(entry.number)
    assert paid is not None
    assert paid.answer_sha256 is None
    assert (paid.charge.run_id, paid.charge.plan_digest, paid.charge.round_number) == (RUN, PLAN, 4)
    assert (paid.charge.model_digest, paid.charge.event) == (MODEL, EVENT)
    assert again.populations[paid.charge.population] == PATIENTS


def test_the_same_round_is_charged_each_time(place) -> None:
    ledger = Ledger.create(*place)
    first, second = ledger.reserve(charge()), ledger.reserve(charge())
    assert second.number == first.number + 1
    assert ledger.events() == [EVENT, EVENT]


def test_files_are_for_the_owner_alone(place) -> None:
    path, _, anchor = place
    Ledger.create(*place).reserve(charge())
    Ledger.open(*place).epsilon(1e-5)
    files = [p for p in (*path.parent.rglob("*"), anchor) if p.is_file()]
    assert len(files) == 5  # ledger, lock, population, cache, anchor
    assert {stat.S_IMODE(p.stat().st_mode) for p in files} == {0o600}
    assert stat.S_IMODE((path.parent / "ledger.jsonl.populations").stat().st_mode) == 0o700


def test_the_ledger_holds_fingerprints_and_no_pseudonym(place) -> None:
    path, _, anchor = place
    ledger = Ledger.create(*place)
    ledger.reserve(charge(population=frozenset({"0123456789abcdef" * 2})))
    for file in (path, anchor):
        assert b"0123456789abcdef0123" not in file.read_bytes()


def test_budgets_add_over_runs_and_stores(place) -> None:
    ledger = Ledger.create(*place)
    ledger.reserve(charge())
    ledger.reserve(charge(run_id=OTHER_RUN, event=DEARER, population=PATIENTS | {"p4"}))
    again = Ledger.open(*place)
    assert again.events() == [EVENT, DEARER]
    assert set().union(*again.populations.values()) == PATIENTS | {"p4"}
    assert len(again.populations) == 2


def test_a_job_is_announced_before_its_first_round_and_when_it_is_another(place) -> None:
    ledger = Ledger.create(*place)
    for run_id in (RUN, RUN, OTHER_RUN, RUN):
        ledger.open_job(run_id, PLAN, EVENT)
        ledger.reserve(charge(run_id=run_id))
    jobs = [line.record.job.run_id for line in ledger.lines if isinstance(line.record, JobOpened)]
    assert jobs == [RUN, OTHER_RUN, RUN]


def test_one_answer_for_one_entry_once(place) -> None:
    ledger = Ledger.create(*place)
    entry = ledger.reserve(charge())
    ledger.note_answer(entry.number, ANSWER)
    count = ledger.head.count
    ledger.note_answer(entry.number, ANSWER)  # byte for byte the same: noted already
    assert ledger.head.count == count
    with pytest.raises(LedgerError, match=f"entry {entry.number}: another answer"):
        ledger.note_answer(entry.number, "4" * 64)
    again = Ledger.open(*place).paid_for(entry.number)
    assert again is not None
    assert again.answer_sha256 == ANSWER


@pytest.mark.parametrize("number", [0, 1, 2, 99])
def test_what_paid_for_nothing_has_no_answer(place, number: int) -> None:
    ledger = Ledger.create(*place)
    ledger.open_job(RUN, PLAN, EVENT)
    assert ledger.paid_for(number) is None
    with pytest.raises(LedgerError, match="paid for no round"):
        ledger.note_answer(number, ANSWER)


@pytest.mark.parametrize("field", ["run_id", "plan_digest", "model_digest"])
def test_ids_of_another_form_are_refused_before_anything_is_spent(place, field: str) -> None:
    ledger = Ledger.create(*place)
    with pytest.raises(ValueError):
        ledger.reserve(Charge(**{**charge().__dict__, field: "../../x"}))
    assert Ledger.open(*place).events() == []


def test_an_instance_sees_what_another_wrote_once_it_has_the_lock(place) -> None:
    one = Ledger.create(*place)
    two = Ledger.open(*place)
    one.reserve(charge())
    with two.lock() as locked:
        assert locked.events() == [EVENT]
        two.reserve(charge(1))
    assert len(Ledger.open(*place).events()) == 2


def test_the_lock_keeps_another_out(place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ledger_disk, "LOCK_TIMEOUT_S", 0.2)
    ledger = Ledger.create(*place)
    seen: list[str] = []

    def other() -> None:
        try:
            Ledger.open(*place)
        except LedgerError as error:
            seen.append(str(error))

    with ledger.lock():
        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
    assert len(seen) == 1
    assert "another process holds it" in seen[0]
    other()
    assert len(seen) == 1


_WRITER = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from test_ledger import *
ledger = Ledger.open(Path(sys.argv[2]), KEY, Path(sys.argv[3]))
for n in range(15):
    entry = ledger.reserve(charge(n, run_id=sys.argv[4] * 32))
    print(entry.number, entry.head.mac, flush=True)
"""


def test_processes_write_one_chain_together(place) -> None:
    path, _, anchor = place
    Ledger.create(*place)
    here = str(Path(__file__).parent)
    writers = [
        subprocess.Popen(
            [sys.executable, "-c", _WRITER, here, str(path), str(anchor), run], stdout=subprocess.PIPE, text=True
        )
        for run in "abc"
    ]
    said = [line.split() for writer in writers for line in writer.communicate()[0].splitlines()]
    assert [writer.returncode for writer in writers] == [0, 0, 0]
    ledger = Ledger.open(*place)
    assert len(said) == len(ledger.events()) == 45
    assert len({number for number, _ in said}) == 45
    assert all(ledger.contains(Head(int(number), mac)) for number, mac in said)


@pytest.mark.parametrize("first", ["image", "patient"])
def test_units_do_not_mix(place, first: str) -> None:
    """An image's bound says nothing of a patient with unknown many images, nor a patient's of a replaced image."""
    second = {"image": "patient", "patient": "image"}[first]
    ledger = Ledger.create(*place)
    ledger.reserve(charge(event=EVENT.model_copy(update={"unit": first})))
    with pytest.raises(LedgerError, match=f"its unit is the {first}, this round's is the {second}"):
        ledger.reserve(charge(event=EVENT.model_copy(update={"unit": second})))
    with pytest.raises(LedgerError, match="its unit"):
        ledger.open_job(OTHER_RUN, PLAN, EVENT.model_copy(update={"unit": second}))
    assert len(Ledger.open(*place).events()) == 1


def test_removed_patients_stay_charged(place) -> None:
    ledger = Ledger.create(*place)
    ledger.reserve(charge())
    ledger.record_removal(PATIENTS, PATIENTS - {"p2"})
    ledger.reserve(charge(1, population=PATIENTS - {"p2"}))
    ledger.record_removal(PATIENTS - {"p2"}, {"p3"})
    again = Ledger.open(*place)
    assert again.removed == {"p1", "p2"}
    assert again.events() == [EVENT, EVENT]
    assert set().union(*again.populations.values()) == PATIENTS
    with pytest.raises(LedgerError, match="cannot bring patients in"):
        again.record_removal({"p3"}, {"p3", "p5"})


def test_a_population_that_was_edited_or_lost_is_noticed(place) -> None:
    path, _, _ = place
    entry = Ledger.create(*place).reserve(charge())
    folder = path.parent / "ledger.jsonl.populations"
    (file,) = folder.iterdir()
    kept = file.read_bytes()
    file.write_bytes(kept.replace(b'"p1",', b""))
    with pytest.raises(LedgerError, match=f"entry {entry.number}: whom it concerns was edited"):
        list(Ledger.open(*place).populations.values())
    file.unlink()
    with pytest.raises(LedgerError, match=f"entry {entry.number}: whom it concerns is not known"):
        list(Ledger.open(*place).populations.values())
    file.write_bytes(kept)
    file.chmod(0o600)
    assert list(Ledger.open(*place).populations.values()) == [PATIENTS]


def test_create_never_begins_a_new_budget_over_an_old_ledger(place) -> None:
    path, _, anchor = place
    Ledger.create(*place).reserve(charge())
    for left in (path, anchor, path.parent / "ledger.jsonl.populations"):
        with pytest.raises(LedgerError, match="what was spent stays spent"):
            Ledger.create(*place)
        if left.is_file():
            left.unlink()
    with pytest.raises(LedgerError, match="what was spent stays spent"):  # only the patients are left
        Ledger.create(*place)


def test_of_two_who_create_at_once_the_second_does_not_begin_anew(place, tmp_path: Path) -> None:
    path, key, anchor = place
    (tmp_path / "first").mkdir()
    Ledger.create(tmp_path / "first" / "ledger.jsonl", key, tmp_path / "first" / "anchor").reserve(charge())
    said: list[str] = []

    def second() -> None:
        try:
            Ledger.create(*place)
        except LedgerError as error:
            said.append(str(error))

    waiting = threading.Thread(target=second)
    with FileLock(ledger_disk.beside(path, "lock"), mode=0o600):
        waiting.start()
        time.sleep(0.3)
        os.rename(tmp_path / "first" / "anchor", anchor)
        os.rename(tmp_path / "first" / "ledger.jsonl.populations", ledger_disk.beside(path, "populations"))
        os.rename(tmp_path / "first" / "ledger.jsonl", path)
    waiting.join()
    assert len(said) == 1
    assert "what was spent stays spent" in said[0]
    assert Ledger.open(*place).events() == [EVENT]


def test_create_is_refused_where_the_anchor_alone_is_left(place) -> None:
    path, _, _ = place
    Ledger.create(*place).reserve(charge())
    for file in sorted(path.parent.rglob("*"), reverse=True):
        file.rmdir() if file.is_dir() else file.unlink()
    with pytest.raises(LedgerError, match="the anchor of an earlier one"):
        Ledger.create(*place)


def test_a_creation_that_was_cut_can_be_done_again(place) -> None:
    """The anchor is written first: alone, at entry 1, it says that nothing was ever spent."""
    path, _, _ = place
    Ledger.create(*place)
    path.unlink()
    assert Ledger.create(*place).events() == []


@pytest.mark.parametrize("mode", [0o644, 0o620, 0o640])
def test_a_ledger_open_to_others_is_refused(place, mode: int) -> None:
    path, _, _ = place
    Ledger.create(*place)
    path.chmod(mode)
    with pytest.raises(LedgerError, match="mode 0600"):
        Ledger.open(*place)


def test_a_ledger_that_is_not_there_is_refused(place) -> None:
    with pytest.raises(LedgerError, match="cannot be opened"):
        Ledger.open(*place)
    place[0].mkdir()
    with pytest.raises(LedgerError, match="cannot be opened"):
        Ledger.open(*place)


def test_another_key_opens_nothing(place) -> None:
    path, _, anchor = place
    Ledger.create(*place)
    with pytest.raises(LedgerError, match="another key"):
        Ledger.open(path, secrets.token_bytes(32), anchor)
    with pytest.raises(ValueError, match="32 bytes"):
        Ledger.open(path, b"short", anchor)


def test_an_anchor_behind_a_link_stays_behind_it(place, tmp_path: Path) -> None:
    """A link to another volume must not be replaced by a file on this one."""
    path, key, anchor = place
    link = tmp_path / "site" / "anchor-link"
    link.symlink_to(anchor)
    Ledger.create(path, key, link).reserve(charge())
    assert link.is_symlink()
    assert Ledger.open(path, key, anchor).events() == [EVENT]


def test_a_full_disk_trains_nothing_and_the_ledger_goes_on(place) -> None:
    """The limit on a file's size cuts the line as a full disk would. Whoever reserved learns that it failed."""
    path, _, anchor = place
    Ledger.create(*place).reserve(charge())
    size = path.stat().st_size
    code = _WRITER.replace(
        "ledger = ", f"import resource; resource.setrlimit(resource.RLIMIT_FSIZE, ({size + 100},) * 2)\nledger = "
    )
    code = "import signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n" + code
    here = str(Path(__file__).parent)
    done = subprocess.run(
        [sys.executable, "-c", code, here, str(path), str(anchor), "a"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert done.stdout == ""
    assert "disk full" in done.stderr or "File too large" in done.stderr
    assert path.stat().st_size == size + 100
    again = Ledger.open(*place)
    assert isinstance(again.lines[-1].record, Torn)
    assert again.events() == [EVENT, EVENT]
    again.reserve(charge(1))
    assert len(Ledger.open(*place).events()) == 3
    assert os.stat(path).st_size > size + 100


def test_the_line_is_on_the_disk_before_the_anchor_and_both_before_the_reserve_returns(
    place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A power cut may come between any two of these; an anchor ahead of its ledger would refuse the site for ever."""
    path, _, anchor = place
    ledger = Ledger.create(*place)
    ledger.reserve(charge())
    names = {os.stat(p).st_ino: name for p, name in ((path, "ledger"), (anchor.parent, "anchor's folder"))}
    seen: list[str] = []

    def spy(function: str):
        real = getattr(os, function)

        def spied(file, *rest):
            inode = os.fstat(file).st_ino if isinstance(file, int) else 0
            seen.append(f"{function} {names.get(inode, 'anchor')}")
            return real(file, *rest)

        return spied

    for function in ("write", "fsync", "replace"):
        monkeypatch.setattr(os, function, spy(function))
    ledger.reserve(charge(1))
    assert seen == ["write ledger", "fsync ledger", "fsync anchor", "replace anchor", "fsync anchor's folder"]


def test_ten_thousand_entries_open_in_well_under_a_second(place) -> None:
    path, key, anchor = place
    ledger = Ledger.create(*place)
    ledger.reserve(charge())
    with ledger.lock():
        chain, stamp, paid = ledger.disk.chain, ledger.disk.stamp, ledger.lines[-1].record
        more = b"".join(chain.append(paid.model_copy(update=stamp())) for _ in range(10_000))
    with path.open("ab") as file:
        file.write(more)
    started = time.process_time()
    again = Ledger.open(path, key, anchor)
    assert time.process_time() - started < 1.0
    assert len(again.events()) == 10_001
