"""A public start: a model trained on phantoms alone, for private training to go on from.

No scan and no patient went into it. Under DP it is worth more than every other lever (docs/results/dp-usefulness.md).
"""

from __future__ import annotations

import dataclasses
import hashlib
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage

from ctslices.phantom import PROFILES, HospitalProfile, draw_patient, render
from fedscan.plan import Plan
from fedscan.training import in_process
from fedscan.training.data import NO_LABEL, TrainingSet
from fedscan.training.model_file import load_model, save_model

SHELF = Path(__file__).parent / "shelf"
"""Models that come with the package: NAME.safetensors."""
Look = Literal["hu", "pictures"]
"""What a store holds: HU in a field around the body, or pictures: windowed to the lung and cropped to the chest."""
STEPS, STEPS_A_ROUND, PHANTOM_SLICES, BATCH = 1000, 50, 4000, 32
_PATIENT_SLICES = 8
_PROFILE = dataclasses.replace(
    PROFILES[0], name="public", manufacturer="PHANTOM", scanner="PHANTOM", kernel="PHANTOM", sharpness=0.4,
    noise_hu=16.0, fat_mm=(18.0, 9.0), size=(1.0, 0.07), female_share=0.5, disease_share=0.0, contrast_share=0.3,
)  # fmt: skip
"""A scanner of no hospital, healthy patients of every build."""
_LEVEL_HU, _WIDTH_HU = (-650.0, -500.0), (1300.0, 1700.0)
"""How pictures of the lung are usually windowed."""
_STRETCH = (0.9, 1.2)
"""Of height against width: pictures were not always scaled alike."""
_FIELD_MM, _PICTURE_FIELD_MM = 360.0, 400.0


def builtin(sha256: str) -> Path | None:
    """The model of that SHA-256 which comes with the package, if one does."""
    for path in sorted(SHELF.glob("*.safetensors")):
        if hashlib.sha256(path.read_bytes()).hexdigest() == sha256:
            return path
    return None


def plan_of_start(plan: Plan, steps: int = STEPS, seed: int = 0) -> Plan:
    """The plain plan by which a start for `plan` is trained: its network, window and process, `steps` steps."""
    rounds = math.ceil(steps / STEPS_A_ROUND)
    wanted: dict[str, Any] = {
        "name": "public-start",
        "model": plan.model.model_dump(),
        "window": plan.window,
        "diffusion": plan.diffusion.model_dump(),
        "training": {
            "local_steps": STEPS_A_ROUND,
            "batch_size": BATCH,
            "learning_rate": 2e-3,
            "warmup_steps": 50,
            "decay": "cosine",
            "precision": plan.training.precision,
        },
        "ema": {"half_life_rounds": 1.0},
        "weighting": "uniform",
        "rounds": rounds,
        "seed": seed,
    }
    return Plan.model_validate(wanted)


def make(
    plan: Plan,
    out: Path,
    work: Path,
    *,
    look: Look = "hu",
    steps: int = STEPS,
    seed: int = 0,
    slices: int = PHANTOM_SLICES,
    say: Callable[[str], None] = lambda _: None,
) -> str:
    """Trains a start for `plan`'s network on phantoms, one CPU minute or two for the tiny preset; its SHA-256.

    Goes on from `work` where it was stopped. The same arguments give the same bytes on one CPU.
    """
    start = plan_of_start(plan, steps, seed)
    say(f"drawing {slices} slices of phantoms")
    data = phantoms(start, look, slices, seed)

    def on_round(report: in_process.RoundReport) -> None:
        done_steps = (report.round_number + 1) * STEPS_A_ROUND
        say(f"step {done_steps} of {start.rounds * STEPS_A_ROUND}: loss {report.loss:.4f}")

    done = in_process.run(start, {"phantoms": data}, work, on_round)
    provenance: dict[str, Any] = {
        "public": "phantoms only: no scan and no patient went into this model",
        "look": look,
        "slices": slices,
        "steps": start.rounds * STEPS_A_ROUND,
        "unit": "patient",
        "values": data.values,
        "field_mm": data.field_mm,
        "rounds_done": done.state.rounds_done,
        "sites": {},
        "weights": "ema",
        "privacy": "public: nothing to protect",
    }
    save_model(out, done.weights, start, provenance)
    return load_model(out).sha256


def phantoms(plan: Plan, look: Look, slices: int, seed: int) -> TrainingSet:
    """Slices of healthy phantoms as a store of that look would hold them, without labels."""
    rng = np.random.default_rng(seed)
    size = plan.model.size
    patients = math.ceil(slices / _PATIENT_SLICES)
    parts = [_patient(rng, look, size) for _ in range(patients)]
    hu = np.concatenate(parts)[:slices]
    label = None
    if plan.model.classes:
        label = torch.full((len(hu),), NO_LABEL, dtype=torch.int64)
    return TrainingSet(
        hu=hu,
        window="grey" if look == "pictures" else plan.window,
        label=label,
        patient=np.repeat(np.arange(patients, dtype=np.int32), _PATIENT_SLICES)[:slices],
        unit="patient",
        field_mm=None if look == "pictures" else _FIELD_MM,
    )


def _patient(rng: np.random.Generator, look: Look, size: int) -> NDArray[np.int16]:
    """int16 [8, size, size] of one phantom, drawn at twice the size or more."""
    matrix, field_mm = (2 * size, _FIELD_MM) if look == "hu" else (max(2 * size, 128), _PICTURE_FIELD_MM)
    profile: HospitalProfile = dataclasses.replace(
        _PROFILE, matrix=matrix, field_mm=field_mm, sharpness=float(rng.uniform(0.1, 0.8))
    )
    patient = draw_patient(rng, profile)
    heights = np.sort(rng.uniform(0.08, 0.93, _PATIENT_SLICES)) * patient.habitus.lung_height_mm
    hu = render(rng, patient, profile, heights).astype(np.float32)
    if look == "hu":
        mean = hu.reshape(len(hu), size, 2, size, 2).mean(axis=(2, 4))
        return np.asarray(np.rint(mean), np.int16)
    return np.stack([_picture(rng, one, size, field_mm / matrix) for one in hu])


def _picture(rng: np.random.Generator, hu: NDArray[np.float32], size: int, pixel_mm: float) -> NDArray[np.int16]:
    """Grey 0..255 as `prepare` keeps a picture of a chest: windowed to the lung, cropped to the lungs, black around."""
    level, width = rng.uniform(*_LEVEL_HU), rng.uniform(*_WIDTH_HU)
    grey = np.clip((hu - (level - width / 2)) / width, 0.0, 1.0) * 255.0
    body = ndimage.binary_opening(hu > -300.0, iterations=round(6.0 / pixel_mm))
    inside = ndimage.binary_erosion(ndimage.binary_fill_holes(body), iterations=round(9.0 / pixel_mm))
    lungs = inside & (hu < -400.0)
    rows, columns = (_side(rng, np.flatnonzero(body.any(i)), np.flatnonzero(lungs.any(i))) for i in (1, 0))
    cut = grey[rows, columns]
    stretched = np.array(cut.shape) * (rng.uniform(*_STRETCH), 1.0)
    zoom = np.maximum(np.round(stretched * (size / stretched.max())), 1.0) / cut.shape
    smooth = ndimage.gaussian_filter(cut, np.maximum(0.0, 0.4 / zoom - 0.3))
    small = ndimage.zoom(smooth, zoom, order=1, grid_mode=True, mode="nearest")
    before = (size - np.array(small.shape)) // 2
    square = np.pad(small, [(b, size - n - b) for b, n in zip(before, small.shape, strict=True)])
    return np.asarray(np.rint(np.clip(square, 0.0, 255.0)), np.int16)


def _side(rng: np.random.Generator, body: NDArray[np.int64], lungs: NDArray[np.int64]) -> slice:
    """Where a picture begins and ends along one axis: a little way around the lungs, never outside the body."""
    least = 0.5 * (body[-1] - body[0] + 1)
    start, end = (lungs[0], lungs[-1] + 1) if len(lungs) else (body[0], body[-1] + 1)
    lacking = max(0.0, least - (end - start)) / 2
    extent = max(float(end - start), least)
    before, after = lacking + rng.uniform(0.0, 0.1, 2) * extent
    return slice(max(body[0], round(start - before)), min(body[-1] + 1, round(end + after)))
