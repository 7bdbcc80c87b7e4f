"""What a watcher is told: each record once, also those that came after the job's last answer."""

from __future__ import annotations

from pathlib import Path

from fedscan.federation import records
from fedscan.federation.local_run import Progress
from fedscan.federation.records import Event, RoundRecord, SiteEntry
from fedscan.federation.remote_job import Seen
from fedscan.federation.remote_watch import Told
from fedscan.plan import Plan

PLAN = Plan.model_validate({"model": {"preset": "tiny"}, "rounds": 3})


def record(event: Event, number: int) -> RoundRecord:
    answers = {"a": SiteEntry(answered=True, weight=1.0), "b": SiteEntry(answered=False, refused="no answer in time")}
    return RoundRecord(
        event=event,
        time="2026-01-01T00:00:00+00:00",
        run_id="a" * 32,
        plan_digest=PLAN.digest,
        round=number,
        asked=("a", "b"),
        sites=answers if event == "round" else {},
        loss=0.5 if event == "round" else None,
        seconds=120.0 if event == "round" else None,
    )


def test_each_record_is_told_once_and_kept_in_the_copy(tmp_path: Path) -> None:
    said: list[Progress] = []
    told = Told(said.append, tmp_path / "rounds.jsonl", PLAN)
    (tmp_path / "rounds.jsonl").write_text("of an earlier watcher\n")
    every = [record("started", 0), record("round", 0), record("round", 1), record("round", 2), record("finished", 3)]
    hear = told.listener().records
    for new in (every[:2], every[2:3]):
        told.seen.records += new
        hear(told.seen, new)
    assert list(records.read(tmp_path / "rounds.jsonl")) == every[:3]
    fetched = tmp_path / "fetched.jsonl"
    for one in every:
        records.append(fetched, one)
    told.rest(fetched)
    told.rest(fetched)
    assert [progress.record for progress in said] == every
    assert said[1].text == ("round 1/3: 1 of 2 sites (b: no answer in time), loss 0.5000; 120 s; about 4 min left")
    assert said[3].text.endswith("120 s")
    assert said[4].text == "all rounds done"


def test_a_watcher_without_a_run_keeps_nothing(tmp_path: Path) -> None:
    said: list[Progress] = []
    told = Told(said.append)
    told.listener().records(Seen(PLAN, [record("started", 0)]), [record("started", 0)])
    assert [progress.text for progress in said] == ["the server has the model"]
    assert list(tmp_path.iterdir()) == []
