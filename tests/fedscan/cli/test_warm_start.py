from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from fedscan.training import public_start
from fedscan.training.model_file import load_model

Command = Callable[..., tuple[int, str]]


@pytest.fixture
def template(repository: Path, tmp_path: Path) -> Path:
    """jobs/ct_fedavg_dp with pictures of 16 pixels: its network trains fifty steps in a second."""
    path = tmp_path / "template" / "app_client" / "config" / "config_fed_client.json"
    path.parent.mkdir(parents=True)
    config = json.loads((repository / "jobs" / "ct_fedavg_dp" / path.relative_to(tmp_path / "template")).read_text())
    config["plan"]["model"]["size"] = 16
    path.write_text(json.dumps(config))
    return tmp_path / "template"


@pytest.fixture(autouse=True)
def _few_phantoms(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(public_start.make, "__kwdefaults__", {**public_start.make.__kwdefaults__, "slices": 16})


@pytest.mark.parametrize("look", ["hu", "pictures"])
def test_it_writes_a_model_for_the_plan_and_says_what_next(
    template: Path, tmp_path: Path, command: Command, look: str
) -> None:
    out = tmp_path / "start.safetensors"
    code, said = command("warm-start", template, "--out", out, "--steps", 50, "--look", look)
    assert code == 0, said
    made = load_model(out)
    assert made.sha256 in said
    assert "step 50 of 50" in said
    assert f"--init {out}" in said
    assert made.plan.model.size == 16
    assert made.plan.window == "full"
    assert made.provenance["look"] == look
    assert sorted(path.name for path in tmp_path.iterdir()) == ["start.safetensors", "template"]


def test_a_stop_says_how_to_go_on_and_keeps_what_was_done(
    template: Path, tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "start.safetensors"

    def stopped(*_: object, **__: object) -> str:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(public_start, "save_model", stopped)
        code, said = command("warm-start", template, "--out", out, "--steps", 50)
    assert code == 1
    assert "the same command goes on" in said
    assert not out.exists()
    code, said = command("warm-start", template, "--out", out, "--steps", 50)
    assert code == 0
    assert "step 50 of 50" not in said  # its rounds were done


def test_it_overwrites_nothing_and_names_what_is_no_job(template: Path, tmp_path: Path, command: Command) -> None:
    out = tmp_path / "start.safetensors"
    out.write_bytes(b"mine")
    code, said = command("warm-start", template, "--out", out)
    assert (code, out.read_bytes()) == (1, b"mine")
    assert "nothing was overwritten" in said
    code, said = command("warm-start", tmp_path / "absent", "--out", tmp_path / "other")
    assert code == 1
    assert "absent" in said
    assert "cannot be read" in said
