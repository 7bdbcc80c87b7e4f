from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch

from ctslices import phantom
from fedscan.aggregation_plan import AggregationPlan
from fedscan.diffusion.network import DiffusionNetwork
from fedscan.plan import Plan
from fedscan.training import public_start
from fedscan.training.data import NO_LABEL
from fedscan.training.model_file import load_model
from fedscan.training.seeds import derived_generator

MakePlan = Callable[..., Plan]
CT_PHANTOM = public_start.SHELF / "ct_phantom.safetensors"


def make_short(plan: Plan, folder: Path, say: Callable[[str], None] = lambda _: None, seed: int = 0) -> str:
    folder.mkdir(exist_ok=True)
    return public_start.make(
        plan, folder / "start.safetensors", folder / "work", steps=100, slices=40, seed=seed, say=say
    )


def test_the_same_seed_gives_the_same_bytes_and_another_seed_others(make_plan: MakePlan, tmp_path: Path) -> None:
    plan = make_plan()
    said: list[str] = []
    first = make_short(plan, tmp_path / "a", said.append)
    assert make_short(plan, tmp_path / "b") == first
    assert make_short(plan, tmp_path / "c", seed=1) != first
    assert [line.split(":")[0] for line in said] == [
        "drawing 40 slices of phantoms", "step 50 of 100", "step 100 of 100"
    ]  # fmt: skip


def test_stopped_after_any_round_it_goes_on_to_the_same_bytes(make_plan: MakePlan, tmp_path: Path) -> None:
    plan = make_plan()

    def stop(text: str) -> None:
        if text.startswith("step 50 "):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        make_short(plan, tmp_path / "stopped", stop)
    assert not (tmp_path / "stopped" / "start.safetensors").exists()
    said: list[str] = []
    resumed = make_short(plan, tmp_path / "stopped", said.append)
    assert [line.split(":")[0] for line in said[1:]] == ["step 100 of 100"]
    assert resumed == make_short(plan, tmp_path / "whole")


def test_what_a_start_says_of_itself(make_plan: MakePlan, tmp_path: Path) -> None:
    make_short(make_plan(window="lung"), tmp_path / "a")
    made = load_model(tmp_path / "a" / "start.safetensors")
    assert made.plan.window == "lung"
    assert made.plan.privacy is None
    assert "phantoms only" in made.provenance["public"]
    assert "no patient" in made.provenance["public"]
    assert made.provenance["sites"] == {}
    assert str(tmp_path) not in json.dumps(made.provenance)


@pytest.mark.parametrize("look", ["hu", "pictures"])
def test_phantoms_fill_the_frame_as_stores_do_and_differ(look: Literal["hu", "pictures"]) -> None:
    data = public_start.phantoms(Plan(), look, 64, 0)
    assert data.hu.shape == (64, 64, 64)
    assert len(np.unique(data.patient)) == 8
    unit = data.batch(torch.arange(64))[0][:, 0]
    assert unit.min() >= -1.0
    assert unit.max() <= 1.0
    of_patients = unit.view(8, 8, -1).mean(1)
    assert torch.pdist(of_patients).min() > 0.05 * of_patients.std() * 64
    if look == "hu":
        assert data.values == "hu"
        assert data.field_mm == 360.0
        # Air around the body, soft tissue and lung are all there, in HU.
        assert ((data.hu < -950).mean(), (abs(data.hu - 40) < 150).mean()) > (0.2, 0.2)
        assert (data.hu[:, :, 0] < -900).mean() > 0.8
    else:
        assert data.values == "grey"
        assert data.hu.min() >= 0
        assert data.hu.max() <= 255
        # As `prepare` keeps pictures: proportions kept, black above and below; the lungs reach near both sides.
        inside = data.hu > 20
        heights, breadths = inside.any(2).sum(1), inside.any(1).sum(1)
        assert 36 < np.median(heights) < 56
        assert np.median(breadths) > 60
        black_above, black_below = inside.any(2).argmax(1), inside.any(2)[:, ::-1].argmax(1)
        assert np.median(abs(black_above - black_below)) <= 1
        lung = inside & (data.hu < 128)
        assert np.median(lung[:, 24:40].any(1).argmax(1)) < 12


def test_phantoms_are_healthy_and_of_no_hospital_of_the_demo(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[phantom.Patient] = []

    def draw(rng: np.random.Generator, profile: phantom.HospitalProfile) -> phantom.Patient:
        assert profile.scanner not in {one.scanner for one in phantom.PROFILES}
        seen.append(phantom.draw_patient(rng, profile))
        return seen[-1]

    monkeypatch.setattr(public_start, "draw_patient", draw)
    public_start.phantoms(Plan(model={"size": 16}), "hu", 400, 0)
    assert {one.label for one in seen} == {"healthy"}
    assert 0.2 < np.mean([one.female for one in seen]) < 0.8
    assert np.std([one.habitus.fat_mm for one in seen]) > 5.0


def test_a_plan_with_classes_gets_a_start_without_labels() -> None:
    data = public_start.phantoms(Plan(model={"size": 16, "classes": ["healthy", "disease"]}), "hu", 12, 0)
    assert data.label is not None
    assert data.label.tolist() == [NO_LABEL] * 12


def test_ct_phantom_comes_with_the_package_and_denoises_phantoms_it_never_saw() -> None:
    made = load_model(CT_PHANTOM)
    assert CT_PHANTOM.stat().st_size < 1_200_000
    assert public_start.builtin(made.sha256) == CT_PHANTOM
    assert public_start.builtin("0" * 64) is None
    by_plan = public_start.plan_of_start(Plan(model={"preset": "tiny"}))
    unbounded = AggregationPlan(max_norm_over_median=None)  # it was made before there were bounds
    assert made.plan == by_plan.model_copy(update={"aggregation": unbounded})
    network = DiffusionNetwork(made.plan.model)
    network.load_state_dict(made.weights)
    x0 = public_start.phantoms(made.plan, "hu", 32, seed=99).batch(torch.arange(32))[0]
    noise = torch.randn(x0.shape, generator=derived_generator("test", 0))
    abar = 0.5
    t = torch.full((32,), 494)  # where the cosine schedule holds half signal, half noise
    with torch.no_grad():
        guess = network(abar**0.5 * x0 + (1 - abar) ** 0.5 * noise, t)
    assert (guess - x0).square().mean() < 0.15 * x0.var()  # 0.09; a network that did not learn: 1 and more


def test_the_template_starts_from_ct_phantom(repository: Path) -> None:
    config = repository / "jobs" / "ct_fedavg_dp" / "app_client" / "config" / "config_fed_client.json"
    plan = json.loads(config.read_text())["plan"]
    assert public_start.builtin(plan["init_sha256"]) == CT_PHANTOM
    start = load_model(CT_PHANTOM).plan
    assert start.model == Plan(model=plan["model"]).model
    assert start.window == plan.get("window", "full")
