from __future__ import annotations

import hashlib
import json
import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from fedscan.plan import Plan
from fedscan.training import model_file, tensor_file
from fedscan.training.model_file import ModelFileError, load_model, save_model
from fedscan.training.tensor_file import TensorFileError, load_tensors, save_tensors
from fedscan.training.weights import digest, initial_weights


@pytest.fixture
def plan(make_plan: Callable[..., Plan]) -> Plan:
    return make_plan(classes=("a", "b"), window="lung")


@pytest.fixture
def saved(tmp_path: Path, plan: Plan) -> Path:
    save_model(tmp_path / "m.safetensors", initial_weights(plan), plan, {"sites": {"a": 3}})
    return tmp_path / "m.safetensors"


def test_a_model_comes_back_alone_with_plan_and_provenance(saved: Path, plan: Plan) -> None:
    model = load_model(saved)
    assert digest(model.weights) == digest(initial_weights(plan))
    assert model.plan == plan
    assert model.provenance == {"sites": {"a": 3}}
    assert model.sha256 == hashlib.sha256(saved.read_bytes()).hexdigest()
    assert [p.name for p in saved.parent.iterdir()] == ["m.safetensors"]


def test_a_model_of_the_version_before_is_read_and_still_held_to_its_own_digest(saved: Path, plan: Plan) -> None:
    tensors, metadata = load_tensors(saved)
    old = json.loads(metadata["plan"]) | {"plan_version": 2}
    del old["aggregation"]
    text = json.dumps(old, sort_keys=True, separators=(",", ":"))
    metadata |= {"plan": text, "plan_digest": hashlib.sha256(text.encode()).hexdigest()}
    save_tensors(saved, tensors, metadata)
    loaded = load_model(saved).plan
    assert loaded.model_copy(update={"aggregation": plan.aggregation}) == plan
    assert loaded.aggregation.max_norm_over_median is None, "it was trained without a bound"
    save_tensors(saved, tensors, metadata | {"plan": text.replace('"rounds":', '"rounds":1')})
    with pytest.raises(ModelFileError, match="not the one whose digest"):
        load_model(saved)


def test_the_same_model_is_the_same_bytes_and_any_safetensors_reader_reads_it(saved: Path, plan: Plan) -> None:
    before = saved.read_bytes()
    save_model(saved, initial_weights(plan), plan, {"sites": {"a": 3}})
    assert saved.read_bytes() == before
    with safe_open(saved, "pt") as file:
        metadata = file.metadata()
        assert sorted(file.keys()) == sorted(initial_weights(plan))
    assert metadata["plan_digest"] == plan.digest
    assert Plan.model_validate_json(metadata["plan"]) == plan
    assert "-1350 to 150 HU" in metadata["note"]
    assert "can never show" in metadata["note"]


def test_weights_that_do_not_fit_are_not_saved_and_not_loaded(tmp_path: Path, saved: Path, plan: Plan) -> None:
    weights = initial_weights(plan)
    name = next(iter(weights))
    for broken in (
        {**weights, name: weights[name].double()},
        {**weights, name: weights[name] * float("nan")},
        {k: v for k, v in weights.items() if k != name},
    ):
        with pytest.raises(ModelFileError, match=f"do not fit the plan's network.*{name}.*use the plan"):
            save_model(tmp_path / "no.safetensors", broken, plan, {})
        _, metadata = load_tensors(saved)
        save_tensors(tmp_path / "bad.safetensors", broken, metadata)
        with pytest.raises(ModelFileError, match="do not fit"):
            load_model(tmp_path / "bad.safetensors")
    assert not (tmp_path / "no.safetensors").exists()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"format": "other"}, "format: got 'other 1', wanted 'fedscan-model 1'"),
        ({"format_version": "2"}, "got 'fedscan-model 2'"),
        ({"plan": "{"}, "plan is malformed"),
        ({"plan": '{"plan_version":1,"rounds":Infinity}'}, "plan is malformed"),
        ({"plan": "{}"}, "not the one whose digest"),
        ({"plan_digest": "0" * 64}, "not the one whose digest"),
        ({"provenance": "[]"}, "provenance"),
        ({"provenance": "[" * 100_000}, "provenance"),
    ],
)
def test_hostile_metadata_are_refused(saved: Path, changes: dict[str, str], said: str) -> None:
    tensors, metadata = load_tensors(saved)
    save_tensors(saved, tensors, metadata | changes)
    with pytest.raises(ModelFileError, match=said):
        load_model(saved)


def _file(header: bytes, data: bytes = b"") -> bytes:
    return len(header).to_bytes(8, "little") + header + data


HOSTILE = {
    "empty": b"",
    "short": b"\x10\x00",
    "header longer than the file": (2**40).to_bytes(8, "little") + b"{}",
    "no JSON": (4).to_bytes(8, "little") + b"nope",
    "a list": (2).to_bytes(8, "little") + b"[]",
    "a pickle": b"\x80\x04\x95" + b"\x00" * 100,
    "deep": (100_000).to_bytes(8, "little") + b"[" * 100_000,
    "metadata of a number": (24).to_bytes(8, "little") + b'{"__metadata__":{"a":1}}',
    "data missing": _file(b'{"a":{"dtype":"F32","shape":[1000],"data_offsets":[0,4000]}}'),
    "shape of another size": _file(b'{"a":{"dtype":"F32","shape":[4],"data_offsets":[0,8]}}', bytes(8)),
    "unknown type": _file(b'{"a":{"dtype":"X9","shape":[2],"data_offsets":[0,8]}}', bytes(8)),
}


@pytest.mark.parametrize("content", HOSTILE.values(), ids=HOSTILE)
def test_hostile_bytes_are_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(content)
    with pytest.raises(TensorFileError):
        load_tensors(path)
    with pytest.raises(ModelFileError, match="no model file"):
        load_model(path)


def test_a_file_cut_anywhere_is_refused(saved: Path) -> None:
    whole = saved.read_bytes()
    for length in range(0, len(whole), len(whole) // 40):
        saved.write_bytes(whole[:length])
        with pytest.raises(ModelFileError):
            load_model(saved)


def test_a_file_that_is_too_large_is_not_read(saved: Path) -> None:
    with pytest.raises(ModelFileError, match="larger than the 100 that"):
        load_model(saved, max_bytes=100)
    with pytest.raises(OSError, match="No such file"):
        load_model(saved.with_name("missing"))


def test_tensors_of_all_types_come_back_bit_for_bit_and_private(tmp_path: Path) -> None:
    tensors = {
        "f64": torch.randn(3, dtype=torch.float64),
        "f32": torch.randn(2, 3, 4, 4).contiguous(memory_format=torch.channels_last),
        "bf16": torch.randn(5, dtype=torch.bfloat16),
        "f16": torch.randn(5).half(),
        "i64": torch.tensor(2**60),
        "bool": torch.tensor([True, False, True]),
        "none": torch.empty(0, 4),
        "part": torch.arange(10)[::2],
    }
    path = tmp_path / "t.safetensors"
    save_tensors(path, tensors, {"b": "2", "a": "1"})
    back, metadata = load_tensors(path)
    assert metadata == {"a": "1", "b": "2"}
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    for name, tensor in tensors.items():
        assert back[name].dtype == tensor.dtype
        assert torch.equal(back[name], tensor)
    back["f32"].add_(1)  # memory of its own, not the file's
    assert torch.equal(load_tensors(path)[0]["f32"], tensors["f32"])


def test_a_type_that_the_format_lacks_is_an_error_and_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "t.safetensors"
    save_tensors(path, {"a": torch.ones(1)}, {})
    before = path.read_bytes()
    with pytest.raises(TensorFileError, match="complex64"):
        save_tensors(path, {"a": torch.ones(1, dtype=torch.complex64)}, {})
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["t.safetensors"]


def test_leftovers_of_killed_writers_are_cleared(tmp_path: Path) -> None:
    for name in (".t.safetensors.123.part", ".u.safetensors.123.part", "t.safetensors"):
        (tmp_path / name).touch()
    tensor_file.drop_leftovers(tmp_path, "t.safetensors")
    assert sorted(os.listdir(tmp_path)) == [".u.safetensors.123.part", "t.safetensors"]


def test_the_note_speaks_of_every_window(make_plan: Callable[..., Plan]) -> None:
    notes = {name: model_file.window_note(make_plan(window=name)) for name in ("full", "lung", "mediastinum", "bone")}
    assert "-1000 to 1000 HU" in notes["full"]
    assert "-160 to 240 HU" in notes["mediastinum"]
    assert "-500 to 1300 HU" in notes["bone"]
    json.dumps(notes)
