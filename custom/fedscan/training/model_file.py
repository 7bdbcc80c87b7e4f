"""A model in one file: weights, the plan they fit and where they come from. It loads with no other file."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from ctslices.window import window_of
from fedscan.plan import Plan
from fedscan.training.tensor_file import (
    MAX_FILE_BYTES,
    TensorFileError,
    load_tensors,
    parse_tensors,
    read_bounded,
    save_tensors,
)
from fedscan.training.weights import Weights, check_update, shapes_of

__all__ = [
    "ModelFile",
    "ModelFileError",
    "TensorFileError",
    "load_model",
    "load_tensors",
    "save_model",
    "save_tensors",
    "window_note",
]

FORMAT = "fedscan-model"
FORMAT_VERSION = "1"
MAX_METADATA_CHARACTERS = 4 * 2**20


class ModelFileError(ValueError):
    """A file that is no model of ours, or tensors that do not fit the plan: got, wanted, cure."""


@dataclass(frozen=True)
class ModelFile:
    """What a model file holds, checked."""

    weights: Weights
    """float32, names and shapes of the plan's network."""
    plan: Plan
    provenance: dict[str, Any]
    sha256: str
    """Of the file's bytes: the model's name."""


def save_model(path: Path, weights: Weights, plan: Plan, provenance: dict[str, Any]) -> None:
    """Writes the model whole or not at all, mode 0600: it is its owner's until it is released.

    Raises ModelFileError where `weights` do not fit `plan`.
    """
    _check_fit(weights, plan)
    metadata = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "plan": plan.canonical_json(),
        "plan_digest": plan.digest,
        "provenance": json.dumps(provenance, sort_keys=True, separators=(",", ":"), allow_nan=False),
        "note": window_note(plan),
    }
    save_tensors(path, weights, metadata, mode=0o600)


def load_model(path: Path, max_bytes: int = MAX_FILE_BYTES) -> ModelFile:
    """The checked model. Raises OSError, or ModelFileError for anything but a whole model file of this format."""
    try:
        data = read_bounded(path, max_bytes)
        tensors, metadata = parse_tensors(data)
    except TensorFileError as error:
        raise ModelFileError(f"no model file: {error}") from None
    plan = _plan(metadata)
    _check_fit(tensors, plan)
    return ModelFile(tensors, plan, _provenance(metadata), hashlib.sha256(data).hexdigest())


def window_note(plan: Plan) -> str:
    """What this model can never say, in plain words, for whoever opens the file."""
    window = window_of(plan.window)
    return (
        f"Synthetic slices of this model lie in {window.low:.0f} to {window.high:.0f} HU (window {plan.window!r}): "
        "whatever was lower or higher in training became that end, so the model can never show it. "
        "If it was trained on pictures without HU, its values are grey levels and no HU at all. "
        "It draws single slices and knows no patient, no scale beyond the stores' field, and no findings but those "
        "it was shown. Not for diagnosis."
    )


def _plan(metadata: dict[str, str]) -> Plan:
    got = (metadata.get("format"), metadata.get("format_version"))
    if got != (FORMAT, FORMAT_VERSION):
        shown = " ".join(str(part)[:40] for part in got)
        raise ModelFileError(
            f"format: got {shown!r}, wanted '{FORMAT} {FORMAT_VERSION}': take a model.safetensors that fedscan wrote, "
            "or the fedscan that wrote this one"
        )
    try:
        plan = Plan.of_model_file(text := _text(metadata, "plan"))
    except ValidationError as error:
        fields = ", ".join(sorted({".".join(map(str, item["loc"])) or "(all)" for item in error.errors()}))
        raise ModelFileError(f"its plan is malformed in: {fields[:200]}") from None
    if hashlib.sha256(text.encode()).hexdigest() != metadata.get("plan_digest"):
        raise ModelFileError("its plan is not the one whose digest it carries: the metadata were changed")
    return plan


def _provenance(metadata: dict[str, str]) -> dict[str, Any]:
    try:
        provenance = json.loads(_text(metadata, "provenance"))
    except (ValueError, RecursionError):
        provenance = None
    if not isinstance(provenance, dict):
        raise ModelFileError("its provenance is no JSON object: take the file that fedscan wrote")
    return provenance


def _text(metadata: dict[str, str], key: str) -> str:
    text = metadata.get(key, "")
    if len(text) > MAX_METADATA_CHARACTERS:
        raise ModelFileError(f"its {key} has {len(text)} characters, at most {MAX_METADATA_CHARACTERS} are taken")
    return text


def _check_fit(weights: Weights, plan: Plan) -> None:
    if reasons := check_update(weights, shapes_of(plan.model)):
        name = plan.model.preset or "its own arguments"
        raise ModelFileError(
            f"weights do not fit the plan's network ({name}): {'; '.join(reasons)}; "
            "use the plan that they were trained with"
        )
