"""PNG, npz and NIfTI of synthetic slices: right values and places, marked, the same bytes each time."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from ctslices.phantom import LABELS, chest_slices
from fedscan.release.draw import Draw
from fedscan.release.formats import contact_sheet, to_display, write_nifti, write_npz, write_png


@pytest.fixture(scope="module")
def draw() -> Draw:
    hu, label = chest_slices(np.random.default_rng(0), 6)
    label[5] = -1
    return Draw(hu, label, LABELS, "hu", 5.625, "full", "ab" * 32, "cd" * 32, "ef" * 32, "Sampler dpmpp, seed 3.")


def test_png_shows_the_lung_window(draw: Draw, tmp_path: Path) -> None:
    files = write_png(draw, tmp_path)
    assert [path.name for path in files] == [*(f"slice-{i:05d}.png" for i in range(6)), "grid.png"]
    picture = Image.open(tmp_path / "slice-00002.png")
    assert picture.mode == "L"
    want = np.clip((draw.hu[2].astype(float) + 1350) / 1500 * 255, 0, 255)
    np.testing.assert_allclose(np.asarray(picture), want, atol=0.51)
    assert picture.info["Comment"].startswith("SYNTHETIC")
    assert picture.info["Label"] == LABELS[draw.label[2]]
    assert "Label" not in Image.open(tmp_path / "slice-00005.png").info
    grid = np.asarray(Image.open(tmp_path / "grid.png"))
    assert grid.shape == (2 * 64, 3 * 64)
    np.testing.assert_array_equal(grid[64:, :64], np.asarray(Image.open(tmp_path / "slice-00003.png")))


def test_pictures_are_shown_as_they_are(draw: Draw, tmp_path: Path) -> None:
    grey = dataclasses.replace(draw, hu=(draw.hu % 256).astype(np.int16), values="grey", pixel_mm=None, window="grey")
    write_png(grey, tmp_path)
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "slice-00001.png")), grey.hu[1])


def test_display_ends_at_black_and_white() -> None:
    shown = to_display(np.array([-2000, -1350, -600, 150, 3000], np.int16), "lung")
    assert shown.tolist() == [0, 0, 128, 255, 255]
    assert contact_sheet(np.zeros((5, 8, 8), np.uint8)).shape == (16, 24)


def test_npz_holds_hu_without_pickles(draw: Draw, tmp_path: Path) -> None:
    (path,) = write_npz(draw, tmp_path)
    with np.load(path, allow_pickle=False) as file:
        np.testing.assert_array_equal(file["hu"], draw.hu)
        assert file["hu"].dtype == np.int16
        assert file["label"].tolist() == draw.label.tolist()
        assert file["label_names"].tolist() == list(LABELS)
        assert file["spacing_mm"].tolist() == [5.625, 5.625]
        assert json.loads(str(file["about"]))["mark"].startswith("SYNTHETIC")


def test_nifti_puts_the_patients_left_on_the_left(draw: Draw, tmp_path: Path) -> None:
    files = write_nifti(draw, tmp_path)
    assert len(files) == 6
    image = nib.load(files[1])
    values = np.asarray(image.dataobj)
    assert values.shape == (64, 64, 1)
    assert values.dtype == np.int16
    np.testing.assert_array_equal(values[:, :, 0].T, draw.hu[1])
    assert nib.aff2axcodes(image.affine) == ("L", "P", "S")
    np.testing.assert_allclose(image.header.get_zooms()[:2], 5.625)
    # The picture's right upper corner is the patient's left front: RAS x < 0, y > 0.
    half = 5.625 * 31.5
    np.testing.assert_allclose(image.affine @ [63, 0, 0, 1], [-half, half, 0, 1])
    assert bytes(image.header["descrip"]).startswith(b"SYNTHETIC")


def test_the_same_draw_gives_the_same_bytes(draw: Draw, tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        for write in (write_png, write_npz, write_nifti):
            write(draw, tmp_path / name)
    for path in (tmp_path / "a").iterdir():
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes()
        if path.suffix == ".gz":  # gzip's own time of writing, RFC 1952
            assert path.read_bytes()[4:8] == bytes(4)


def test_a_draw_must_be_of_one_shape(draw: Draw) -> None:
    with pytest.raises(ValueError, match="slices must be int16"):
        dataclasses.replace(draw, hu=draw.hu.astype(np.float32))
    with pytest.raises(ValueError, match="labels must be"):
        dataclasses.replace(draw, label=draw.label[:2])
