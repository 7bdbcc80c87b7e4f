"""Where a run starts: the seed's weights, a model from the shelf, a checkpoint; and what its model file tells."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from fedscan.federation import job_folder, places, records
from fedscan.federation.run_start import provenance, starting_state, write_model
from fedscan.federation.server_job import ServerJob
from fedscan.plan import Plan, Submission
from fedscan.training import checkpoints, model_file
from fedscan.training.checkpoints import Checkpoint, CheckpointError
from fedscan.training.weights import digest, initial_weights

PLAN = Plan.model_validate({"model": {"preset": "tiny"}, "rounds": 3})


def job(folder: Path, plan: Plan = PLAN, start_round: int = 0) -> ServerJob:
    (folder / "run").mkdir(exist_ok=True)
    (folder / "shelf").mkdir(exist_ok=True)
    submission = Submission.new(run_id="a" * 32, start_round=start_round)
    return ServerJob(plan, submission, folder / "run", folder / "shelf")


def shelved(folder: Path) -> str:
    other = PLAN.model_copy(update={"seed": 9})
    model_file.save_model(folder / "model.safetensors", initial_weights(other), other, {})
    return job_folder.file_sha256(folder / "model.safetensors")


def test_from_scratch_it_is_the_seeds_weights(tmp_path: Path) -> None:
    state = starting_state(job(tmp_path))
    assert (state.rounds_done, state.ema_count) == (0, 0)
    assert digest(state.weights) == digest(initial_weights(PLAN))


def test_from_a_model_on_the_shelf_it_is_that_models_weights(tmp_path: Path) -> None:
    sha256 = shelved(tmp_path)
    plan = PLAN.model_copy(update={"init_sha256": sha256})
    one = job(tmp_path, plan)
    with pytest.raises(CheckpointError, match="shelf cannot give"):
        starting_state(one)
    shutil.copy(tmp_path / "model.safetensors", one.shelf / f"{sha256}.safetensors")
    state = starting_state(one)
    assert digest(state.weights) == digest(initial_weights(PLAN.model_copy(update={"seed": 9})))


def test_another_file_under_the_models_name_is_refused(tmp_path: Path) -> None:
    shelved(tmp_path)
    plan = PLAN.model_copy(update={"init_sha256": "b" * 64})
    one = job(tmp_path, plan)
    shutil.copy(tmp_path / "model.safetensors", one.shelf / f"{'b' * 64}.safetensors")
    with pytest.raises(CheckpointError, match="other content"):
        starting_state(one)


def test_a_model_of_another_network_is_refused(tmp_path: Path) -> None:
    sha256 = shelved(tmp_path)
    plan = Plan.model_validate({"model": {"preset": "small"}, "init_sha256": sha256})
    one = job(tmp_path, plan)
    shutil.copy(tmp_path / "model.safetensors", one.shelf / f"{sha256}.safetensors")
    with pytest.raises(CheckpointError, match="does not fit the plan's network"):
        starting_state(one)


def test_resumed_it_is_the_checkpoint_of_its_start_round_and_of_no_other_run(tmp_path: Path) -> None:
    weights = initial_weights(PLAN.model_copy(update={"seed": 5}))
    one = job(tmp_path, start_round=2)
    with pytest.raises(CheckpointError, match="cannot be read"):
        starting_state(one)
    checkpoints.save(one.checkpoint_folder, Checkpoint(2, weights, weights, 2), PLAN, "a" * 32)
    assert digest(starting_state(one).weights) == digest(weights)
    checkpoints.save(one.checkpoint_folder, Checkpoint(2, weights, weights, 2), PLAN, "c" * 32)
    with pytest.raises(CheckpointError, match="another run"):
        starting_state(one)


def test_the_model_file_tells_who_took_part_and_at_what_scale(tmp_path: Path) -> None:
    one = job(tmp_path)
    weights = initial_weights(PLAN)
    for number, fields in ((0, (360.0, 360.0)), (1, (360.0, 360.0))):
        sites = {
            site: records.SiteEntry(
                answered=True, examples=8, patients=2, unit="patient", values="hu", field_mm=field_mm
            )
            for site, field_mm in zip(("a", "b"), fields, strict=True)
        }
        sites["c"] = records.SiteEntry(answered=False, refused="no answer in time")
        records.append(
            one.rounds_file,
            records.RoundRecord(event="round", time="", run_id="a" * 32, plan_digest="", round=number, sites=sites),
        )
    state = Checkpoint(2, weights, weights, 2)
    write_model(one, state)
    told = model_file.load_model(one.model_path).provenance
    assert told == provenance(one, state)
    assert told["sites"] == {s: {"rounds": 2, "examples": 8, "patients": 2, "unit": "patient"} for s in ("a", "b")}
    assert (told["unit"], told["values"], told["field_mm"]) == ("patient", "hu", 360.0)
    assert told["privacy"].startswith("none")


def test_places_come_from_the_servers_and_sites_own_files_alone(tmp_path: Path) -> None:
    with pytest.raises(places.PlacesError, match=r"server\.json"):
        places.server_places(tmp_path)
    own = places.ServerPlaces(run_folder=str(tmp_path / "runs" / "{run_id}"), shelf=tmp_path)
    (tmp_path / places.SERVER_FILE).write_text(own.model_dump_json())
    assert places.server_places(tmp_path).run("x") == tmp_path / "runs" / "x"
    bare = {"no_policy": True, "store": "/a", "state": "/b"}
    assert places.site_places(bare).site_file is None
    assert places.site_places({"site_file": "/s"}).site_file == Path("/s")
    with pytest.raises(places.PlacesError, match="wrong: surprise"):
        places.site_places(bare | {"surprise": 1})


@pytest.mark.parametrize(
    "properties",
    [
        {},
        {"store": "/a", "state": "/b"},
        {"no_policy": True, "store": "/a"},
        {"no_policy": True, "store": "/a", "state": "/b", "site_file": "/s"},
        {"site_file": "/s", "no_policy": True},
        {"site_file": "/s", "store": "/a"},
        None,
    ],
)
def test_a_site_has_a_policy_or_says_aloud_that_it_has_none(properties: object) -> None:
    with pytest.raises(places.PlacesError, match="must name site_file"):
        places.site_places(properties)
