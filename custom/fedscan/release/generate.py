"""From a model file to a folder of synthetic slices, in one format or several, with their card.

A slice depends on the model, the settings, the seed and its own number: asking for more keeps those that were there.
Portions are kept as they are finished, so that a long draw can be gone on with.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ctslices.files import sync_folder, write_whole
from ctslices.window import to_hu
from fedscan.diffusion.network import DiffusionNetwork, build_network
from fedscan.diffusion.samplers import BATCH, Settings, sample, slice_generator, step_times
from fedscan.diffusion.schedule import Schedule
from fedscan.release.card import make_card, write_card
from fedscan.release.dicom import write_dicom
from fedscan.release.draw import Draw, Values
from fedscan.release.formats import FORMATS, Format, write_nifti, write_npz, write_png
from fedscan.training.model_file import ModelFile, load_model

PORTION = 2 * BATCH
"""Slices drawn between two files: what a killed draw may lose."""

DEFAULT_FIELD_MM = 360.0
"""`fedscan prepare`'s default, taken where the model file does not say."""

DEFAULT_SETTINGS = Settings()

_GOLDEN = (math.sqrt(5.0) - 1.0) / 2.0
_WRITERS: dict[Format, Callable[[Draw, Path], list[Path]]] = {
    "png": write_png,
    "npz": write_npz,
    "nifti": write_nifti,
    "dicom": write_dicom,
}

Progress = Callable[[int, int], None]
"""Called with (network evaluations done, in all)."""


class GenerateError(ValueError):
    """A request that cannot be met: got, wanted, cure."""


@dataclass(frozen=True, slots=True)
class Generated:
    """What was written."""

    out: Path
    files: tuple[str, ...]
    card: dict[str, Any]
    hu: NDArray[np.int16]
    """int16 [n, s, s]"""


def generate(
    model_path: Path,
    out: Path,
    count: int,
    formats: Sequence[Format] = ("png",),
    *,
    label: str | None = None,
    seed: int = 0,
    settings: Settings = DEFAULT_SETTINGS,
    field_mm: float | None = None,
    values: Values | None = None,
    progress: Progress | None = None,
) -> Generated:
    """Draw `count` slices and write them to the folder `out`, which appears whole, once everything is in it.

    label: a class of the plan; None: classes by their shares in training where the model file tells them (provenance's
    `class_shares`), else in equal shares. field_mm, values: override what the model file says about the stores.
    A run that was killed goes on when called again in the same way. Raises GenerateError, ModelFileError, OSError.
    """
    _check_asked(count, formats)
    model = load_model(model_path)
    request = _request(model, label, seed, settings) | {"count": count, "formats": sorted(set(formats))}
    values = values or _provided_values(model)
    pixel_mm = _pixel_mm(model, field_mm, values)
    request |= {"field_mm": None if pixel_mm is None else pixel_mm * model.plan.model.size, "values": values}
    identity = hashlib.sha256(_canonical(_drawn_by(request))).hexdigest()
    staging = _stage(out, request)
    unit, labels = _Drawing(model, request, settings, progress).all(staging)
    window = "grey" if values == "grey" else model.plan.window
    draw = Draw(
        hu=to_hu(unit, window),
        label=labels,
        label_names=model.plan.model.classes,
        values=values,
        pixel_mm=pixel_mm,
        window=window,
        identity=identity,
        model_sha256=model.sha256,
        plan_digest=model.plan.digest,
        method=f"Sampler {settings.sampler}, {request['steps']} steps, seed {seed}.",
    )
    return _write(draw, model, request, staging, out)


def _check_asked(count: int, formats: Sequence[Format]) -> None:
    if count < 1:
        raise GenerateError(f"count must be at least 1, got {count}")
    unknown = [name for name in formats if name not in FORMATS]
    if unknown or not formats:
        raise GenerateError(f"format must be one of {', '.join(FORMATS)}, got {', '.join(unknown) or 'none'}")


def _request(model: ModelFile, label: str | None, seed: int, settings: Settings) -> dict[str, Any]:
    """What is asked for, checked and resolved."""
    classes = model.plan.model.classes
    if not 0 <= seed < 2**63:
        raise GenerateError(f"seed must lie in 0..2^63-1, got {seed}")
    if label is not None and label not in classes:
        known = ", ".join(classes) or "none: it draws without labels"
        raise GenerateError(f"label: got {label!r}, the model's classes are {known}")
    if settings.guidance and not classes:
        raise GenerateError("guidance needs a model with classes, and this one has none: set guidance to 0")
    return {
        "model_sha256": model.sha256,
        "label": label,
        "class_shares": None if label is not None else _class_shares(model),
        "seed": seed,
        **asdict(settings),
        "steps": len(step_times(Schedule.from_plan(model.plan.diffusion), settings)),
    }


def _drawn_by(request: dict[str, Any]) -> dict[str, Any]:
    """The part of a request that decides what a slice shows: neither how many there are nor how they are written."""
    return {key: value for key, value in request.items() if key not in ("count", "formats")}


def _class_shares(model: ModelFile) -> dict[str, float] | None:
    classes = model.plan.model.classes
    if not classes:
        return None
    told = model.provenance.get("class_shares")
    known = {}
    if isinstance(told, dict) and all(isinstance(told.get(name, 0.0), int | float) for name in classes):
        known = {name: float(max(-1, min(told.get(name, 0.0), 10**9))) for name in classes}
    total = sum(known.values())
    if not known or not math.isfinite(total) or total <= 0 or min(known.values()) < 0:
        return {name: 1.0 / len(classes) for name in classes}
    return {name: share / total for name, share in known.items()}


def _provided_values(model: ModelFile) -> Values:
    return "grey" if model.provenance.get("values") == "grey" else "hu"


def _pixel_mm(model: ModelFile, field_mm: float | None, values: Values) -> float | None:
    if values == "grey":
        if field_mm is not None:
            raise GenerateError("field_mm: a model of pictures has no scale: leave it out")
        return None
    told = field_mm if field_mm is not None else model.provenance.get("field_mm", DEFAULT_FIELD_MM)
    if told is None:  # the sites' stores had different fields
        return None
    if not isinstance(told, int | float) or not 10.0 <= told <= 2000.0:
        raise GenerateError(f"field_mm must lie in 10..2000, got {told!r}")
    return float(told) / model.plan.model.size


def _labels(request: dict[str, Any], classes: tuple[str, ...]) -> NDArray[np.int16]:
    """int16 [count]: the one asked for, or classes in their shares, spread evenly over every stretch of numbers.

    An additive sequence by the golden ratio (Weyl 1916): slice i has the same label however many are asked for.
    """
    count = request["count"]
    if not classes:
        return np.full(count, -1, np.int16)
    if request["label"] is not None:
        return np.full(count, classes.index(request["label"]), np.int16)
    start = int.from_bytes(hashlib.sha256(f"labels {request['seed']}".encode()).digest()[:4], "big") / 2**32
    at = (start + np.arange(count) * _GOLDEN) % 1.0
    edges = np.cumsum([request["class_shares"][name] for name in classes])
    return np.asarray(np.minimum(np.searchsorted(edges, at, side="right"), len(classes) - 1), np.int16)


def _stage(out: Path, request: dict[str, Any]) -> Path:
    """The hidden folder beside `out` in which everything is made; what an equal request left there is kept."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise GenerateError(f"{out.name} exists and is not an empty folder: choose another --out, or delete it")
    out.parent.mkdir(parents=True, exist_ok=True)
    staging = out.parent / f".{out.name}.partial"
    asked = staging / "request.json"
    if not asked.is_file() or asked.read_bytes() != _canonical(request):
        shutil.rmtree(staging, ignore_errors=True)
        (staging / "portions").mkdir(parents=True)
        write_whole(asked, _canonical(request))
    shutil.rmtree(staging / "files", ignore_errors=True)
    (staging / "files").mkdir()
    return staging


def _canonical(data: dict[str, Any]) -> bytes:
    return json.dumps(data, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()


@dataclass(frozen=True)
class _Drawing:
    """Draws the slices of one request, portion by portion."""

    model: ModelFile
    request: dict[str, Any]
    settings: Settings
    progress: Progress | None

    def all(self, staging: Path) -> tuple[NDArray[np.float32], NDArray[np.int16]]:
        """float32 [count, s, s] in [-1, 1] and labels int16 [count]; portions finished before are read back."""
        count, size = self.request["count"], self.model.plan.model.size
        labels = _labels(self.request, self.model.plan.model.classes)
        unit = np.empty((count, size, size), np.float32)
        network: DiffusionNetwork | None = None
        for start in range(0, count, PORTION):
            some = slice(start, min(start + PORTION, count))
            kept = staging / "portions" / f"{start:08d}.f32"
            if not kept.is_file():
                network = network or _network(self.model)
                drawn = self._portion(network, labels[some], start)
                write_whole(kept, drawn.astype("<f4").tobytes())
            unit[some] = np.frombuffer(kept.read_bytes(), "<f4").reshape(-1, size, size)
            self._report(some.stop, 0)
        return unit, labels

    def _report(self, drawn: int, evaluations: int) -> None:
        """`drawn` slices are finished, and `evaluations` done on the next ones."""
        if self.progress is not None:
            steps = self.request["steps"]
            self.progress(-(-drawn // BATCH) * steps + evaluations, -(-self.request["count"] // BATCH) * steps)

    def _portion(self, network: DiffusionNetwork, labels: NDArray[np.int16], first: int) -> NDArray[np.float32]:
        plan = self.model.plan
        drawn = sample(
            network,
            Schedule.from_plan(plan.diffusion),
            plan.diffusion.prediction,
            [slice_generator(self.request["seed"], first + i) for i in range(len(labels))],
            self.settings,
            size=plan.model.size,
            labels=torch.from_numpy(labels.astype(np.int64)) if plan.model.classes else None,
            progress=lambda done, _: self._report(first, done),
        )
        unit: NDArray[np.float32] = drawn[:, 0].numpy()
        if not np.isfinite(unit).all():
            raise GenerateError("the model drew values that are not finite: train it anew, or lower the guidance")
        return unit


def _network(model: ModelFile) -> DiffusionNetwork:
    network = build_network(model.plan.model, torch.Generator().manual_seed(0))
    network.load_state_dict(model.weights)
    return network.eval()


def _write(draw: Draw, model: ModelFile, request: dict[str, Any], staging: Path, out: Path) -> Generated:
    folder = staging / "files"
    formats: list[Format] = request["formats"]
    written: list[Path] = []
    for name in formats:
        try:
            written += _WRITERS[name](draw, folder)
        except ValueError as error:
            raise GenerateError(str(error)) from error
    files = tuple(str(path.relative_to(folder)) for path in written)
    card = make_card(draw, model, request, list(files))
    write_card(card, folder)
    _publish(folder, out)
    shutil.rmtree(staging)
    return Generated(out, (*files, "card.json", "README.txt"), card, draw.hu)


def _publish(folder: Path, out: Path) -> None:
    """Let a finished folder appear as `out`, its files on the disk before their names."""
    for path in folder.iterdir():
        with path.open("rb") as file:
            os.fsync(file.fileno())
    sync_folder(folder)
    # rename(2) replaces an empty folder, and refuses one that somebody filled in the meantime.
    os.replace(folder, out)
    sync_folder(out.parent)
