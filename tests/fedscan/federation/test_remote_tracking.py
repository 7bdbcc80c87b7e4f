"""Curves come from rounds.jsonl alone, and TensorBoard's own reader finds them."""

from __future__ import annotations

import shutil
import stat
from collections.abc import Callable
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from fedscan.federation import job_folder, records, run_lines, run_privacy, tracking
from fedscan.federation.records import RoundRecord
from fedscan.federation.tracking import TrackingError

Make = Callable[..., Path]


@pytest.fixture
def make_run(repository: Path, tmp_path: Path) -> Make:
    """A run's folder with these events of rounds."""

    def make(template: str, *events: tuple[str, int], patients: dict[str, int] | None = None) -> Path:
        run = tmp_path / "RUN"
        plan = job_folder.new(
            repository / "jobs" / template, run / "job", sites=() if patients else ("a", "b"), patients=patients
        )
        for second, (event, number) in enumerate(events):
            entries = {
                "a": {"answered": True, "loss": 1.0 / (number + 1), "weight": 1.0, "update_norm": 2.0, "seconds": 3.0},
                "b": {"answered": False, "refused": "no answer in time"},
            }
            told = {"sites": entries, "loss": 1.0 / (number + 1), "seconds": 5.0} if event == "round" else {}
            record = {
                "event": event,
                "time": f"2026-01-01T00:00:{second:02d}+00:00",
                "run_id": "a" * 32,
                "plan_digest": plan.digest,
                "round": number,
                "asked": ["a", "b"],
            }
            records.append(run / "rounds.jsonl", RoundRecord.model_validate(record | told))
        return run

    return make


def curve(folder: Path, who: str, tag: str) -> list[tuple[int, float]]:
    read = EventAccumulator(str(folder / who))
    read.Reload()
    return [(event.step, round(event.value, 4)) for event in read.Scalars(tag)]


def test_tensorboard_shows_every_site_and_all_together(make_run: Make) -> None:
    run = make_run("ct_fedavg", ("started", 0), ("round", 0), ("repeat", 1), ("round", 1))
    folder = tracking.tensorboard(run)
    assert sorted(path.name for path in folder.iterdir()) == ["a", "b", "global"]
    assert curve(folder, "global", "loss") == [(1, 1.0), (2, 0.5)]
    assert curve(folder, "global", "tries") == [(1, 1.0), (2, 2.0)]
    assert curve(folder, "a", "update_norm") == [(1, 2.0), (2, 2.0)]
    assert curve(folder, "b", "answered") == [(1, 0.0), (2, 0.0)]
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700


def test_drawn_again_it_replaces_the_old_and_a_redone_round_counts_once(make_run: Make) -> None:
    run = make_run("ct_fedavg", ("round", 0), ("round", 0), ("round", 1))
    tracking.tensorboard(run)
    folder = tracking.tensorboard(run)
    assert curve(folder, "global", "loss") == [(1, 1.0), (2, 0.5)]
    assert sorted(path.name for path in run.iterdir()) == ["job", "rounds.jsonl", "tensorboard"]


def test_epsilon_grows_with_every_time_a_site_was_asked(make_run: Make) -> None:
    events = [("asked", 0), ("round", 0), ("asked", 1), ("asked", 1), ("round", 1)]
    run = make_run("ct_fedavg_dp", *events, patients={"a": 500, "b": 300})
    plan = job_folder.read_plan(run / "job")
    shown = curve(tracking.tensorboard(run), "a", "epsilon")
    wanted = [run_privacy.spent(plan, {"a": times})["sites"]["a"]["epsilon"] for times in (1, 3)]
    assert shown == [(1, round(wanted[0], 4)), (2, round(wanted[1], 4))]
    line = run_lines.outlook(list(records.read(run / "rounds.jsonl")), plan)
    assert line.startswith("5 s; about 2 min left; epsilon")
    assert f"a {wanted[1]:.3g}" in line or f"epsilon {wanted[1]:.3g} at every site" in line


def test_of_nothing_no_curve_is_drawn(make_run: Make, tmp_path: Path) -> None:
    with pytest.raises(TrackingError, match="holds no run"):
        tracking.tensorboard(tmp_path)
    with pytest.raises(TrackingError, match="no round yet"):
        tracking.tensorboard(make_run("ct_fedavg", ("started", 0)))


def test_mlflow_is_an_extra(make_run: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = make_run("ct_fedavg", ("round", 0), ("round", 1))
    try:
        from mlflow.tracking import MlflowClient
    except ImportError:
        with pytest.raises(TrackingError, match=r"pip install 'fedscan\[mlflow\]'"):
            tracking.mlflow(run, "http://127.0.0.1:1")
        return
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    uri = f"file://{tmp_path / 'mlruns'}"
    run_id = tracking.mlflow(run, uri)
    history = MlflowClient(uri).get_metric_history(run_id, "a/loss")
    assert [(one.step, one.value) for one in history] == [(1, 1.0), (2, 0.5)]


def test_nvflares_own_analytics_have_no_place_in_a_job(repository: Path) -> None:
    """They pass no filter: no template names a writer, a receiver or an event of theirs."""
    for path in (repository / "jobs").rglob("*.json"):
        assert not any(word in path.read_text().lower() for word in ("analytic", "tbwriter", "mlflow", "tracking"))


def test_a_run_with_records_of_another_plan_draws_its_own_alone(make_run: Make, tmp_path: Path) -> None:
    run = make_run("ct_fedavg", ("round", 0))
    other = next(records.read(run / "rounds.jsonl")).model_copy(update={"plan_digest": "c" * 64, "round": 1})
    records.append(run / "rounds.jsonl", other)
    assert curve(tracking.tensorboard(run), "global", "loss") == [(1, 1.0)]
    shutil.rmtree(run)
