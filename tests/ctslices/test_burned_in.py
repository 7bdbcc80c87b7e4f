"""The screen for burned-in text: planted text is found, real CT passes, and it costs little."""

from __future__ import annotations

import itertools
import shutil
import timeit
from pathlib import Path

import matplotlib
import nibabel
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from ctslices import burned_in, decode
from ctslices.options import Options
from ctslices.sources import dicom

FONTS = ("default", "DejaVuSans", "DejaVuSans-Bold", "DejaVuSansMono", "DejaVuSerif")
PLACES = ("top left", "bottom right", "over the body")
PENS = {"white": 3071.0, "light": 1500.0, "grey": 200.0, "black on white": -1024.0}
TEXTS = ("DOE^JOHN 1956-07-09", "ID 4711")
LARGE, SMALL = (16, 20, 28, 40), (10, 12, 14)


@pytest.fixture(scope="module")
def planes(real_chest: NDArray[np.int16]) -> list[NDArray[np.float32]]:
    """float32 [512, 512]: a real chest four times enlarged, with a scanner's noise put back."""
    rng = np.random.default_rng(8)
    large = [np.kron(plane, np.ones((4, 4))) for plane in real_chest[10:20:2]]
    noisy = [np.where(plane > -1024, plane + rng.normal(0, 12, plane.shape), plane) for plane in large]
    return [np.maximum(np.rint(plane), -1024).astype(np.float32) for plane in noisy]


def plant(plane: NDArray[np.float32], font: str, size: int, place: str, pen: str, text: str) -> NDArray[np.float32]:
    """The plane with smooth-edged text drawn over it, rounded to whole HU as a scanner's workstation stores it."""
    if font == "default":
        face = ImageFont.load_default(size)
    else:
        face = ImageFont.truetype(str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / f"{font}.ttf"), size)
    ink = Image.new("L", (512, 512), 0)
    draw = ImageDraw.Draw(ink)
    left, top, right, bottom = draw.textbbox((0, 0), text, font=face)
    width, height = int(right - left), int(bottom - top)
    x, y = {
        "top left": (8, 8),
        "bottom right": (500 - width, 490 - height),
        "over the body": (256 - width // 2, 256 - height // 2),
    }[place]
    draw.text((x - left, y - top), text, fill=255, font=face)
    cover = np.asarray(ink, np.float32) / 255
    drawn = plane.copy()
    if pen == "black on white":
        drawn[max(y - 3, 0) : y + height + 3, max(x - 3, 0) : x + width + 3] = 3071
    return np.rint(drawn * (1 - cover) + PENS[pen] * cover).astype(np.float32)


def found(planes: list[NDArray[np.float32]], sizes: tuple[int, ...], pens: tuple[str, ...]) -> float:
    cases = list(itertools.product(FONTS, sizes, PLACES, pens, TEXTS))
    hits = [burned_in.suspected(plant(planes[at % len(planes)], *case)) for at, case in enumerate(cases)]
    return sum(hits) / len(hits)


def test_large_text_is_found_in_every_font_and_place(planes: list[NDArray[np.float32]]) -> None:
    assert found(planes, LARGE, ("white", "light", "black on white")) >= 0.99
    assert found(planes, LARGE, ("grey",)) >= 0.85


def test_most_small_text_is_found(planes: list[NDArray[np.float32]]) -> None:
    assert found(planes, SMALL, ("white", "light", "black on white")) >= 0.8
    assert found(planes, SMALL, ("grey",)) >= 0.3


def test_planes_without_text_pass(planes: list[NDArray[np.float32]], real_chest: NDArray[np.int16]) -> None:
    assert not any(burned_in.suspected(plane) for plane in planes)
    assert not any(burned_in.suspected(plane.astype(np.float32)) for plane in real_chest)


def test_metal_at_the_ceiling_passes(planes: list[NDArray[np.float32]]) -> None:
    metal = planes[0].copy()
    rows, columns = np.ogrid[:512, :512]
    for x in (180, 330):
        metal[(rows - 300) ** 2 + (columns - x) ** 2 < 400] = 3071
    metal[295:305, 180:330] = 3071
    assert not burned_in.suspected(metal)


def test_clipped_air_passes(planes: list[NDArray[np.float32]]) -> None:
    """A floor of -1000 HU over noisy air: one value, speckled all over."""
    assert not burned_in.suspected(np.maximum(planes[0], -1000))


@pytest.mark.parametrize("value", [-1024.0, 40.0, 40000.0])
def test_flat_planes_pass(value: float) -> None:
    assert not burned_in.suspected(np.full((512, 512), value, np.float32))


def test_no_false_alarm_on_real_ct(fedscan_data: Path, tmp_path: Path) -> None:
    """70 patients at 128 x 128, and a whole chest and two phantoms at 512 x 512: 1728 planes, no alarm."""
    alarms = seen = 0
    for volume in sorted((fedscan_data / "ct_hu").rglob("*.nii.gz")):
        hu = np.maximum(np.asarray(nibabel.load(volume).dataobj), -1024)
        alarms += sum(burned_in.suspected(hu[:, :, at].T.astype(np.float32)) for at in range(hu.shape[2]))
        seen += hu.shape[2]
    for archive in sorted((fedscan_data / "dicom").glob("*.zip")):
        shutil.unpack_archive(archive, tmp_path / archive.stem)
    series, _ = dicom.read(sorted(tmp_path.rglob("*.dcm")), tmp_path, Options())
    for one in series:
        for plane in decode.planes(one, range(len(one.planes))):
            assert isinstance(plane, np.ndarray)
            alarms += burned_in.suspected(plane)
            seen += 1
    assert seen == 1728
    assert alarms == 0


def test_it_costs_little_beside_reading(planes: list[NDArray[np.float32]]) -> None:
    """At most as much as eight sorts of an eighth of the plane: about 1 ms on a quiet core, stated as a ratio."""
    plane = planes[0]
    screen = min(timeit.repeat(lambda: burned_in.suspected(plane), number=5, repeat=5))
    sort = min(timeit.repeat(lambda: np.sort(plane.ravel(), kind="stable"), number=5, repeat=5))
    assert screen < sort
