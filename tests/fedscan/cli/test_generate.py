"""`fedscan generate`: its options reach the draw, its errors are one line, and its help needs no torch."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch
import typer
from typer.testing import CliRunner

from fedscan.cli.generate import FormatName, SamplerChoice, VarianceChoice, generate
from fedscan.diffusion.network import build_network
from fedscan.diffusion.samplers import SamplerName, Settings, Variance
from fedscan.plan import ModelPlan, Plan, UNet
from fedscan.release.formats import FORMATS
from fedscan.training.model_file import save_model


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    unet = UNet(channels=(8, 8), attention_levels=(False, False), norm_num_groups=2, num_head_channels=8)
    plan = Plan(model=ModelPlan(preset=None, unet=unet, size=16, classes=("a", "b")))
    path = tmp_path_factory.mktemp("model") / "model.safetensors"
    save_model(path, build_network(plan.model, torch.Generator().manual_seed(0)).state_dict(), plan, {})
    return path


def _run(*arguments: object) -> tuple[int, str]:
    app = typer.Typer()
    app.command()(generate)
    result = CliRunner().invoke(app, [str(a) for a in arguments])
    return result.exit_code, result.output


def test_options_reach_the_draw(model: Path, tmp_path: Path) -> None:
    options = "--count 3 --format npz --format png --label b --sampler ddpm --steps 4 --seed 9 --guidance 0.5 --no-clip"
    code, output = _run(model, "--out", tmp_path / "out", *options.split(), "--variance", "beta", "--json")
    assert code == 0, output
    card = json.loads(output)
    assert card["labels"] == {"b": 3}
    wanted = {"sampler": "ddpm", "steps": 4, "seed": 9, "guidance": 0.5, "clip": False, "variance": "beta"}
    assert {key: card["request"][key] for key in wanted} == wanted
    assert np.load(tmp_path / "out" / "slices.npz")["hu"].shape == (3, 16, 16)
    assert (tmp_path / "out" / "grid.png").is_file()


def test_errors_are_one_line_and_status_1(model: Path, tmp_path: Path) -> None:
    code, output = _run(model, "--out", tmp_path / "out", "--label", "c", "--steps", "2")
    assert code == 1
    assert "the model's classes are a, b" in output
    assert _run(tmp_path / "absent", "--out", tmp_path / "out")[0] == 1
    code, output = _run(model.parent, "--out", tmp_path / "out")
    assert code == 1
    assert "is a folder: name the model file" in output
    (tmp_path / "broken").write_bytes(b"no model")
    code, output = _run(tmp_path / "broken", "--out", tmp_path / "out")
    assert code == 1
    assert "Traceback" not in output


def test_choices_are_the_rooms_own() -> None:
    assert {c.value for c in SamplerChoice} == set(get_args(SamplerName))
    assert {c.value for c in VarianceChoice} == set(get_args(Variance))
    assert {c.value for c in FormatName} == set(FORMATS)
    assert SamplerChoice(Settings().sampler) is SamplerChoice.SA_SOLVER


def test_help_loads_no_torch() -> None:
    code = (
        "import sys, typer; from fedscan.cli.generate import generate; app = typer.Typer(); app.command()(generate);"
        "app(['--help'], standalone_mode=False); sys.exit('torch' in sys.modules or 'pydicom' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False, capture_output=True).returncode == 0
