"""What a private run's model file tells of its price."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from fedscan.federation import records, run_privacy
from fedscan.federation.run_start import provenance
from fedscan.federation.server_job import ServerJob
from fedscan.plan import Plan, Submission
from fedscan.privacy.accounting import epsilon
from fedscan.privacy.event import round_event
from fedscan.training.checkpoints import Checkpoint


def line(
    event: records.Event, number: int, asked: tuple[str, ...] = (), answered: tuple[str, ...] = ()
) -> records.RoundRecord:
    sites = {site: records.SiteEntry(answered=True, weight=1.0) for site in answered}
    return records.RoundRecord(
        event=event, time="", run_id="a" * 32, plan_digest="", round=number, asked=asked, sites=sites
    )


def test_epsilon_is_that_of_every_time_a_site_was_asked(private_plan: Callable[..., Plan], tmp_path: Path) -> None:
    plan = private_plan()
    job = ServerJob(plan, Submission.new(), tmp_path, tmp_path, ("reproducible noise: demo only",))
    for record in (
        line("asked", 0, ("hosp-a",)),
        line("repeat", 0, ("hosp-a",)),
        line("asked", 0, ("hosp-a",)),
        line("round", 0, ("hosp-a",), ("hosp-a",)),
        line("asked", 1, ("hosp-a",)),  # the server died here
        line("started", 1),
        line("asked", 1, ("hosp-a",)),
        line("round", 1, ("hosp-a",), ("hosp-a",)),
    ):
        records.append(job.rounds_file, record)
    told = provenance(job, Checkpoint(2, {}, {}, 2))
    wanted = epsilon([round_event(plan, "hosp-a")] * 4, 1e-3)
    assert told["privacy_spent"]["sites"] == {"hosp-a": {"rounds": 4, "epsilon": pytest.approx(wanted)}}
    assert told["sites"] == {"hosp-a": {"rounds": 2}}
    assert (told["unit"], told["values"], told["field_mm"]) == ("patient", "hu", None)
    assert f"{wanted:.4g}" in told["privacy"]
    assert "reproducible noise: demo only" in told["privacy"]
    assert told["stamps"] == ["reproducible noise: demo only"]


def test_noise_that_has_no_epsilon_is_told_as_none(private_plan: Callable[..., Plan]) -> None:
    spent = run_privacy.spent(private_plan(noise_multiplier=1e-4), {"hosp-a": 1, "hosp-b": 0})
    assert list(spent["sites"]) == ["hosp-a"]
    entry = spent["sites"]["hosp-a"]
    assert entry["epsilon"] is None or entry["epsilon"] > 1e4
