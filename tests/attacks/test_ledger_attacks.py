"""Attacks on the ledger: edited, cut, reordered, rolled back, forked. Refused with the entry's number, or charged;
never taken with less spent."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from ledger_bench import DEARER, EVENT, KEY, ROUND, Bench, Kept, charge, steps

from fedscan.privacy.ledger import Head, Ledger, LedgerError
from fedscan.privacy.ledger_file import TORN_MARK
from fedscan.privacy.ledger_records import Reserved, Torn

MANY = settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def line_at(data: bytes, offset: int) -> int:
    return data[:offset].count(b"\n") + 1


def test_it_is_taken_as_it_was(bench: Bench, kept: Kept) -> None:
    assert bench.spent(kept.ledger, kept.anchor) == kept.steps == 4 * ROUND
    assert bench.path.read_bytes() == kept.ledger


def test_an_anchor_that_missed_the_last_entry_is_brought_up(bench: Bench, kept: Kept) -> None:
    assert bench.spent(kept.ledger, kept.anchor_before) == kept.steps
    assert bench.path.read_bytes() == kept.ledger
    assert bench.anchor.read_bytes() == kept.anchor


@MANY
@given(st.data())
def test_a_changed_byte_is_refused_by_its_entry(bench: Bench, kept: Kept, data: st.DataObject) -> None:
    at = data.draw(st.integers(0, len(kept.ledger) - 1))
    byte = data.draw(st.integers(0, 255).filter(lambda b: b != kept.ledger[at]))
    changed = kept.ledger[:at] + bytes([byte]) + kept.ledger[at + 1 :]
    with pytest.raises(LedgerError, match="Bring back the ledger as it was") as refused:
        bench.spent(changed, kept.anchor)
    assert refused.value.entry == line_at(kept.ledger, at)
    assert bench.path.read_bytes() == changed


def test_every_bit_of_a_line_counts(bench: Bench, kept: Kept) -> None:
    start = len(b"".join(kept.lines[:3]))
    for at in range(start, start + len(kept.lines[3])):
        changed = bytearray(kept.ledger)
        changed[at] ^= 1 << (at % 8)
        with pytest.raises(LedgerError, match=r"^entry 4: its keyed hash .*Bring back"):
            bench.spent(bytes(changed), kept.anchor)


@MANY
@given(st.data())
def test_a_dropped_line_is_refused_by_its_entry(bench: Bench, kept: Kept, data: st.DataObject) -> None:
    lines = kept.lines
    first = data.draw(st.integers(0, len(lines) - 1))
    last = data.draw(st.integers(first, len(lines) - 1))
    with pytest.raises(LedgerError, match="missing") as refused:
        bench.spent(b"".join(lines[:first] + lines[last + 1 :]), kept.anchor)
    assert refused.value.entry == first + 1


@MANY
@given(st.data())
def test_lines_in_another_order_are_refused(bench: Bench, kept: Kept, data: st.DataObject) -> None:
    lines = kept.lines
    other = data.draw(st.permutations(lines).filter(lambda p: p != lines))
    with pytest.raises(LedgerError) as refused:
        bench.spent(b"".join(other), kept.anchor)
    assert refused.value.entry == next(n for n, (a, b) in enumerate(zip(lines, other, strict=True), 1) if a != b)


@MANY
@given(st.data())
def test_a_repeated_line_is_refused(bench: Bench, kept: Kept, data: st.DataObject) -> None:
    lines = kept.lines
    which = data.draw(st.integers(0, len(lines) - 1))
    where = data.draw(st.integers(0, len(lines)))
    with pytest.raises(LedgerError):
        bench.spent(b"".join([*lines[:where], lines[which], *lines[where:]]), kept.anchor)


@MANY
@given(st.data())
def test_a_truncated_ledger_is_refused_by_the_first_entry_that_is_missing(
    bench: Bench, kept: Kept, data: st.DataObject
) -> None:
    at = data.draw(st.integers(0, len(kept.ledger) - 1))
    with pytest.raises(LedgerError) as refused:
        bench.spent(kept.ledger[:at], kept.anchor)
    assert refused.value.entry == line_at(kept.ledger, at)


@MANY
@given(st.data())
def test_inserted_bytes_are_refused_or_charged(bench: Bench, kept: Kept, data: st.DataObject) -> None:
    at = data.draw(st.one_of(st.integers(0, len(kept.ledger)), st.just(len(kept.ledger))))
    extra = data.draw(st.binary(min_size=1, max_size=200))
    changed = kept.ledger[:at] + extra + kept.ledger[at:]
    if at < len(kept.ledger) and changed.startswith(kept.ledger):
        return  # the same as behind the end
    if at < len(kept.ledger):
        with pytest.raises(LedgerError):
            bench.spent(changed, kept.anchor)
        return
    assert bench.spent(changed, kept.anchor) == kept.steps + ROUND
    assert bench.path.read_bytes().startswith(changed)
    assert steps(bench.open()) == kept.steps + ROUND


@MANY
@given(st.data())
def test_a_power_cut_in_the_last_line_is_charged_as_a_round(bench: Bench, kept: Kept, data: st.DataObject) -> None:
    """The anchor does not have the line yet, so its writing was cut: any of its bytes may be there, or be zero."""
    start = len(kept.ledger) - len(kept.lines[-1])
    line = bytearray(kept.lines[-1])
    for _ in range(data.draw(st.integers(0, 2))):
        first = data.draw(st.integers(0, len(line)))
        last = data.draw(st.integers(first, len(line)))
        line[first:last] = bytes(last - first)
    torn = bytes(line[: data.draw(st.integers(1, len(line)))])
    spent = bench.spent(kept.ledger[:start] + torn, kept.anchor_before)
    assert spent == kept.steps  # what was being reserved, or a round in its place
    ledger = bench.open()
    if torn != kept.lines[-1]:
        assert isinstance(ledger.lines[-1].record, Torn)
        assert bench.path.read_bytes().startswith(kept.ledger[:start] + torn + TORN_MARK)


@pytest.mark.parametrize("left", [1, 2, 80, -80, -2, -1])
def test_a_ledger_with_a_torn_line_goes_on(bench: Bench, kept: Kept, left: int) -> None:
    """Also where only the line's own break is missing."""
    start = len(kept.ledger) - len(kept.lines[-1])
    assert bench.spent(kept.ledger[:start] + kept.lines[-1][:left], kept.anchor_before) == kept.steps
    bench.open().reserve(charge(3))
    ledger = bench.open()
    assert [type(line.record) for line in ledger.lines[-2:]] == [Torn, Reserved]
    assert steps(ledger) == kept.steps + ROUND


def test_a_line_that_was_never_begun_was_never_paid(bench: Bench, kept: Kept) -> None:
    start = len(kept.ledger) - len(kept.lines[-1])
    assert bench.spent(kept.ledger[:start], kept.anchor_before) == kept.steps - ROUND


def test_a_torn_line_is_charged_to_the_job_whose_round_it_was(tmp_path: Path) -> None:
    """Of two jobs at once: the last one announced, since each round is announced before it is reserved."""
    bench = Bench(tmp_path)
    ledger = Ledger.create(bench.path, KEY, bench.anchor)
    ledger.reserve(charge(0, EVENT))
    for event, run_id in ((DEARER, "b" * 32), (EVENT, "a" * 32), (DEARER, "b" * 32)):
        before = ledger.events()
        ledger.open_job(run_id, "1" * 64, event)
        size, anchor = bench.path.stat().st_size, bench.anchor.read_bytes()
        ledger.reserve(charge(1, event, run_id))
        whole = bench.path.read_bytes()
        bench.put(whole[: size + 100], anchor)
        ledger = bench.open()
        assert ledger.events() == [*before, event]


def test_a_repair_that_was_cut_too_is_repaired_again(bench: Bench, kept: Kept) -> None:
    start = len(kept.ledger) - len(kept.lines[-1])
    torn = kept.ledger[: start + 50]
    bench.put(torn, kept.anchor_before)
    bench.open()
    repaired = bench.path.read_bytes()
    for cut in (len(torn) + 1, len(torn) + len(TORN_MARK), len(torn) + 300, len(repaired) - 2, len(repaired) - 1):
        assert bench.spent(repaired[:cut], kept.anchor_before) == kept.steps
        again = bench.path.read_bytes()
        assert again.startswith(repaired[:cut] + TORN_MARK)
        assert bench.spent(again[:-1], kept.anchor_before) == kept.steps
        assert steps(bench.open()) == kept.steps


@pytest.fixture(scope="module")
def repaired(bench: Bench, kept: Kept) -> tuple[int, bytes, bytes]:
    """Where the torn bytes begin, and a ledger that went on behind them, with its anchor."""
    start = len(kept.ledger) - len(kept.lines[-1])
    bench.put(kept.ledger[: start + 50], kept.anchor_before)
    bench.open().reserve(charge(4))
    return start, bench.path.read_bytes(), bench.anchor.read_bytes()


@MANY
@given(st.data())
def test_a_repaired_ledger_is_as_closed_as_any(
    bench: Bench, repaired: tuple[int, bytes, bytes], data: st.DataObject
) -> None:
    """The torn bytes and the entry that vouches for them."""
    start, whole, anchor = repaired
    at = data.draw(st.integers(start, len(whole) - 1))
    last = data.draw(st.integers(at + 1, min(len(whole), at + 60)))
    new = data.draw(st.binary(max_size=60).filter(lambda b: b != whole[at:last]))
    changed = whole[:at] + new + whole[last:]
    if changed.startswith(whole) or changed == whole:
        return
    with pytest.raises(LedgerError):
        bench.spent(changed, anchor)


def test_torn_bytes_stay_in_the_file(bench: Bench, kept: Kept, repaired: tuple[int, bytes, bytes]) -> None:
    """Without them, or behind their mark alone, the entry that vouches for them is refused."""
    start, whole, anchor = repaired
    torn = kept.lines[-1][:50] + TORN_MARK
    assert whole[start:].startswith(torn)
    for left in (b"", TORN_MARK, b"\n", torn.removesuffix(TORN_MARK) + b"\n"):
        with pytest.raises(LedgerError, match=f"^entry {len(kept.lines)}: "):
            bench.spent(whole[:start] + left + whole[start + len(torn) :], anchor)


@pytest.mark.parametrize("extra", [b"x" * 70_000, b"{}\n" * 30_000])
def test_a_tail_that_no_power_cut_leaves_is_refused(bench: Bench, kept: Kept, extra: bytes) -> None:
    with pytest.raises(LedgerError, match="are no entries"):
        bench.spent(kept.ledger + extra, kept.anchor)


def test_an_edit_is_no_power_cut_even_where_the_anchor_was_rolled_back(bench: Bench, kept: Kept) -> None:
    """With an old anchor an edited line could pass for a torn one; whole entries behind it tell that it is none."""
    lines = kept.lines
    cut = b"".join(lines[:2]) + lines[2][:40] + b"\n" + b"".join(lines[3:])
    with pytest.raises(LedgerError, match=r"^entry 3: .*whole entries follow"):
        bench.spent(cut, bench.anchor_at(kept, 2))


def test_an_old_anchor_alone_wins_nothing(bench: Bench, kept: Kept) -> None:
    for count in range(1, len(kept.lines)):
        assert bench.spent(kept.ledger, bench.anchor_at(kept, count)) == kept.steps


@MANY
@given(st.data())
def test_a_changed_anchor_is_refused(bench: Bench, kept: Kept, data: st.DataObject) -> None:
    at = data.draw(st.integers(0, len(kept.anchor) - 1))
    last = data.draw(st.integers(at + 1, min(len(kept.anchor), at + 40)))
    new = data.draw(st.binary(max_size=40).filter(lambda b: b != kept.anchor[at:last]))
    with pytest.raises(LedgerError, match="anchor"):
        bench.spent(kept.ledger, kept.anchor[:at] + new + kept.anchor[last:])


def test_a_missing_anchor_is_refused(bench: Bench, kept: Kept) -> None:
    bench.put(kept.ledger, kept.anchor)
    bench.anchor.unlink()
    with pytest.raises(LedgerError, match="Without its anchor"):
        bench.open()


def test_the_anchor_of_another_ledger_with_the_same_key_is_refused(bench: Bench, kept: Kept, tmp_path: Path) -> None:
    other = Bench(tmp_path)
    Ledger.create(other.path, KEY, other.anchor)
    with pytest.raises(LedgerError, match="belongs to another ledger"):
        bench.spent(kept.ledger, other.anchor.read_bytes())
    with pytest.raises(LedgerError, match="belongs to another ledger"):
        bench.spent(other.path.read_bytes(), kept.anchor)


def test_the_anchor_of_a_copy_that_went_on_by_itself_is_refused(bench: Bench, kept: Kept, tmp_path: Path) -> None:
    """The copy spent more than the original, so that no counter is behind another."""
    other = Bench(tmp_path)
    other.put(kept.ledger, kept.anchor)
    for number in range(3):
        other.open().reserve(charge(number))
    bench.put(kept.ledger, kept.anchor)
    bench.open().reserve(charge(4))
    count = bench.open().head.count
    with pytest.raises(LedgerError, match=rf"^entry {count}: it is another than the anchor knows"):
        bench.spent(other.path.read_bytes(), bench.anchor.read_bytes())


def test_a_line_of_another_ledger_with_the_same_key_does_not_fit(bench: Bench, kept: Kept, tmp_path: Path) -> None:
    other = Bench(tmp_path)
    ledger = Ledger.create(other.path, KEY, other.anchor)
    ledger.reserve(charge(0, EVENT.model_copy(update={"steps": 1})))
    foreign = other.path.read_bytes().splitlines(keepends=True)
    for number in (1, 2, 3):
        lines = [*kept.lines[: number - 1], foreign[number - 1], *kept.lines[number:]]
        with pytest.raises(LedgerError):
            bench.spent(b"".join(lines), kept.anchor)


def test_the_anchors_own_line_is_no_entry_nor_an_entry_an_anchor(bench: Bench, kept: Kept) -> None:
    with pytest.raises(LedgerError, match="anchor was edited"):
        bench.spent(kept.ledger, kept.lines[-1])
    assert bench.spent(kept.ledger + kept.anchor, kept.anchor) == kept.steps + ROUND  # as any torn line


def test_ledger_and_anchor_put_back_together_are_told_by_the_servers_head(bench: Bench, kept: Kept) -> None:
    """A snapshot of both volumes fits in itself. The server sent back the last head that it recorded: it is missing."""
    bench.put(kept.ledger, kept.anchor)
    recorded = bench.open().head
    for count in range(1, len(kept.lines)):
        bench.put(b"".join(kept.lines[:count]), bench.anchor_at(kept, count))
        old = bench.open()
        assert not old.contains(recorded)
        while old.head.count < recorded.count + 2:
            old.reserve(charge(9))
        assert not old.contains(recorded)


def test_of_two_copies_that_both_go_on_each_lacks_the_others_heads(bench: Bench, kept: Kept, tmp_path: Path) -> None:
    bench.put(kept.ledger, kept.anchor)
    shutil.copytree(bench.path.parent, tmp_path, dirs_exist_ok=True)
    one, two = bench.open(), Bench(tmp_path).open()
    assert two.contains(one.head)
    first, second = one.reserve(charge(4)), two.reserve(charge(4))
    assert not two.contains(first.head)
    assert not one.contains(second.head)


@pytest.mark.parametrize("head", [Head(0, "0" * 64), Head(-1, "0" * 64), Head(10**9, "0" * 64), Head(2, "0" * 64)])
def test_a_head_that_never_was_is_not_contained(bench: Bench, kept: Kept, head: Head) -> None:
    bench.put(kept.ledger, kept.anchor)
    assert not bench.open().contains(head)
