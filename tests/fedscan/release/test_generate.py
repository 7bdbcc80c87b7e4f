"""Drawing slices from a model file: reproducible, resumable, labelled, with a card that states the limits."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from fedscan.diffusion.network import build_network
from fedscan.diffusion.samplers import Settings
from fedscan.plan import ModelPlan, Plan, UNet
from fedscan.release.generate import PORTION, GenerateError, _class_shares, generate
from fedscan.training.model_file import load_model, save_model

SETTINGS = Settings(steps=3)
SHARES = {"disease": 0.25, "healthy": 0.75}


def _model(path: Path, field_mm: float | None = 320.0, **plan_fields: object) -> Path:
    """A network of random weights, small enough for a test: 16 pixels a side."""
    unet = UNet(channels=(8, 8), attention_levels=(False, False), norm_num_groups=2, num_head_channels=8)
    classes = plan_fields.pop("classes", ("disease", "healthy"))
    model = ModelPlan(preset=None, unet=unet, size=16, classes=classes)
    plan = Plan.model_validate({"model": model, **plan_fields})
    network = build_network(plan.model, torch.Generator().manual_seed(0))
    generator = torch.Generator().manual_seed(1)
    weights = {n: (w + 0.1 * torch.randn(w.shape, generator=generator)) for n, w in network.state_dict().items()}
    provenance = {"unit": "patient", "field_mm": field_mm, "class_shares": SHARES, "sites": {"north": {"rounds": 2}}}
    save_model(path, weights, plan, provenance)
    return path


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _model(tmp_path_factory.mktemp("model") / "model.safetensors")


def _digests(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}


def test_the_same_seed_gives_the_same_bytes_and_another_gives_others(model: Path, tmp_path: Path) -> None:
    formats = ("png", "npz", "nifti", "dicom")
    first = generate(model, tmp_path / "a", 5, formats, seed=1, settings=SETTINGS)
    generate(model, tmp_path / "b", 5, formats, seed=1, settings=SETTINGS)
    other = generate(model, tmp_path / "c", 5, formats, seed=2, settings=SETTINGS)
    assert _digests(tmp_path / "a") == _digests(tmp_path / "b")
    assert first.hu.shape == (5, 16, 16)
    assert first.hu.dtype == np.int16
    assert all((one != two).any() for one, two in zip(first.hu, other.hu, strict=True))
    assert len({plane.tobytes() for plane in first.hu}) == 5
    assert set(first.files) == set(_digests(tmp_path / "a"))


def test_a_slice_does_not_depend_on_how_many_are_drawn(model: Path, tmp_path: Path) -> None:
    few = generate(model, tmp_path / "few", 3, ("npz",), settings=SETTINGS)
    many = generate(model, tmp_path / "many", PORTION + 5, ("npz",), settings=SETTINGS)
    np.testing.assert_array_equal(few.hu, many.hu[:3])
    assert len({plane.tobytes() for plane in many.hu}) == len(many.hu)
    with np.load(tmp_path / "few" / "slices.npz") as a, np.load(tmp_path / "many" / "slices.npz") as b:
        assert a["label"].tolist() == b["label"][:3].tolist()


def test_labels_come_in_their_training_shares(model: Path, tmp_path: Path) -> None:
    made = generate(model, tmp_path / "out", 3 * PORTION, ("npz",), settings=Settings(steps=1))
    assert made.card["labels"]["disease"] == pytest.approx(0.25 * 3 * PORTION, abs=1)
    only = generate(model, tmp_path / "one", 4, ("npz",), label="healthy", settings=SETTINGS)
    assert only.card["labels"] == {"healthy": 4}
    ill = generate(model, tmp_path / "ill", 4, ("npz",), label="disease", settings=SETTINGS)
    assert (ill.hu != only.hu).any()


def test_a_killed_draw_is_gone_on_with_to_the_same_bytes(model: Path, tmp_path: Path) -> None:
    class Killed(BaseException):
        pass

    def stop(done: int, total: int) -> None:
        if done == 2 * 2 * 3 + 1:  # two portions of two batches of three evaluations, and the next one's first
            raise Killed

    whole = generate(model, tmp_path / "whole", 4 * PORTION, ("npz",), settings=SETTINGS)
    with pytest.raises(Killed):
        generate(model, tmp_path / "out", 4 * PORTION, ("npz",), settings=SETTINGS, progress=stop)
    assert not (tmp_path / "out").exists()
    evaluations: list[int] = []
    again = generate(
        model,
        tmp_path / "out",
        4 * PORTION,
        ("npz",),
        settings=SETTINGS,
        progress=lambda done, _: evaluations.append(done),
    )
    np.testing.assert_array_equal(whole.hu, again.hu)
    assert _digests(tmp_path / "whole") == _digests(tmp_path / "out")
    # Two portions were kept: they are read back, and cost no evaluation.
    assert evaluations[:3] == [6, 12, 13]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "whole"]


def test_another_request_does_not_take_over_what_was_left(model: Path, tmp_path: Path) -> None:
    class Killed(BaseException):
        pass

    def stop(done: int, total: int) -> None:
        if done == total:
            raise Killed

    with pytest.raises(Killed):
        generate(model, tmp_path / "out", PORTION + 1, ("npz",), seed=1, settings=SETTINGS, progress=stop)
    fresh = generate(model, tmp_path / "fresh", PORTION + 1, ("npz",), seed=2, settings=SETTINGS)
    again = generate(model, tmp_path / "out", PORTION + 1, ("npz",), seed=2, settings=SETTINGS)
    np.testing.assert_array_equal(again.hu, fresh.hu)


def test_the_card_says_what_the_slices_are_and_can_never_show(model: Path, tmp_path: Path) -> None:
    generate(model, tmp_path / "out", 2, ("png",), seed=7, settings=SETTINGS)
    card = json.loads((tmp_path / "out" / "card.json").read_text())
    plan = Plan.model_validate_json(json.dumps(card["plan"]))
    assert card["synthetic"] is True
    assert card["plan_digest"] == plan.digest
    assert card["window"] == {"name": "full", "lowest": -1000.0, "highest": 1000.0}
    assert "can never show" in card["limits"]
    assert card["unit"] == "patient"
    assert card["spacing_mm"] == 320.0 / 16
    assert card["model_sha256"] == hashlib.sha256(model.read_bytes()).hexdigest()
    assert card["request"]["seed"] == 7
    assert card["request"]["sampler"] == "sa_solver"
    assert card["request"]["steps"] == 3
    assert card["provenance"]["sites"] == {"north": {"rounds": 2}}
    readme = (tmp_path / "out" / "README.txt").read_text()
    assert "SYNTHETIC" in readme
    assert "-1000 to 1000" in readme


def test_narrow_windows_bound_the_values(tmp_path: Path) -> None:
    narrow = _model(tmp_path / "m.safetensors", window="mediastinum", classes=())
    made = generate(narrow, tmp_path / "out", 4, ("npz",), settings=SETTINGS)
    assert made.hu.min() >= -160
    assert made.hu.max() <= 240
    assert made.card["labels"] == {"none": 4}


def test_pictures_are_drawn_as_grey_levels_without_scale(model: Path, tmp_path: Path) -> None:
    made = generate(model, tmp_path / "out", 4, ("npz", "png"), settings=SETTINGS, values="grey")
    assert 0 <= made.hu.min() < made.hu.max() <= 255
    assert made.card["spacing_mm"] is None
    with pytest.raises(GenerateError, match="choose format png or npz"):
        generate(model, tmp_path / "ct", 4, ("dicom",), settings=SETTINGS, values="grey")
    assert not (tmp_path / "ct").exists()


def test_a_model_of_different_fields_has_no_scale_until_told(tmp_path: Path) -> None:
    mixed = _model(tmp_path / "m.safetensors", field_mm=None)
    assert generate(mixed, tmp_path / "png", 1, settings=SETTINGS).card["spacing_mm"] is None
    with pytest.raises(GenerateError, match="say which with --field-mm"):
        generate(mixed, tmp_path / "ct", 1, ("dicom",), settings=SETTINGS)
    told = generate(mixed, tmp_path / "told", 1, ("dicom",), settings=SETTINGS, field_mm=400.0)
    assert told.card["spacing_mm"] == 25.0


def test_requests_that_cannot_be_met_say_why(model: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(GenerateError, match="the model's classes are disease, healthy"):
        generate(model, out, 1, label="other")
    with pytest.raises(GenerateError, match="count must be at least 1"):
        generate(model, out, 0)
    with pytest.raises(GenerateError, match="format must be one of"):
        generate(model, out, 1, ())
    with pytest.raises(GenerateError, match="field_mm must lie in"):
        generate(model, out, 1, field_mm=-1.0)
    out.mkdir()
    (out / "precious").write_text("x")
    with pytest.raises(GenerateError, match="not an empty folder"):
        generate(model, out, 1)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize(
    "told", [{"healthy": 10**400}, {"healthy": [1]}, {"healthy": "much"}, {"healthy": -(10**400)}, "no", 7]
)
def test_shares_that_are_no_numbers_become_equal_ones(model: Path, told: object) -> None:
    loaded = load_model(model)
    strange = replace(loaded, provenance={"class_shares": told})
    shares = _class_shares(strange)
    assert shares is not None
    assert sum(shares.values()) == pytest.approx(1.0)
    assert all(0 <= share <= 1 for share in shares.values())


@pytest.mark.parametrize(
    "told",
    [
        {"sites": {"\x1b[2Jnorth\nPrivacy: perfect": {}}, "privacy": "\x1b]0;x\x07none\nPlan: another", "unit": ["x"]},
        {"sites": 5, "privacy": 7, "unit": {}},
        {"sites": ["a", 1]},
    ],
)
def test_a_provenance_of_ill_will_writes_its_own_lines_alone(
    model: Path, told: dict[str, object], tmp_path: Path
) -> None:
    """A model's file comes from a server, or from anybody: what it says stands where it belongs, or nowhere."""
    loaded = load_model(model)
    path = tmp_path / "model.safetensors"
    save_model(path, loaded.weights, loaded.plan, told)
    generate(path, tmp_path / "out", 1, ("png",), seed=1, settings=SETTINGS)
    readme = (tmp_path / "out" / "README.txt").read_text()
    assert all(c.isprintable() or c == "\n" for c in readme)
    lines = [line.partition(":")[0] for line in readme.splitlines()]
    assert lines.count("Privacy") == lines.count("Plan") == lines.count("Sites that took part") == 1
