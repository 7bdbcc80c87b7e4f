"""The server's places, its shelf, what it notes of a run, and which federation a run's folder belongs to."""

from __future__ import annotations

import json
import shutil
import stat
from pathlib import Path

import pytest

from fedscan.federation import federation_file, job_folder, local_run, places, remote_job, run_note, server_shelf
from fedscan.federation.federation_file import FederationFile, FederationFileError
from fedscan.federation.places import PlacesError
from fedscan.federation.run_start import starting_state
from fedscan.federation.server_job import ServerJob
from fedscan.federation.server_keeper import note_of
from fedscan.federation.server_shelf import ShelfError
from fedscan.plan import Plan, Submission
from fedscan.training import checkpoints, model_file
from fedscan.training.checkpoints import Checkpoint, CheckpointError
from fedscan.training.weights import initial_weights

PLAN = Plan.model_validate({"model": {"preset": "tiny"}, "rounds": 5})
RUN_ID = "a" * 32


@pytest.fixture
def server_kit(provisioned: Path, tmp_path: Path) -> Path:
    shutil.copytree(provisioned / "localhost", tmp_path / "server")
    return tmp_path / "server"


@pytest.fixture
def model(tmp_path: Path) -> Path:
    model_file.save_model(tmp_path / "start.safetensors", initial_weights(PLAN), PLAN, {"values": "hu"})
    return tmp_path / "start.safetensors"


def test_a_fresh_kit_keeps_each_run_in_a_folder_of_its_own_below_itself(server_kit: Path) -> None:
    own = places.server_places(server_kit / "local")
    assert own.run(RUN_ID) == server_kit / "runs" / RUN_ID
    assert own.shelf == server_kit / "shelf"


def test_the_operator_moves_them_and_no_job_can(server_kit: Path, tmp_path: Path) -> None:
    server_shelf.set_places(server_kit, tmp_path / "srv")
    own = server_shelf.places_of(server_kit)
    assert (own.run(RUN_ID), own.shelf) == (tmp_path / "srv" / "runs" / RUN_ID, tmp_path / "srv" / "shelf")
    assert stat.S_IMODE((tmp_path / "srv").stat().st_mode) == 0o700
    assert stat.S_IMODE((server_kit / "local" / "server.json").stat().st_mode) == 0o600


def test_places_that_are_broken_are_refused_with_the_cure(server_kit: Path, tmp_path: Path) -> None:
    (server_kit / "local" / "server.json").write_text('{"run_folder": "", "shelf": "s"}')
    with pytest.raises(PlacesError, match="run_folder and shelf"):
        places.server_places(server_kit / "local")
    with pytest.raises(ShelfError, match="fedscan server places"):
        server_shelf.places_of(server_kit)
    with pytest.raises(ShelfError, match="no server kit"):
        server_shelf.places_of(tmp_path)


def test_a_model_lies_on_the_shelf_under_its_own_digest(server_kit: Path, model: Path) -> None:
    done = server_shelf.add_model(server_kit, model)
    assert done.sha256 == job_folder.file_sha256(model)
    assert done.path == server_kit / "shelf" / f"{done.sha256}.safetensors"
    assert stat.S_IMODE(done.path.stat().st_mode) == 0o600
    assert (done.new, server_shelf.add_model(server_kit, model).new) == (True, False)
    assert [path.name for path in done.path.parent.iterdir()] == [done.path.name]


def test_what_is_no_model_never_comes_onto_the_shelf(server_kit: Path, model: Path) -> None:
    model.write_bytes(model.read_bytes()[:-5])
    with pytest.raises(ShelfError, match="no model of ours"):
        server_shelf.add_model(server_kit, model)
    assert list((server_kit / "shelf").iterdir()) == []


def job(folder: Path, start_round: int = 0) -> ServerJob:
    (folder / "run").mkdir(exist_ok=True)
    submission = Submission.new(run_id=RUN_ID, start_round=start_round)
    return ServerJob(PLAN, submission, folder / "run", folder / "shelf")


def save(one: ServerJob, done: int) -> Path:
    weights = initial_weights(PLAN)
    return checkpoints.save(one.checkpoint_folder, Checkpoint(done, weights, weights, done), PLAN, RUN_ID)


def test_a_submission_that_would_go_back_is_refused(tmp_path: Path) -> None:
    """An old signed job, or a second resume: its rounds would be trained, and charged, twice."""
    save(job(tmp_path), 0)
    save(job(tmp_path), 3)
    with pytest.raises(CheckpointError, match="after 3 rounds, the submission starts after 0"):
        starting_state(job(tmp_path))
    with pytest.raises(CheckpointError, match="starts after 2"):
        starting_state(job(tmp_path, 2))
    assert starting_state(job(tmp_path, 3)).rounds_done == 3


def test_the_server_notes_the_newest_checkpoint_that_can_be_read(tmp_path: Path) -> None:
    one = job(tmp_path)
    assert run_note.read(note_of(one)) == run_note.RunNote(run_id=RUN_ID, rounds_done=0)
    save(one, 2)
    newest = save(one, 3)
    assert run_note.read(note_of(one)).rounds_done == 3  # type: ignore[union-attr]
    newest.write_bytes(b"damaged")
    assert run_note.read(note_of(one)).rounds_done == 2  # type: ignore[union-attr]
    assert starting_state(job(tmp_path, 2)).rounds_done == 2


@pytest.mark.parametrize("meta", [{}, {"fedscan": 5}, {"fedscan": {"run_id": "x", "rounds_done": 1}}, {"fedscan": {}}])
def test_a_note_of_another_form_is_none(meta: dict[str, object]) -> None:
    assert run_note.read(meta) is None


def test_who_did_not_take_the_job_is_read_from_nvflares_words() -> None:
    meta = {
        "job_deploy_detail": [
            "server: OK",
            "hosp-a: OK",
            "hosp-b: NVFLARE_ERROR: refused by policy",
            "hosp-c: no reply (deployment timeout)",
            "num_ok_sites 1 < required_min_sites 2",
            "failed to deploy to required client: x",
        ]
    }
    got = remote_job.refused_at_deployment(meta)
    assert got == {"hosp-b": "refused by policy", "hosp-c": "no reply (deployment timeout)"}
    assert remote_job.refused_at_deployment({}) == {}


def test_a_run_remembers_its_federation_and_its_jobs(tmp_path: Path) -> None:
    assert federation_file.read(tmp_path) is None
    file = FederationFile(kit=tmp_path / "kit", user="lead@x", project="p", run_id=RUN_ID, plan_digest="b" * 64)
    file.with_job("1").with_job("2").write(tmp_path)
    assert federation_file.read(tmp_path) == file.model_copy(update={"jobs": ("1", "2")})
    (tmp_path / "federation.json").write_text(json.dumps({"run_id": "../x"}))
    with pytest.raises(FederationFileError, match="cannot be understood"):
        federation_file.read(tmp_path)


def test_a_folder_whose_job_was_submitted_is_not_fresh(tmp_path: Path) -> None:
    """A command that was killed before it submitted leaves a folder that may be used; one killed after it does not."""
    file = FederationFile(kit=tmp_path, user="lead@x", project="p", run_id=RUN_ID, plan_digest="b" * 64)
    file.write(tmp_path)
    assert local_run.is_fresh(tmp_path)
    file.with_job("1").write(tmp_path)
    assert not local_run.is_fresh(tmp_path)
    (tmp_path / "federation.json").write_text("{")
    assert not local_run.is_fresh(tmp_path)
