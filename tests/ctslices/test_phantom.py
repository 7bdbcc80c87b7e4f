"""Phantoms: reproducible, consistent in 3-D, different by hospital, and shaped as chests are."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from scipy import ndimage

from ctslices.phantom import LABELS, PROFILES, Patient, chest_slices, draw_patient, painter, render, slice_heights
from ctslices.phantom_head import head_slices


@pytest.fixture(scope="module")
def patient() -> Patient:
    return draw_patient(np.random.default_rng(4), PROFILES[0], diseased=False)


def test_the_same_seed_gives_the_same_slices(patient: Patient) -> None:
    assert draw_patient(np.random.default_rng(4), PROFILES[0], diseased=False) == patient
    heights = np.array([60.0, 140.0])
    first = render(np.random.default_rng(9), patient, PROFILES[0], heights)
    again = render(np.random.default_rng(9), patient, PROFILES[0], heights)
    other = render(np.random.default_rng(10), patient, PROFILES[0], heights)
    assert first.dtype == np.int16
    assert first.shape == (2, 160, 160)
    np.testing.assert_array_equal(first, again)
    # Another generator changes the noise, never the anatomy.
    assert 1 < np.abs(first.astype(float) - other).mean() < 40


def test_neighbouring_slices_are_of_one_patient(patient: Patient) -> None:
    quiet = dataclasses.replace(PROFILES[0], noise_hu=0.0)
    heights = np.arange(60.0, 200.0, 4.0)
    hu = render(np.random.default_rng(0), patient, quiet, heights).astype(float)
    near = np.abs(np.diff(hu, axis=0)).mean()
    far = np.abs(hu[10:] - hu[:-10]).mean()
    assert near < 0.45 * far


def test_a_chest_has_two_lungs_with_air_and_a_skeleton(patient: Patient) -> None:
    height = 0.5 * patient.habitus.lung_height_mm
    hu = render(np.random.default_rng(0), patient, PROFILES[0], np.array([height]))[0]
    body = ndimage.binary_fill_holes(ndimage.binary_opening(hu > -400, iterations=2))
    air, count = ndimage.label(ndimage.binary_opening((hu < -500) & body, iterations=1))
    areas = np.sort(ndimage.sum_labels(np.ones_like(air), air, range(1, count + 1)))[::-1] * (400 / 160) ** 2
    assert areas[0] < 30_000
    assert areas[1] > 5_000
    assert 0.005 < ((hu > 250) & body).sum() / body.sum() < 0.15
    middle = ndimage.center_of_mass(air == 1 + np.argmax(np.bincount(air.ravel())[1:]))
    assert abs(middle[1] - 79.5) > 15


def test_the_liver_is_on_the_images_left_and_the_stomachs_gas_on_its_right() -> None:
    gassy = draw_patient(np.random.default_rng(1), PROFILES[0], diseased=False)
    gassy = dataclasses.replace(
        gassy, rotation=0.0, offset_mm=(0.0, 0.0), habitus=dataclasses.replace(gassy.habitus, stomach_gas_mm=42.0)
    )
    hu = render(np.random.default_rng(0), gassy, PROFILES[0], np.array([5.0]))[0]
    inside = hu[50:110, 40:120]
    assert (inside[:, :40] < -300).mean() < 0.03
    assert (inside[:, 40:] < -700).mean() > 0.08


def test_disease_makes_lungs_denser() -> None:
    rng = np.random.default_rng(3)
    well = draw_patient(rng, PROFILES[0], diseased=False)
    ill = dataclasses.replace(well, kind="consolidation")
    assert (well.label, ill.label) == ("healthy", "disease")
    heights = np.linspace(0.2, 0.8, 8) * well.habitus.lung_height_mm
    lung = [np.mean(_lung_hu(p, heights)) for p in (well, ill)]
    assert lung[1] > lung[0] + 40


def _lung_hu(patient: Patient, heights: np.ndarray) -> np.ndarray:
    hu = render(np.random.default_rng(0), patient, PROFILES[0], heights)
    axis = ((np.arange(160) - 79.5) * 2.5).astype(np.float32)
    anatomy = painter(patient).anatomy
    x, y = axis[None] - patient.offset_mm[0], axis[:, None] - patient.offset_mm[1]
    return np.concatenate([plane[anatomy.lungs(x, y, float(z)) < -5] for plane, z in zip(hu, heights, strict=True)])


def test_hospitals_differ_in_noise_build_and_share_of_disease() -> None:
    noise, fat, ill = [], [], []
    for profile in PROFILES:
        rng = np.random.default_rng(0)
        crowd = [draw_patient(rng, profile) for _ in range(300)]
        fat.append(np.mean([p.habitus.fat_mm for p in crowd]))
        ill.append(np.mean([p.label == "disease" for p in crowd]))
        same = crowd[0]
        quiet = dataclasses.replace(profile, noise_hu=0.0)
        noisy = render(np.random.default_rng(1), same, profile, np.array([100.0])).astype(float)
        noise.append((noisy - render(np.random.default_rng(1), same, quiet, np.array([100.0])))[0, 70:90, 60:80].std())
    assert noise[1] > 1.5 * noise[0] > 1.5 * noise[2]
    assert fat[2] > fat[0] + 3 > fat[1] + 6
    np.testing.assert_allclose(ill, [p.disease_share for p in PROFILES], atol=0.09)


def test_slices_for_training_come_with_labels() -> None:
    hu, label = chest_slices(np.random.default_rng(5), 20, slices_per_patient=4)
    assert hu.shape == (20, 64, 64)
    assert hu.dtype == label.dtype == np.int16
    assert set(label.tolist()) == {0, 1}
    assert LABELS == ("disease", "healthy")
    assert hu.min() >= -1100


def test_a_series_has_a_slice_at_every_height(patient: Patient) -> None:
    profile = dataclasses.replace(PROFILES[0], matrix=256)
    heights = slice_heights(patient, 6.5)
    assert len(render(np.random.default_rng(0), patient, profile, heights)) == len(heights) >= 38


def test_a_head_has_a_skull_and_no_lungs() -> None:
    hu = head_slices(np.random.default_rng(0), 128, 240.0, np.arange(0.0, 110.0, 10.0))
    assert hu.dtype == np.int16
    body = np.stack([ndimage.binary_fill_holes(plane > -300) for plane in hu])
    assert ((hu > 500) & body).sum() / body.sum() > 0.08
    assert ((hu < -500) & body).sum() / body.sum() < 0.05
