"""A run through real NVFlare processes over mutual TLS equals the same rounds in process, bit for bit."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path

import pytest

from fedscan.federation import job_folder, local_run, processes, records, wall
from fedscan.federation.local_run import RunError
from fedscan.training import in_process, model_file
from fedscan.training.weights import digest


@pytest.fixture(scope="module")
def finished(
    repository: Path, tmp_path_factory: pytest.TempPathFactory, stores: dict[str, Path]
) -> tuple[Path, Path, list[str]]:
    folder = tmp_path_factory.mktemp("run")
    settings = ["model.preset=tiny", "rounds=2", "training.local_steps=3", "training.batch_size=8", "min_responses=3"]
    job_folder.new(repository / "jobs" / "ct_fedavg", folder / "job", settings)
    said: list[str] = []
    local_run.run(folder / "job", stores, folder / "RUN", listen=lambda p: said.append(p.text), no_policy=True)
    return folder / "job", folder / "RUN", said


def test_the_run_equals_the_same_rounds_in_process(
    finished: tuple[Path, Path, list[str]], stores: dict[str, Path], tmp_path: Path
) -> None:
    job, run, _ = finished
    model = model_file.load_model(run / "model.safetensors")
    in_process.run(job_folder.read_plan(job), stores, tmp_path / "here")
    here = model_file.load_model(tmp_path / "here" / "model.safetensors")
    assert digest(model.weights) == digest(here.weights)


@pytest.mark.slow
def test_so_does_a_run_of_eight_bit_updates_and_their_median(
    repository: Path, stores: dict[str, Path], tmp_path: Path
) -> None:
    settings = ["model.preset=tiny", "rounds=3", "training.local_steps=3", "training.batch_size=8", "min_responses=3"]
    settings += ["update_precision=int8", "weighting=uniform", "aggregation.method=median"]
    job_folder.new(repository / "jobs" / "ct_fedavg", tmp_path / "job", settings)
    local_run.run(tmp_path / "job", stores, tmp_path / "RUN", no_policy=True)
    plan = job_folder.read_plan(tmp_path / "job")
    in_process.run(plan, stores, tmp_path / "here")
    made, here = (model_file.load_model(tmp_path / folder / "model.safetensors") for folder in ("RUN", "here"))
    assert digest(made.weights) == digest(here.weights)
    tensors = [line for line in wall.read(tmp_path / "RUN/sites/hosp-a/wall.jsonl") if line["kind"] == "tensors"]
    came, went = (sum(line["bytes"] for line in tensors if line["direction"] == way) for way in ("in", "out"))
    assert went < 0.3 * came


def test_rounds_are_recorded_with_who_answered_losses_and_bytes(finished: tuple[Path, Path, list[str]]) -> None:
    _, run, said = finished
    events = [r.event for r in records.read(run / "rounds.jsonl")]
    assert events == ["started", "round", "round", "finished"]
    for record in records.effective_rounds(run / "rounds.jsonl"):
        assert record.asked == ("hosp-a", "hosp-b", "hosp-c")
        assert all(e.answered and e.loss and e.bytes_received and e.seconds for e in record.sites.values())
        assert sum(e.weight or 0 for e in record.sites.values()) == pytest.approx(1)
        assert [e.examples for e in record.sites.values()] == [24, 32, 40]
    assert any("round 2/2" in text for text in said)


def test_the_model_file_loads_alone_with_plan_and_provenance(finished: tuple[Path, Path, list[str]]) -> None:
    job, run, _ = finished
    model = model_file.load_model(run / "model.safetensors")
    assert model.plan == job_folder.read_plan(job)
    assert model.provenance["sites"]["hosp-b"] == {"rounds": 2, "examples": 32, "patients": 4, "unit": "patient"}
    assert (model.provenance["values"], model.provenance["field_mm"]) == ("hu", 360.0)


def test_without_policy_every_output_says_so(finished: tuple[Path, Path, list[str]]) -> None:
    _, run, said = finished
    stamp = "no policy, no ledger"
    assert json.loads((run / "run.json").read_text())["stamps"] == [stamp]
    assert next(records.read(run / "rounds.jsonl")).stamps == (stamp,)
    told = model_file.load_model(run / "model.safetensors").provenance
    assert told["stamps"] == [stamp]
    assert stamp in told["privacy"]
    assert f"warning: {stamp}" in said


def test_each_site_counted_what_left_it(finished: tuple[Path, Path, list[str]]) -> None:
    _, run, _ = finished
    model = model_file.load_model(run / "model.safetensors")
    for site in ("hosp-a", "hosp-b", "hosp-c"):
        entries = wall.read(run / "sites" / site / "wall.jsonl")
        out = [e for e in entries if e.get("direction") == "out" and e["kind"] == "tensors"]
        assert [e["round"] for e in out] == [0, 1]
        assert all(set(e["tensors"]) == set(model.weights) for e in out)
        counted = [c["bytes"] for e in entries if e["kind"] == "messages" for c in e["channels"].values()]
        update = sum(t.numel() * t.element_size() for t in model.weights.values())
        assert 2 * update < sum(counted) < 2.2 * update


def test_no_process_stays_and_no_key_is_readable_by_others(finished: tuple[Path, Path, list[str]]) -> None:
    _, run, _ = finished
    assert processes.belonging_to(run) == []
    assert stat.S_IMODE(run.stat().st_mode) == 0o700
    loose = [
        p
        for p in run.rglob("*")
        if not p.is_symlink() and stat.S_IMODE(os.stat(p).st_mode) & 0o077 and p.suffix in {".key", ".json", ".jsonl"}
    ]
    assert [p for p in loose if p.suffix == ".key" or "sites" in p.parts or p.name == "cert.json"] == []


def test_the_job_ran_signed_over_mutual_tls(finished: tuple[Path, Path, list[str]]) -> None:
    _, run, _ = finished
    kit = next((run / "federation").glob("attempt-01/*/prod_00"))
    server = json.loads((kit / "localhost" / "startup" / "fed_server.json").read_text())
    assert server["require_signed_jobs"] is True
    assert server["servers"][0]["connection_security"] == "mtls"
    site = json.loads((kit / "hosp-a" / "local" / "comm_config.json").read_text())
    assert site["internal"]["resources"]["connection_security"] == "mtls"


def test_a_run_folder_is_never_overwritten_and_a_finished_run_stays(finished: tuple[Path, Path, list[str]]) -> None:
    job, run, _ = finished
    before = (run / "model.safetensors").read_bytes()
    with pytest.raises(RunError, match="not empty"):
        local_run.run(job, {"a": run}, run, no_policy=True)
    assert local_run.resume(run) == run / "model.safetensors"
    assert (run / "model.safetensors").read_bytes() == before


def test_resume_of_nothing_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="fedscan job run"):
        local_run.resume(tmp_path)
