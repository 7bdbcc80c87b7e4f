"""ctslices.region: real heads, abdomens and limbs stay out of a chest model, and real chests do not."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
import pydicom
import pytest
from numpy.typing import NDArray
from pydicom.data import get_testdata_file

from ctslices import decode
from ctslices.geometry import Coarse
from ctslices.options import Options
from ctslices.region import Region, classify, in_context, lung_mm2
from ctslices.reject import Rejected
from ctslices.series import PlaneGeometry
from ctslices.sources import scan


def region_of(plane: NDArray[np.float32], spacing: tuple[float, float]) -> Region:
    coarse = Coarse(PlaneGeometry((1, 0, 0), (0, 1, 0), spacing, (plane.shape[0], plane.shape[1])))
    return classify(coarse.copy(plane), coarse.pixel_mm)


def real_file(name: str) -> tuple[NDArray[np.float32], tuple[float, float]]:
    path = get_testdata_file(name, download=False)
    if path is None:
        pytest.skip("pydicom-data is not installed")
    ds = pydicom.dcmread(path)
    hu = ds.pixel_array.astype(np.float32) * float(ds.RescaleSlope) + float(ds.RescaleIntercept)
    return np.maximum(hu, -1024), (float(ds.PixelSpacing[0]), float(ds.PixelSpacing[1]))


@pytest.mark.parametrize("name", ["J2K_pixelrep_mismatch.dcm", "693_J2KR.dcm", "693_UNCI.dcm"])
def test_real_heads(name: str) -> None:
    assert region_of(*real_file(name)) is Region.HEAD


def test_a_real_abdomen() -> None:
    assert region_of(*real_file("explicit_VR-UN.dcm")) is Region.ABDOMEN


def test_a_real_chest_is_one_stretch(real_chest: NDArray[np.int16]) -> None:
    regions = [region_of(plane.astype(np.float32), (3.046, 3.046)) for plane in real_chest]
    chest = [k for k, region in enumerate(regions) if region is Region.CHEST]
    assert len(chest) >= 20
    assert chest == list(range(chest[0], chest[-1] + 1))


def test_one_lung_is_enough(real_chest: NDArray[np.int16]) -> None:
    plane = real_chest[17].astype(np.float32)
    assert region_of(plane, (3.046, 3.046)) is Region.CHEST
    for half in (np.s_[:, :64], np.s_[:, 64:]):
        one = plane.copy()
        one[half] = np.where((one[half] < -300) & (one[half] > -960), 20, one[half])
        assert region_of(one, (3.046, 3.046)) is Region.CHEST
    none = np.where((plane < -300) & (plane > -960), 20, plane)
    assert region_of(none, (3.046, 3.046)) is not Region.CHEST


def test_air_alone_shows_nothing() -> None:
    assert region_of(np.full((128, 128), -1000, np.float32), (3, 3)) is Region.OTHER


def test_gas_is_no_lung_however_large_where_it_is_free_air() -> None:
    rows, columns = np.mgrid[:100, :100]
    radius = np.hypot(rows - 50, columns - 50)
    for gas_radius, value, lung in ((11, -960, False), (11, -850, True), (20, -955, True), (20, -995, False)):
        plane = np.where(radius < gas_radius, value, np.where(radius < 40, 20, -1000)).astype(np.float32)
        assert (lung_mm2(plane, (4.0, 4.0)) > 1500) == lung


def test_what_lies_above_the_lungs_is_the_neck() -> None:
    a, c, h, limb, n = Region.ABDOMEN, Region.CHEST, Region.HEAD, Region.LIMB, Region.NECK
    assert in_context([limb, a, c, c, a, limb, h]) == [limb, a, c, c, n, n, h]
    assert in_context([a, limb]) == [a, limb]


def counted(data: Path) -> dict[str, Counter[Region]]:
    """Regions of all shared slices, by what the list of series says of them."""
    said = {row["file"]: row for row in json.loads((data / "ct_hu" / "series.json").read_text())}
    counts: dict[str, Counter[Region]] = defaultdict(Counter)
    series, _ = scan.find(data / "ct_hu", Options(min_slices=1))
    for one in series:
        assert one.geometry is not None
        coarse = Coarse(one.geometry)
        row = said[one.relative_paths[0]]
        for plane in decode.planes(one, range(len(one.planes))):
            assert not isinstance(plane, Rejected)
            region = classify(coarse.copy(plane), coarse.pixel_mm)
            counts[row["region"] if row["collection"][:5] != "COVID" else "mixed level"][region] += 1
    return counts


def test_all_shared_slices(fedscan_data: Path) -> None:
    """Figures of the shared set: of 1135 limb slices one is taken for chest, and it shows lung (a tumour of the
    shoulder's wall); of 99 of abdomens 38, all of them bases of the lungs at the top of their series."""
    counts = counted(fedscan_data)
    assert counts["extremity"][Region.CHEST] <= 1
    assert sum(counts["extremity"].values()) == 1135
    assert counts["torso"][Region.CHEST] == 0
    assert 36 <= counts["abdomen"][Region.CHEST] <= 40
    assert 285 <= counts["chest"][Region.CHEST] <= 305
    assert 13 <= counts["mixed level"][Region.CHEST] <= 15
    assert counts["extremity"][Region.HEAD] == 0
