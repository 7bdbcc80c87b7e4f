"""Curves of a run for TensorBoard and MLflow, by site and global: from rounds.jsonl and nothing else.

What stands there left the sites through their guards. NVFlare's own analytics pass no filter: they are not used.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from fedscan.federation import job_folder, records, run_lines
from fedscan.federation.findings import JobError
from fedscan.federation.records import RoundRecord
from fedscan.plan import Plan

GLOBAL = "global"
FOLDER = "tensorboard"
_EPSILON_POINTS = 50
"""Each needs the accountant for every kind of site, which takes up to a third of a second."""


class TrackingError(RuntimeError):
    """No curves can be drawn; the text says why."""


@dataclass(frozen=True)
class Point:
    """One value: `who` is a site or `global`, `step` counts rounds from 1, `time_s` is seconds since 1970."""

    who: str
    tag: str
    step: int
    value: float
    time_s: float


def points(plan: Plan, seen: Sequence[RoundRecord]) -> Iterator[Point]:
    """Every curve of a run, in the order of its rounds; of a round redone after a crash its last record counts."""
    last = {r.round: i for i, r in enumerate(seen) if r.event == "round" and r.round is not None}
    tries = [r.round for r in seen if r.event in ("round", "repeat")]
    every = max(1, len(last) // _EPSILON_POINTS)
    for number, index in sorted(last.items(), key=lambda item: item[1]):
        record = seen[index]
        step, time_s = number + 1, _seconds(record.time)
        for who, tag, value in _of_round(record, tries.count(number)):
            if value is not None:
                yield Point(who, tag, step, float(value), time_s)
        if plan.privacy is not None and (step % every == 0 or step == plan.rounds):
            for site, value in run_lines.epsilon_by_site(seen[: index + 1], plan).items():
                yield Point(site, "epsilon", step, value, time_s)


def _of_round(record: RoundRecord, tries: int) -> Iterator[tuple[str, str, float | None]]:
    yield GLOBAL, "loss", record.loss
    yield GLOBAL, "seconds", record.seconds
    yield GLOBAL, "answers", sum(entry.answered for entry in record.sites.values())
    yield GLOBAL, "tries", tries
    for site, entry in sorted(record.sites.items()):
        yield site, "answered", float(entry.answered)
        yield site, "loss", entry.loss
        yield site, "update_norm", entry.update_norm
        yield site, "weight", entry.weight
        yield site, "seconds", entry.seconds


def tensorboard(run: Path) -> Path:
    """Writes RUN/tensorboard anew, a folder for each site and one for all; mode 0700. Raises TrackingError, OSError.

    `tensorboard --logdir RUN/tensorboard` shows it.
    """
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.compat.proto.summary_pb2 import Summary
    from tensorboard.summary.writer.event_file_writer import EventFileWriter

    plan, seen = _read(run)
    partial, to = run / f".{FOLDER}.partial", run / FOLDER
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(mode=0o700)
    writers: dict[str, Any] = {}
    try:
        for point in points(plan, seen):
            if point.who not in writers:
                writers[point.who] = EventFileWriter(str(partial / point.who))
            value = Summary.Value(tag=point.tag, simple_value=point.value)
            summary = Summary(value=[value])
            writers[point.who].add_event(Event(wall_time=point.time_s, step=point.step, summary=summary))
    finally:
        for writer in writers.values():
            writer.close()
    shutil.rmtree(to, ignore_errors=True)
    os.replace(partial, to)
    return to


def mlflow(run: Path, tracking_uri: str, experiment: str = "fedscan") -> str:
    """Logs the run to an MLflow tracking server as a new MLflow run. Returns its id. Raises TrackingError."""
    try:
        from mlflow.exceptions import MlflowException
        from mlflow.tracking import MlflowClient
    except ImportError:
        raise TrackingError("MLflow is an extra: pip install 'fedscan[mlflow]'") from None
    plan, seen = _read(run)
    try:
        client = MlflowClient(tracking_uri)
        known = client.get_experiment_by_name(experiment)
        experiment_id = known.experiment_id if known else client.create_experiment(experiment)
        run_id = str(client.create_run(experiment_id, run_name=plan.name).info.run_id)
        for name, value in _params(plan, seen).items():
            client.log_param(run_id, name, value)
        for point in points(plan, seen):
            name = f"{point.who}/{point.tag}"
            client.log_metric(run_id, name, point.value, timestamp=int(point.time_s * 1000), step=point.step)
        client.set_terminated(run_id)
    except MlflowException as error:
        raise TrackingError(f"{tracking_uri} did not take the run: {error.message.splitlines()[0][:300]}") from None
    return run_id


def _params(plan: Plan, seen: Sequence[RoundRecord]) -> dict[str, Any]:
    return {
        "run_id": seen[0].run_id,
        "plan_digest": plan.digest,
        "rounds": plan.rounds,
        "preset": plan.model.preset,
        "private": plan.privacy is not None,
    }


def _read(run: Path) -> tuple[Plan, list[RoundRecord]]:
    try:
        plan = job_folder.read_plan(run / "job")
    except JobError as error:
        raise TrackingError(f"{run} holds no run: {error}") from None
    seen = [record for record in records.read(run / "rounds.jsonl") if record.plan_digest == plan.digest]
    if not any(record.event == "round" for record in seen):
        raise TrackingError(f"{run} has no round yet (rounds.jsonl): nothing to draw")
    return plan, seen


def _seconds(text: str) -> float:
    try:
        return datetime.fromisoformat(text).timestamp()
    except ValueError:
        return 0.0
