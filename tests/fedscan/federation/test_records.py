"""rounds.jsonl and wall.jsonl survive a torn line and say each round once."""

from __future__ import annotations

import os
from pathlib import Path

from fedscan.federation import records, wall
from fedscan.federation.records import RoundRecord, SiteEntry


def record(number: int, loss: float) -> RoundRecord:
    return RoundRecord(
        event="round",
        time="2030-01-01T00:00:00+00:00",
        run_id="r",
        plan_digest="p",
        round=number,
        asked=("a",),
        sites={"a": SiteEntry(answered=True, loss=loss)},
        loss=loss,
    )


def test_lines_come_back_as_they_were_written(tmp_path: Path) -> None:
    path = tmp_path / "rounds.jsonl"
    for number in range(3):
        records.append(path, record(number, 0.5))
    assert [r.round for r in records.read(path)] == [0, 1, 2]
    assert next(iter(records.read(path))) == record(0, 0.5)


def test_a_torn_last_line_is_passed_over_and_closed_off(tmp_path: Path) -> None:
    path = tmp_path / "rounds.jsonl"
    records.append(path, record(0, 0.5))
    with path.open("a") as file:
        file.write('{"event":"round","time":"2030')
    assert [r.round for r in records.read(path)] == [0]
    records.append(path, record(1, 0.4))
    assert [r.round for r in records.read(path)] == [0, 1]


def test_a_line_that_is_no_record_is_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "rounds.jsonl"
    records.append(path, record(0, 0.5))
    with path.open("ab") as file:
        file.write(b'{"event":"won"}\n\xff\xfe\n' + b"[" * 5000 + b"\n7\n")
    records.append(path, record(1, 0.4))
    assert [r.round for r in records.read(path)] == [0, 1]


def test_a_round_done_again_counts_once_with_its_last_record(tmp_path: Path) -> None:
    path = tmp_path / "rounds.jsonl"
    for number, loss in ((0, 0.5), (1, 0.4), (1, 0.3), (2, 0.2)):
        records.append(path, record(number, loss))
    assert [(r.round, r.loss) for r in records.effective_rounds(path)] == [(0, 0.5), (1, 0.3), (2, 0.2)]


def test_the_wall_counts_messages_and_tensors_and_is_the_sites_alone(tmp_path: Path) -> None:
    path = tmp_path / "wall.jsonl"
    log = wall.WallLog(path)
    log.tensors("out", 3, {"b": (2, 2), "a": (1,)}, 20)
    log.message("aux", "x", 10)
    log.message("aux", "x", 5)
    log.flush_messages()
    log.flush_messages()
    tensors, messages = wall.read(path)
    assert (tensors["direction"], tensors["round"], tensors["bytes"]) == ("out", 3, 20)
    assert tensors["tensors"] == {"a": [1], "b": [2, 2]}
    assert messages["channels"] == {"aux/x": {"messages": 2, "bytes": 15}}
    assert os.stat(path).st_mode & 0o777 == 0o600
