"""Chest CT phantoms: seeded, anatomically plausible patients whose slices in HU agree with one another in 3-D.

No scan went into them; they stand in for patients in the demo, the tests and public warm starts. `HospitalProfile`
says what is usual at one hospital (scanner, kernel, dose, build of its patients, share of disease), `draw_patient`
draws somebody, `render` makes the series of slices.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from ctslices.phantom_anatomy import Anatomy, Habitus
from ctslices.phantom_disease import Disease, Kind, draw_disease
from ctslices.phantom_fields import Array
from ctslices.phantom_paint import Painter, Plane, Texture
from ctslices.phantom_vessels import grow

PhantomLabel = Literal["healthy", "disease"]
LABELS: tuple[PhantomLabel, PhantomLabel] = ("disease", "healthy")
"""Names of the labels in the order that sorting gives."""


@dataclass(frozen=True, slots=True)
class HospitalProfile:
    """What is usual at one hospital."""

    name: str
    manufacturer: str
    scanner: str
    kernel: str
    sharpness: float
    """Of the kernel: 0 smooth (B30f) .. 1 very sharp (B70f); decides the grain of the noise and edges' overshoot."""
    noise_hu: float
    """Deviation of the noise in soft tissue at 5 mm thickness and the pixel size of this hospital."""
    kvp: float
    matrix: int
    field_mm: float
    """Diameter of the reconstruction; pixel spacing is field_mm / matrix."""
    step_mm: float
    thickness_mm: float
    fat_mm: tuple[float, float]
    """Mean and deviation of the patients' fat layer."""
    size: tuple[float, float]
    """Mean and deviation of the patients' size relative to a middle-sized adult."""
    female_share: float
    disease_share: float
    kinds: tuple[Kind, ...]
    contrast_share: float
    padding_value: int | None = None
    """Stored value outside the reconstruction circle; None: that is air, as everywhere around the patient."""
    compression: Literal["none", "rle", "jpeg2000"] = "none"
    intercept_hu: int = -1024
    signed: bool = False
    """Whether stored values are signed."""


PROFILES: tuple[HospitalProfile, HospitalProfile, HospitalProfile] = (
    HospitalProfile(
        "north", "GE MEDICAL SYSTEMS", "LightSpeed VCT", "STANDARD", 0.25, 14.0, 120.0, 160, 400.0, 9.0, 5.0,
        (18.0, 7.0), (1.02, 0.05), 0.45, 0.35, ("ground-glass", "consolidation"), 0.3, padding_value=-2000, signed=True,
    ),
    HospitalProfile(
        "harbour", "SIEMENS", "SOMATOM Definition", "B70f", 0.85, 24.0, 100.0, 144, 380.0, 10.0, 3.0,
        (12.0, 5.0), (0.97, 0.05), 0.55, 0.6, ("ground-glass", "consolidation", "effusion"), 0.0, compression="rle",
    ),
    HospitalProfile(
        "valley", "Philips", "Brilliance 64", "B", 0.1, 10.0, 140.0, 128, 420.0, 10.0, 8.0,
        (26.0, 9.0), (1.05, 0.06), 0.5, 0.2, ("nodules", "effusion", "ground-glass"), 0.6,
        compression="jpeg2000", intercept_hu=-1000,
    ),
)  # fmt: skip
"""Three hospitals that differ in scanner, dose, build of their patients and share of disease."""


@dataclass(frozen=True, slots=True)
class Patient:
    """One phantom patient: the build, the disease if any, and the place on the table."""

    habitus: Habitus
    female: bool
    age_years: int
    kind: Kind | None
    rotation: float
    offset_mm: tuple[float, float]
    seed: int
    """Of everything that is fine: vessels, textures, foci."""

    @property
    def label(self) -> PhantomLabel:
        """`disease` or `healthy`."""
        return "healthy" if self.kind is None else "disease"


def draw_patient(rng: np.random.Generator, profile: HospitalProfile, diseased: bool | None = None) -> Patient:
    """Draw a patient of `profile`; `diseased` overrides the hospital's share."""
    female = bool(rng.random() < profile.female_share)
    sick = bool(rng.random() < profile.disease_share) if diseased is None else diseased
    size = float(np.clip(rng.normal(*profile.size), 0.85, 1.16)) * (0.93 if female else 1.02)
    fat = float(np.clip(rng.normal(*profile.fat_mm), 5.0, 42.0))
    age = int(rng.integers(24, 88))
    habitus = Habitus(
        half_width_mm=132.0 * size * float(rng.normal(1.0, 0.035)),
        half_depth_mm=96.0 * size * float(rng.normal(1.0, 0.05)),
        lung_height_mm=245.0 * size * float(rng.normal(1.0, 0.05)),
        fat_mm=fat,
        heart_scale=float(np.clip(rng.normal(0.97 + 0.0015 * (age - 50), 0.07), 0.8, 1.22)),
        dome_mm=float(rng.uniform(60.0, 88.0)) * size,
        breast_mm=float(np.clip(rng.normal(0.9 * fat + 10.0, 7.0), 8.0, 55.0)) if female else 0.0,
        lung_hu=float(rng.normal(-862.0, 20.0)),
        blood_hu=float(rng.uniform(130.0, 260.0)) if rng.random() < profile.contrast_share else 42.0,
        bone_scale=float(np.clip(1.15 - 0.004 * (age - 30) + rng.normal(0, 0.08), 0.6, 1.3)),
        stomach_gas_mm=float(rng.uniform(0.0, 42.0)),
        arch_shift_mm=float(rng.normal(0.0, 3.0)),
    )
    return Patient(
        habitus=habitus,
        female=female,
        age_years=age,
        kind=profile.kinds[int(rng.integers(len(profile.kinds)))] if sick else None,
        rotation=float(rng.normal(0.0, 0.035)),
        offset_mm=(float(rng.normal(0.0, 6.0)), float(rng.normal(0.0, 6.0))),
        seed=int(rng.integers(2**62)),
    )


def painter(patient: Patient) -> Painter:
    """Everything of a patient that slices are painted from: the same patient gives the same one."""
    rng = np.random.default_rng(patient.seed)
    anatomy = Anatomy(patient.habitus)
    texture = Texture.draw(rng)
    vessels = grow(rng, anatomy)
    disease: Disease | None = None if patient.kind is None else draw_disease(rng, anatomy, patient.kind)
    return Painter(anatomy, texture, vessels, disease)


def slice_heights(patient: Patient, step_mm: float) -> NDArray[np.float64]:
    """Heights float64 [n] in mm of a usual chest scan: from below the recesses to above the apex."""
    return np.arange(-18.0, patient.habitus.lung_height_mm + 12.0, step_mm)


def render(
    rng: np.random.Generator,
    patient: Patient,
    profile: HospitalProfile,
    heights_mm: NDArray[np.float64] | None = None,
    sharpness: float | None = None,
) -> NDArray[np.int16]:
    """Slices hu int16 [n, matrix, matrix], feet first, with this hospital's grain; `rng` draws the noise alone.

    Nothing lies outside the field: air is about -1000 HU, the reconstruction circle is not cut out here.
    """
    heights = slice_heights(patient, profile.step_mm) if heights_mm is None else heights_mm
    artist = painter(patient)
    axis = _axis(profile.matrix, profile.field_mm)
    x_mm, y_mm = axis - np.float32(patient.offset_mm[0]), axis - np.float32(patient.offset_mm[1])
    sharp = profile.sharpness if sharpness is None else sharpness
    out = np.empty((len(heights), profile.matrix, profile.matrix), np.int16)
    for i, z in enumerate(heights):
        hu = artist.slice(Plane(x_mm, y_mm, float(z), profile.thickness_mm, patient.rotation))
        out[i] = _finish(rng, hu, profile, sharp)
    return out


def _axis(matrix: int, field_mm: float) -> Array:
    return ((np.arange(matrix) - (matrix - 1) / 2) * (field_mm / matrix)).astype(np.float32)


def _finish(rng: np.random.Generator, hu: Array, profile: HospitalProfile, sharpness: float) -> NDArray[np.int16]:
    """Point spread and noise of a kernel: soft ones smooth both, sharp ones overshoot at edges and grain finely."""
    pixel = profile.field_mm / profile.matrix
    noise = rng.standard_normal(hu.shape, dtype=np.float32)
    width = (1.25 - 0.9 * sharpness) / pixel
    smooth = ndimage.gaussian_filter(noise, max(width, 0.35), truncate=3.0)
    grain = smooth - 0.6 * sharpness * ndimage.uniform_filter(smooth, 3)
    grain *= profile.noise_hu * (1.0 + 0.8 * sharpness) / max(float(grain.std()), 1e-6)
    # Less is absorbed in air, so it is less noisy there.
    grain *= np.clip((hu + 1250.0) / 1250.0, 0.25, 1.0)
    blurred = ndimage.gaussian_filter(hu, 0.55 * (1.2 - sharpness) / pixel + 0.25, truncate=3.0)
    if sharpness > 0.4:
        blurred += (0.7 * (sharpness - 0.4)) * (hu - blurred)
    return np.asarray(np.clip(np.rint(blurred + grain), -1024, 3071), np.int16)


def chest_slices(
    rng: np.random.Generator,
    n: int,
    *,
    size: int = 64,
    field_mm: float = 360.0,
    profile: HospitalProfile = PROFILES[0],
    slices_per_patient: int = 8,
) -> tuple[NDArray[np.int16], NDArray[np.int16]]:
    """Slices as a store would hold them: hu int16 [n, size, size] and label int16 [n], an index into LABELS.

    Each patient gives `slices_per_patient` random heights within the lungs; drawn at twice the size, then averaged.
    """
    hu = np.empty((n, size, size), np.int16)
    label = np.empty(n, np.int16)
    wide = dataclasses.replace(profile, matrix=2 * size, field_mm=field_mm)
    for start in range(0, n, slices_per_patient):
        count = min(slices_per_patient, n - start)
        patient = draw_patient(rng, profile)
        heights = np.sort(rng.uniform(0.08, 0.93, count)) * patient.habitus.lung_height_mm
        slices = render(rng, patient, wide, heights).astype(np.float32)
        mean = slices.reshape(count, size, 2, size, 2).mean(axis=(2, 4))
        hu[start : start + count] = np.rint(mean).astype(np.int16)
        label[start : start + count] = LABELS.index(patient.label)
    return hu, label
