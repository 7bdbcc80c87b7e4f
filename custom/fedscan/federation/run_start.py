"""Where a run starts, and how it ends: the first state, and the finished model file."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fedscan import __version__
from fedscan.federation import records, run_privacy
from fedscan.federation.records import SiteEntry
from fedscan.federation.server_job import ServerJob
from fedscan.training import checkpoints, model_file
from fedscan.training.checkpoints import Checkpoint, CheckpointError
from fedscan.training.privacy_statement import NONE, privacy_statement
from fedscan.training.weights import Weights, check_update, initial_weights, shapes_of


def starting_state(job: ServerJob) -> Checkpoint:
    """The state that the submission's start round names.

    Raises CheckpointError when it is not there, belongs to another run, or the init model does not fit the plan.
    """
    start = job.submission.start_round
    newest = checkpoints.newest(job.checkpoint_folder, job.plan, job.submission.run_id)
    if newest is not None and newest.rounds_done > start:
        raise CheckpointError(
            f"this run has a checkpoint after {newest.rounds_done} rounds, the submission starts after {start}: go on "
            "with `fedscan job resume`"
        )
    if start > 0:
        state = checkpoints.load(job.checkpoint_folder, start, job.plan, job.submission.run_id)
        if reasons := check_update(state.weights, shapes_of(job.plan.model)):
            raise CheckpointError(f"the checkpoint does not fit the plan's network: {'; '.join(reasons)}")
        return state
    weights = _first_weights(job)
    return Checkpoint(0, weights, weights, 0)


def _first_weights(job: ServerJob) -> Weights:
    fresh = initial_weights(job.plan)
    sha256 = job.plan.init_sha256
    if sha256 is None:
        return fresh
    try:
        model = model_file.load_model(_on_the_shelf(job, sha256))
    except OSError as error:
        raise CheckpointError(
            f"the plan starts from model {sha256[:12]}, which the shelf cannot give ({error.strerror}): the server's "
            "operator lays it there with `fedscan server add-model`"
        ) from None
    except ValueError as error:
        raise CheckpointError(f"model {sha256[:12]} on the shelf is no model of ours: {error}") from None
    if model.sha256 != sha256:
        raise CheckpointError(f"model {sha256[:12]} on the shelf has other content (SHA-256 {model.sha256[:12]})")
    if reasons := check_update(model.weights, fresh):
        raise CheckpointError(f"model {sha256[:12]} does not fit the plan's network: {'; '.join(reasons)}")
    return model.weights


def _on_the_shelf(job: ServerJob, sha256: str) -> Path:
    """A model that comes with the package needs no place on the shelf."""
    path = job.shelf / f"{sha256}.safetensors"
    if path.exists():
        return path
    from fedscan.training import public_start  # takes seconds to load

    return public_start.builtin(sha256) or path


def write_model(job: ServerJob, state: Checkpoint) -> None:
    """RUN/model.safetensors: the EMA weights, with plan and provenance in the metadata."""
    model_file.save_model(job.model_path, state.ema, job.plan, provenance(job, state))


def provenance(job: ServerJob, state: Checkpoint) -> dict[str, Any]:
    """Who took part in what: from rounds.jsonl, for the model file. Of a private run nothing that follows from data."""
    told = _told_by_sites(job) if job.plan.privacy is None else _told_by_plan(job)
    return {
        **told,
        "run_id": job.submission.run_id,
        "plan_digest": job.plan.digest,
        "rounds_done": state.rounds_done,
        "weights": "ema" if job.plan.ema.half_life_rounds > 0 else "raw",
        "fedscan_version": __version__,
        "stamps": list(job.stamps),
    }


def _told_by_sites(job: ServerJob) -> dict[str, Any]:
    sites: dict[str, dict[str, Any]] = {}
    told: dict[str, set[Any]] = {"unit": set(), "values": set(), "field_mm": set()}
    for site, entry in _answers(job):
        known = sites.setdefault(site, {"rounds": 0})
        known["rounds"] += 1
        known |= {"examples": entry.examples, "patients": entry.patients, "unit": entry.unit}
        for key, values in told.items():
            values.add(getattr(entry, key))
    return {
        "unit": "patient" if told["unit"] == {"patient"} else "image",
        "values": "grey" if "grey" in told["values"] else "hu",
        # Sites of different fields draw one body at different scales: the model then has none.
        "field_mm": next(iter(told["field_mm"])) if len(told["field_mm"]) == 1 else None,
        "sites": dict(sorted(sites.items())),
        "privacy": "; ".join([NONE, *job.stamps]),
    }


def _told_by_plan(job: ServerJob) -> dict[str, Any]:
    """What the slices hold and their scale are those of the public start: private answers do not tell."""
    rounds = Counter(site for site, _ in _answers(job))
    asked = run_privacy.asked(records.read(job.rounds_file))
    spent = run_privacy.spent(job.plan, asked)
    remark = "; ".join(["as often as the server asked; each site's ledger keeps the account", *job.stamps])
    return {
        "unit": spent["unit"],
        **_scale_of_start(job),
        "sites": {site: {"rounds": count} for site, count in sorted(rounds.items())},
        "privacy": privacy_statement(job.plan, asked, remark),
        "privacy_spent": spent,
    }


def _answers(job: ServerJob) -> Iterator[tuple[str, SiteEntry]]:
    for record in records.effective_rounds(job.rounds_file):
        yield from ((site, entry) for site, entry in record.sites.items() if entry.answered)


def _scale_of_start(job: ServerJob) -> dict[str, Any]:
    if job.plan.init_sha256 is None:
        return {"values": "hu", "field_mm": None}
    try:
        told = model_file.load_model(_on_the_shelf(job, job.plan.init_sha256)).provenance
    except FileNotFoundError:  # a submitter who saves a lost job's model has no shelf
        return {}
    return {key: told[key] for key in ("values", "field_mm") if key in told}
