"""The template jobs/ct_fedavg_dp: constants measured in docs/results/dp-usefulness.md, a start that is at hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from ctslices.phantom import PROFILES, chest_slices
from fedscan.federation import job_check, job_folder
from fedscan.plan import Plan
from fedscan.privacy.accounting import epsilon
from fedscan.privacy.event import run_event
from fedscan.privacy.gradients import PatientGradients
from fedscan.training import public_start
from fedscan.training.data import TrainingSet
from fedscan.training.model_file import load_model
from fedscan.training.patient_draws import PatientRows
from fedscan.training.round_trainer import RoundTrainer

CT_PHANTOM = public_start.SHELF / "ct_phantom.safetensors"


@pytest.fixture(scope="module")
def template(repository: Path) -> Path:
    return repository / "jobs" / "ct_fedavg_dp"


@pytest.fixture(scope="module")
def job(template: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two sites that declare 2000 and 1000 patients."""
    out = tmp_path_factory.mktemp("dp") / "job"
    job_folder.new(template, out, patients={"a": 2000, "b": 1000})
    return out


@pytest.fixture(scope="module")
def plan(job: Path) -> Plan:
    return job_folder.read_plan(job)


def test_its_constants_are_the_measured_ones(plan: Plan) -> None:
    privacy, training = plan.privacy, plan.training
    assert privacy is not None
    assert training.local_steps is not None
    assert plan.rounds * training.local_steps == 200
    assert plan.ema.half_life_rounds * training.local_steps == 30
    assert (training.learning_rate, training.beta1, training.beta2) == (1e-3, 0.9, 0.99)
    assert (training.warmup_steps, training.decay, training.optimiser_state) == (20, "cosine", "keep")
    assert (training.weight_decay, training.optimiser) == (0.0, "adamw")
    assert (privacy.max_grad_norm, privacy.rows_per_patient, privacy.trainable) == (0.1, 1, "all")
    assert (plan.model.preset, plan.model.fold) == ("tiny", 2)
    assert (plan.weighting, plan.min_responses) == ("uniform", 2)
    assert not privacy.from_scratch


@pytest.mark.parametrize("site", ["a", "b"])
def test_all_its_rounds_cost_the_epsilon_it_names(plan: Plan, site: str) -> None:
    assert plan.privacy is not None
    assert epsilon([run_event(plan, site)], plan.privacy.delta) == pytest.approx(8.0, rel=5e-3)
    assert epsilon([run_event(plan, site)], plan.privacy.delta) <= 8.0


def test_the_job_is_fit_to_run_without_naming_its_start(job: Path) -> None:
    assert [f.text for f in job_check.check(job) if f.level == "error"] == []
    assert job_folder.remembered_init(job) == CT_PHANTOM


def test_another_start_is_found_only_where_it_is_named(template: Path, tmp_path: Path) -> None:
    job_folder.new(template, tmp_path / "other", [f"init_sha256={'0' * 64}"], patients={"a": 2000, "b": 1000})
    assert any("give its file with --init" in finding.text for finding in job_check.check(tmp_path / "other"))


def test_nearly_every_patient_is_clipped_at_the_start_and_no_row_is_wasted(plan: Plan) -> None:
    """Clip everybody: with a bound above most norms, the noise would be larger than what it hides (over 95 %)."""
    torch.set_num_threads(1)
    hu = np.concatenate(
        [chest_slices(np.random.default_rng(3), 64, profile=p, slices_per_patient=4)[0] for p in PROFILES]
    )
    data = TrainingSet(
        hu=hu,
        window=plan.window,
        label=None,
        patient=np.repeat(np.arange(48, dtype=np.int32), 4),
        unit="patient",
        pseudonyms=tuple(f"{i:032x}" for i in range(48)),
    )
    trainer = RoundTrainer(plan, data, "a", "cpu")
    trainer.network.load_state_dict(load_model(CT_PHANTOM).weights)
    gradients = PatientGradients(trainer.network)
    assert plan.privacy is not None
    rows = PatientRows(plan, plan.privacy, data, 0).batch(np.arange(48), 0, 0)

    def denoiser(x: torch.Tensor, t: torch.Tensor, labels: torch.Tensor | None = None) -> torch.Tensor:
        prediction: torch.Tensor = gradients(x, t, labels, patients=48)
        return prediction

    trainer.losses(denoiser, rows.x0, rows.t, rows.noise, None).sum().backward()
    of_patients = [p.grad_sample.flatten(1) for p in gradients.trainable_parameters.values()]  # type: ignore[attr-defined]
    norms = torch.cat(of_patients, dim=1).norm(dim=1)
    assert (norms > plan.privacy.max_grad_norm).float().mean() > 0.95
