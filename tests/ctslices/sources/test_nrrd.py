"""ctslices.sources.nrrd: spaces, encodings, detached pixels, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nrrd as pynrrd
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ctslices.reject import Reason, Rejected
from ctslices.series import Series
from ctslices.sources import nrrd

CUBE = (np.arange(8 * 9 * 6, dtype=np.int16) * 3 - 900).reshape(8, 9, 6)
HEADER = {
    "space": "left-posterior-superior",
    "space directions": np.diag([2.0, 3, 5]),
    "space origin": np.array([-31.0, -17, -90]),
    "kinds": ["domain", "domain", "domain"],
}


def saved(folder: Path, name: str = "v.nrrd", values: Any = CUBE, **header: Any) -> Path:
    chosen = {key: value for key, value in (HEADER | header).items() if value is not None}
    pynrrd.write(str(folder / name), values, chosen)
    return folder / name


def read(path: Path) -> Series:
    series = nrrd.read(path, path.name, path.parent)
    assert isinstance(series, Series), series
    return series


@pytest.mark.parametrize("encoding", ["raw", "gzip", "bzip2", "ascii"])
@pytest.mark.parametrize("name", ["v.nrrd", "v.nhdr"])
def test_every_encoding(tmp_path: Path, encoding: str, name: str) -> None:
    path = saved(tmp_path, name, encoding=encoding)
    series = read(path)
    assert series.geometry is not None
    assert series.geometry.spacing_mm == pytest.approx((3, 2))
    assert series.geometry.shape == (9, 8)
    assert [plane.position_mm for plane in series.planes] == pytest.approx([-90, -85, -80, -75, -70, -65])
    got = list(nrrd.read_planes(series, range(6)))
    assert all(np.array_equal(plane, CUBE[:, :, k].T) for k, plane in enumerate(got))  # type: ignore[arg-type]
    assert (nrrd.data_file(path) is None) == name.endswith("nrrd")


@pytest.mark.parametrize(
    ("space", "origin"),
    [
        ("left-posterior-superior", (-31, -17, -90)),
        ("LPS", (-31, -17, -90)),
        ("right-anterior-superior", (31, 17, -90)),
        ("RAS", (31, 17, -90)),
        ("left-anterior-superior", (-31, 17, -90)),
    ],
)
def test_spaces_become_lps(tmp_path: Path, space: str, origin: tuple[int, int, int]) -> None:
    first = min(read(saved(tmp_path, space=space)).planes, key=lambda plane: plane.frame)
    assert first.origin_mm == pytest.approx(origin)


def test_units(tmp_path: Path) -> None:
    series = read(saved(tmp_path, **{"space units": ["cm", "cm", "cm"]}))
    assert series.geometry is not None
    assert series.geometry.spacing_mm == pytest.approx((30, 20))


@pytest.mark.parametrize(
    ("values", "header", "reason"),
    [
        (CUBE, {"space": "scanner-xyz"}, Reason.NO_GEOMETRY),
        (CUBE, {"space": None, "space dimension": 3}, Reason.NO_GEOMETRY),
        (CUBE, {"space origin": None}, Reason.NO_GEOMETRY),
        (CUBE, {"space directions": None}, Reason.NO_GEOMETRY),
        (CUBE, {"space directions": np.diag([2.0, 0, 5])}, Reason.NO_GEOMETRY),
        (CUBE, {"space units": ["mm", "mm", "furlong"]}, Reason.NO_GEOMETRY),
        (CUBE, {"kinds": ["vector", "domain", "domain"]}, Reason.NOT_HU),
        (CUBE.astype(np.uint8), {}, Reason.NOT_HU),
        (CUBE, {"space directions": np.array([[2.0, 0, 0], [0, 2, 1.9], [0, -1.9, 2]])}, Reason.NOT_AXIAL),
    ],
)
def test_what_is_refused(tmp_path: Path, values: Any, header: dict[str, Any], reason: Reason) -> None:
    got = nrrd.read(saved(tmp_path, values=values, **header), "v.nrrd", tmp_path)
    assert isinstance(got, Rejected)
    assert got.reason is reason


def test_pixels_that_are_missing_or_cut_short(tmp_path: Path) -> None:
    path = saved(tmp_path, "v.nhdr", encoding="raw")
    series = read(path)
    pixels = nrrd.data_file(path)
    assert pixels is not None
    pixels.write_bytes(pixels.read_bytes()[:100])
    assert all(isinstance(plane, Rejected) for plane in nrrd.read_planes(series, range(3)))
    pixels.unlink()
    got = nrrd.read(path, "v.nhdr", tmp_path)
    assert isinstance(got, Rejected)
    assert got.reason is Reason.NO_PIXEL_DATA


def test_the_headers_texts_go_nowhere(tmp_path: Path) -> None:
    series = read(saved(tmp_path, content="DOE JOHN", patient="DOE"))
    assert "DOE" not in repr(series)


@settings(max_examples=120, deadline=None)
@given(changes=st.lists(st.tuples(st.integers(0, 320), st.integers(0, 255)), min_size=1, max_size=5))
def test_a_mutated_header_is_refused_or_read_and_never_raises(
    tmp_path_factory: pytest.TempPathFactory, changes: list[tuple[int, int]]
) -> None:
    folder = tmp_path_factory.getbasetemp()
    whole = bytearray(saved(folder, "m.nrrd").read_bytes())
    for place, value in changes:
        whole[place] = value
    (folder / "m.nrrd").write_bytes(whole)
    got = nrrd.read(folder / "m.nrrd", "m.nrrd", folder)
    if isinstance(got, Series):
        for plane in nrrd.read_planes(got, [0, len(got.planes) - 1]):
            assert isinstance(plane, Rejected) or plane.min() >= -1024
