"""The chest check passes real and phantom chests, and fails blurred, shuffled and made-up ones."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import ndimage

from ctslices.phantom import PROFILES, chest_slices
from fedscan.evaluation.lungs import LungRange, check, chest_check, measure, real_range

Slices = NDArray[np.int16]


def _blur(sigma_px: float) -> Callable[[Slices], Slices]:
    return lambda hu: ndimage.gaussian_filter(hu.astype(np.float32), (0, sigma_px, sigma_px)).astype(np.int16)


def _shuffle(side: int) -> Callable[[Slices], Slices]:
    def shuffled(hu: Slices) -> Slices:
        rng = np.random.default_rng(side)
        n = hu.shape[1] // side
        patches = hu.reshape(-1, n, side, n, side).transpose(0, 1, 3, 2, 4).reshape(len(hu), n * n, side, side)
        mixed = np.stack([slice_[rng.permutation(n * n)] for slice_ in patches])
        return mixed.reshape(-1, n, n, side, side).transpose(0, 1, 3, 2, 4).reshape(hu.shape)

    return shuffled


def _noise(hu: Slices) -> Slices:
    return np.random.default_rng(0).uniform(-1000, 1000, hu.shape).astype(np.int16)


WRONG: dict[str, Callable[[Slices], Slices]] = {
    "blur of 2 px": _blur(2.0),
    "blur of 3 px": _blur(3.0),
    "pixels shuffled": _shuffle(1),
    "patches of 4 shuffled": _shuffle(4),
    "patches of 8 shuffled": _shuffle(8),
    "patches of 16 shuffled": _shuffle(16),
    "quarters shuffled": _shuffle(32),
    "noise": _noise,
    "air": lambda hu: np.full_like(hu, -1000),
    "turned by 90 degrees": lambda hu: np.ascontiguousarray(hu.transpose(0, 2, 1)),
    "inverted": lambda hu: (-hu).astype(np.int16),
}


@pytest.fixture(scope="module")
def phantoms() -> tuple[Slices, Slices]:
    """Slices of other patients on both sides: to learn from, to judge."""
    rng = np.random.default_rng(0)
    learned = np.concatenate([chest_slices(rng, 240, profile=profile)[0] for profile in PROFILES])
    return learned, np.concatenate([chest_slices(rng, 60, profile=profile)[0] for profile in PROFILES])


@pytest.fixture(scope="module")
def phantom_range(phantoms: tuple[Slices, Slices]) -> LungRange:
    return real_range(phantoms[0])


@pytest.fixture(scope="module")
def real(fedscan_data: Path) -> Slices:
    """Real slices that show lung: whole chest series at 64 px, both fields and builds as they came."""
    listed = json.loads((fedscan_data / "ct_hu" / "series.json").read_text())
    planes = []
    for entry in listed["series"] if isinstance(listed, dict) else listed:
        if entry["region"] == "chest":
            path = fedscan_data / "ct_hu" / entry["patient"] / f"{entry['series'].split('_')[1]}.nii.gz"
            volume = np.asarray(nib.load(path).dataobj, np.float32).transpose(2, 1, 0)
            planes.append(volume.reshape(len(volume), 64, 2, 64, 2).mean(axis=(2, 4)).astype(np.int16))
    hu = np.concatenate(planes)
    body = measure(hu)
    return hu[np.nan_to_num(body.area_share.sum(axis=1)) > 0.02]


@pytest.fixture(scope="module")
def range_of_real(real: Slices) -> LungRange:
    return real_range(real[::2])


def test_other_phantom_patients_pass(phantoms: tuple[Slices, Slices]) -> None:
    verdict = chest_check(phantoms[1], phantoms[0])
    assert verdict.two_lungs_share > 0.95
    assert abs(verdict.air_difference_points) < 3.0
    assert verdict.is_chest
    assert verdict.slices == 180


@pytest.mark.parametrize("name", WRONG)
def test_what_is_no_chest_fails(name: str, phantoms: tuple[Slices, Slices], phantom_range: LungRange) -> None:
    assert check(WRONG[name](phantoms[1]), phantom_range).mean() < 0.08


def test_noise_of_a_low_dose_scan_passes(phantoms: tuple[Slices, Slices], phantom_range: LungRange) -> None:
    noisy = phantoms[1] + np.random.default_rng(0).normal(0, 80, phantoms[1].shape)
    assert check(noisy.astype(np.int16), phantom_range).mean() > 0.95


def test_real_slices_pass(real: Slices, range_of_real: LungRange) -> None:
    assert len(real) > 200
    assert check(real[1::2], range_of_real).mean() > 0.9


@pytest.mark.parametrize("name", WRONG)
def test_what_is_no_chest_fails_against_real_ones(name: str, real: Slices, range_of_real: LungRange) -> None:
    assert check(WRONG[name](real[1::2]), range_of_real).mean() < 0.1


def test_areas_are_those_of_known_lungs() -> None:
    hu = np.full((1, 64, 64), -1000, np.int16)
    y, x = np.mgrid[:64, :64]
    hu[0][np.hypot((x - 31.5) / 29, (y - 31.5) / 22) < 1] = 40
    hu[0, 22:42, 10:22] = -850
    hu[0, 24:40, 40:54] = -850
    lungs = measure(hu)
    np.testing.assert_allclose(lungs.area_share[0] * 64 * 64, [240, 224])
    np.testing.assert_allclose(lungs.area_mm2(360.0)[0], np.array([240, 224]) * (360 / 64) ** 2)
    np.testing.assert_allclose(lungs.fill, 1.0)
    assert lungs.air_share[0] == pytest.approx(float((hu < -500).mean()))
    assert lungs.neck_share[0] == 0
    hu[0, 24:40, 40:54] = 40
    assert not measure(hu).found[0]


def test_a_range_needs_chests() -> None:
    with pytest.raises(ValueError, match="wanted at least half"):
        real_range(np.full((4, 64, 64), -1000, np.int16))
    with pytest.raises(ValueError, match="without a channel axis"):
        measure(np.zeros((4, 1, 64, 64), np.int16))
    with pytest.raises(ValueError, match="real ones' size"):
        chest_check(np.zeros((1, 32, 32), np.int16), np.zeros((1, 64, 64), np.int16))
