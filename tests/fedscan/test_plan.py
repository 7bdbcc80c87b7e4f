"""The plan: strict, frozen, one canonical form, and errors that say what to do."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ValidationError

from fedscan.cli import plan_fields
from fedscan.plan import PRESETS, Plan, Submission


def test_the_canonical_form_makes_the_same_plan_with_the_same_digest() -> None:
    plan = Plan.model_validate({"model": {"preset": "tiny", "classes": ["a", "b"]}, "training": {"local_steps": 5}})
    again = Plan.model_validate_json(plan.canonical_json())
    assert again == plan
    assert again.digest == plan.digest
    assert json.loads(plan.canonical_json())["model"]["unet"]["channels"] == list(PRESETS["tiny"].channels)


@given(st.integers(1, 100), st.floats(1e-6, 0.1), st.integers(0, 2**63 - 1))
def test_every_change_of_value_changes_the_digest_and_survives_json(rounds: int, rate: float, seed: int) -> None:
    plan = Plan.model_validate({"rounds": rounds, "seed": seed, "training": {"learning_rate": rate}})
    assert Plan.model_validate_json(plan.canonical_json()).digest == plan.digest
    other = plan.model_copy(update={"rounds": rounds + 1})
    assert other.digest != plan.digest


def test_key_order_and_integer_floats_do_not_change_the_digest() -> None:
    one = Plan.model_validate_json('{"rounds": 3, "training": {"gradient_clip_norm": 1, "local_steps": 2}}')
    two = Plan.model_validate_json('{"training": {"local_steps": 2, "gradient_clip_norm": 1.0}, "rounds": 3}')
    assert one.digest == two.digest


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        ({"roundz": 3}, ["roundz", "Extra inputs"]),
        ({"rounds": "3"}, ["rounds", "valid integer"]),
        ({"rounds": True}, ["rounds", "valid integer"]),
        ({"training": {"learning_rate": float("inf")}}, ["learning_rate", "finite"]),
        ({"training": {"learning_rate": float("nan")}}, ["learning_rate", "finite"]),
        ({"training": {"local_epochs": 1, "local_steps": 2}}, ["local_epochs=1", "local_steps=2", "set one to null"]),
        ({"min_responses": 3, "clients_per_round": 2}, ["min_responses=3", "clients_per_round=2", "lower"]),
        ({"model": {"preset": None}}, ["neither", "preset"]),
        ({"model": {"size": 62}}, ["multiple of", "8", "62"]),
        ({"model": {"classes": ["a", "a"]}}, ["different"]),
        ({"diffusion": {"prediction": "epsilon"}}, ["epsilon", "cosine", "v_prediction"]),
        (
            {"model": {"preset": "tiny", "unet": {"channels": [32, 64], "attention_levels": [False, True]}}},
            ["not that of preset 'tiny'", "null"],
        ),
        (
            {"model": {"preset": None, "unet": {"channels": [30, 64], "attention_levels": [False, True]}}},
            ["norm_num_groups=8", "[30]"],
        ),
        (
            {"model": {"preset": None, "unet": {"channels": [16, 48], "attention_levels": [False, False]}}},
            ["num_head_channels=32", "[48]"],
        ),
        (
            {"model": {"preset": None, "unet": {"channels": [8, 32], "attention_levels": [False, False]}}},
            ["one channel a group", "[8]", "fewer groups"],
        ),
        ({"init_sha256": "ABC"}, ["64 lower-case"]),
        ({"model": {"classes": ["a", "\x1b[2Jb"]}}, ["printable characters", r"'\x1b[2Jb'"]),
        ({"model": {"classes": ["a\nNot synthetic"]}}, ["printable characters"]),
        ({"model": {"classes": ["a" * 201]}}, ["at most 200"]),
        ({"model": {"classes": [str(k) for k in range(10_001)]}}, ["at most 10000 items"]),
    ],
)
def test_errors_name_got_wanted_and_cure(raw: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(ValidationError) as error:
        Plan.model_validate(raw)
    for word in words:
        assert word in str(error.value)


PRIVATE: dict[str, Any] = {
    "weighting": "uniform",
    "training": {"local_steps": 5},
    "init_sha256": "0" * 64,
    "privacy": {
        "noise_multiplier": 2.0,
        "delta": 1e-5,
        "sites": {"a": {"sample_rate": 0.25, "expected_patients_per_step": 125.0}},
    },
}


def private(**privacy: object) -> dict[str, Any]:
    return PRIVATE | {"privacy": PRIVATE["privacy"] | privacy}


def test_a_private_plan_knows_its_sites_sizes_and_its_rows() -> None:
    plan = Plan.model_validate(private(slices_per_patient=4, noise_draws_per_slice=2))
    assert plan.privacy is not None
    assert plan.privacy.sites["a"].declared_patients == 500.0
    assert plan.privacy.rows_per_patient == 8
    assert Plan.model_validate_json(plan.canonical_json()).digest == plan.digest


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        (PRIVATE | {"training": {"local_epochs": 1}}, ["local_steps", "number of slices"]),
        (PRIVATE | {"training": {}}, ["local_steps"]),
        (PRIVATE | {"weighting": "examples"}, ["'examples'", "count of the data", "uniform or declared"]),
        (PRIVATE | {"weighting": "patients"}, ["'patients'", "uniform or declared"]),
        (PRIVATE | {"init_sha256": None}, ["from scratch", "public model", "privacy.from_scratch=true"]),
        ({"weighting": "declared"}, ["needs privacy.sites"]),
        ({"aggregation": {"method": "median"}}, ["'median'", "one voice", "'uniform'"]),
        (PRIVATE | {"round_timeout_s": 60.0}, ["answer_after_s=60", "round_timeout_s=60", "late"]),
        (private(slices_per_patient=256, noise_draws_per_slice=8), ["at most 1024", "2048"]),
        (private(noise_multiplier=0), ["noise_multiplier", "greater than 0"]),
        (private(noise_multiplier=float("inf")), ["noise_multiplier", "finite"]),
        (private(noise_multiplier=None), ["noise_multiplier"]),
        (private(delta=0.02), ["delta", "less than or equal to 0.01"]),
        (private(delta=0), ["delta", "greater than 0"]),
        (private(target_epsilon=-1), ["target_epsilon"]),
        (private(unit="slice"), ["unit", "'patient' or 'image'"]),
        (private(sites={}), ["sites", "at least 1"]),
        (private(sites={"../a": PRIVATE["privacy"]["sites"]["a"]}), ["sites", "pattern"]),
        (private(sites={"a": {"sample_rate": 1.1, "expected_patients_per_step": 5}}), ["sample_rate", "less than"]),
        (private(sites={"a": {"sample_rate": 0.5, "expected_patients_per_step": 0.4}}), ["less than one patient"]),
        (private(sites={"a": {"sample_rate": 0.5}}), ["expected_patients_per_step", "required"]),
        (private(epsilon=3), ["epsilon", "Extra inputs"]),
    ],
)
def test_a_private_plan_that_cannot_hold_is_refused(raw: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(ValidationError) as error:
        Plan.model_validate(raw)
    for word in words:
        assert word in str(error.value)


def test_every_constant_of_privacy_changes_the_digest() -> None:
    digest = Plan.model_validate(PRIVATE).digest
    changes: list[dict[str, Any]] = [
        {"noise_multiplier": 2.1},
        {"delta": 1e-6},
        {"max_grad_norm": 0.2},
        {"unit": "image"},
        {"sites": {"a": {"sample_rate": 0.2, "expected_patients_per_step": 125.0}}},
        {"sites": {"a": {"sample_rate": 0.25, "expected_patients_per_step": 124.0}}},
        {"slices_per_patient": 2},
        {"answer_after_s": 61.0},
    ]
    assert len({digest, *(Plan.model_validate(private(**change)).digest for change in changes)}) == 1 + len(changes)


def test_infinities_are_refused_in_json_too() -> None:
    with pytest.raises(ValidationError):
        Plan.model_validate_json('{"training": {"learning_rate": 1e999}}')
    with pytest.raises(ValidationError):
        Plan.model_validate_json('{"round_timeout_s": Infinity}')


def test_a_plan_is_frozen_in_every_part() -> None:
    plan = Plan()
    with pytest.raises(ValidationError, match="frozen"):
        plan.rounds = 3  # type: ignore[misc]
    with pytest.raises(ValidationError, match="frozen"):
        plan.training.batch_size = 1  # type: ignore[misc]


def test_every_field_is_documented() -> None:
    def undocumented(model: type[BaseModel], prefix: str = "") -> list[str]:
        found = []
        for name, field in model.model_fields.items():
            if not field.description:
                found.append(prefix + name)
            for part in (field.annotation, *get_args(field.annotation)):
                if isinstance(part, type) and issubclass(part, BaseModel):
                    found += undocumented(part, f"{prefix}{name}.")
        return found

    assert undocumented(Plan) == []
    assert undocumented(Submission) == []


def test_fields_of_each_site_are_listed_under_a_name_of_ones_own() -> None:
    found = {name: (default, allowed) for name, default, allowed, _ in plan_fields.rows()}
    assert found["privacy.sites.NAME.sample_rate"] == ("required", "> 0.0, <= 1.0")
    assert found["privacy"][0] == "null"
    assert found["privacy.noise_multiplier"][0] == "required"


def test_a_new_submission_of_a_run_keeps_the_run_and_takes_a_new_nonce() -> None:
    first = Submission.new()
    second = Submission.new(run_id=first.run_id, start_round=4)
    assert second.run_id == first.run_id
    assert second.nonce != first.nonce
    assert second.start_round == 4
    assert not first.is_expired()
    assert first.is_expired(datetime.now(UTC) + timedelta(days=31))


def test_expiry_must_be_utc() -> None:
    raw = Submission.new().model_dump() | {"expires": "2030-01-01T00:00:00+02:00"}
    with pytest.raises(ValidationError, match="UTC"):
        Submission.model_validate(raw)
