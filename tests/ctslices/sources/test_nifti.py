"""ctslices.sources.nifti (and sources.volume): affine, units, scaling, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ctslices.reject import Reason, Rejected
from ctslices.series import Series
from ctslices.sources import nifti

CUBE = (np.arange(8 * 9 * 6, dtype=np.int16) * 3 - 900).reshape(8, 9, 6)
AFFINE = np.array([[-2.0, 0, 0, 31], [0, -3, 0, 17], [0, 0, 5, -90], [0, 0, 0, 1]])


def saved(folder: Path, values: Any = CUBE, affine: Any = AFFINE, name: str = "v.nii", **header: Any) -> Path:
    image = nib.Nifti1Image(values, affine)
    for key, value in header.items():
        image.header[key] = value
    nib.save(image, folder / name)
    return folder / name


def read(path: Path) -> Series:
    series = nifti.read(path, path.name)
    assert isinstance(series, Series), series
    return series


def planes(series: Series) -> list[Any]:
    return list(nifti.read_planes(series, range(len(series.planes))))


def test_the_affine_becomes_lps(tmp_path: Path) -> None:
    series = read(saved(tmp_path))
    geometry = series.geometry
    assert geometry is not None
    assert geometry.row_direction == pytest.approx((1, 0, 0))
    assert geometry.column_direction == pytest.approx((0, 1, 0))
    assert geometry.spacing_mm == pytest.approx((3, 2))
    assert geometry.shape == (9, 8)
    assert series.planes[0].origin_mm == pytest.approx((-31, -17, -90))
    assert [p.position_mm for p in series.planes] == pytest.approx([-90, -85, -80, -75, -70, -65])
    assert series.spacing_between_mm == pytest.approx(5)
    assert series.raw_patient is None
    assert all(np.array_equal(plane, CUBE[:, :, k].T) for k, plane in enumerate(planes(series)))


@pytest.mark.parametrize("name", ["v.nii", "v.nii.gz"])
def test_scaling_and_padding(tmp_path: Path, name: str) -> None:
    values = np.linspace(-2000, 900, CUBE.size).reshape(CUBE.shape)
    image = nib.Nifti1Image(values, AFFINE)
    image.set_data_dtype(np.int16)
    nib.save(image, tmp_path / name)
    got = np.stack(planes(read(tmp_path / name)))
    assert np.abs(got - np.maximum(values, -1024).transpose(2, 1, 0)).max() < 0.05
    holed = CUBE.astype(np.float32)
    holed[0, 0, 0] = np.nan
    assert planes(read(saved(tmp_path, holed, name=name)))[0][0, 0] == -1024


@pytest.mark.parametrize(("units", "scale"), [(1, 1000.0), (2, 1.0), (3, 0.001), (0, 1.0)])
def test_units(tmp_path: Path, units: int, scale: float) -> None:
    series = read(saved(tmp_path, affine=np.diag([2 / scale, 2 / scale, 5 / scale, 1]), xyzt_units=units))
    assert series.geometry is not None
    assert series.geometry.spacing_mm == pytest.approx((2, 2), rel=1e-4)


def test_the_sform_counts_more_and_a_qform_is_enough(tmp_path: Path) -> None:
    image = nib.Nifti1Image(CUBE, None)
    image.set_qform(AFFINE, code=1)
    image.set_sform(None, code=0)
    nib.save(image, tmp_path / "v.nii")
    assert read(tmp_path / "v.nii").planes[0].origin_mm == pytest.approx((-31, -17, -90))


def test_a_time_axis_of_one_is_no_time_axis(tmp_path: Path) -> None:
    series = read(saved(tmp_path, CUBE[..., None]))
    assert np.array_equal(planes(series)[2], CUBE[:, :, 2].T)


def turned(degrees: float) -> Any:
    angle = np.radians(degrees)
    turn = np.eye(4)
    turn[1:3, 1:3] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    return turn @ AFFINE


SKEWED = AFFINE + np.array([[0, 0.9, 0, 0], [0] * 4, [0] * 4, [0] * 4])


@pytest.mark.parametrize(
    ("values", "affine", "header", "reason"),
    [
        (np.stack([CUBE, CUBE], -1), AFFINE, {}, Reason.NO_GEOMETRY),
        (CUBE[:, :, 0], AFFINE, {}, Reason.NO_GEOMETRY),
        (CUBE, SKEWED, {}, Reason.NO_GEOMETRY),
        (CUBE, turned(31), {}, Reason.NOT_AXIAL),
        (CUBE, turned(44), {}, Reason.NOT_AXIAL),
        (CUBE.astype(np.uint8), AFFINE, {}, Reason.NOT_HU),
        (CUBE.astype(np.complex64), AFFINE, {}, Reason.NOT_HU),
        (np.zeros((4, 4, 6), [("R", "u1"), ("G", "u1"), ("B", "u1")]), AFFINE, {}, Reason.NOT_HU),
    ],
)
def test_what_is_refused(tmp_path: Path, values: Any, affine: Any, header: dict[str, Any], reason: Reason) -> None:
    got = nifti.read(saved(tmp_path, values, affine, **header), "v.nii")
    assert isinstance(got, Rejected)
    assert got.reason is reason


def test_without_sform_and_qform_nobody_knows_left_from_right(tmp_path: Path) -> None:
    path = saved(tmp_path)
    whole = bytearray(path.read_bytes())
    whole[252:256] = bytes(4)
    path.write_bytes(whole)
    got = nifti.read(path, "v.nii")
    assert isinstance(got, Rejected)
    assert got.reason is Reason.NO_GEOMETRY


def test_a_coronal_volume_is_read_along_z(tmp_path: Path) -> None:
    """Its own planes are coronal, but an array has no favourite axis: the axial ones are there."""
    series = read(saved(tmp_path, CUBE.transpose(0, 2, 1), AFFINE[:, [0, 2, 1, 3]]))
    assert all(np.array_equal(plane, CUBE[:, :, k].T) for k, plane in enumerate(planes(series)))
    assert isinstance(read(saved(tmp_path, affine=turned(29))), Series)


@pytest.mark.parametrize("cut", [400, 700])
def test_truncated(tmp_path: Path, cut: int) -> None:
    path = saved(tmp_path)
    path.write_bytes(path.read_bytes()[:cut])
    got = nifti.read(path, "v.nii")
    assert isinstance(got, Rejected)
    assert got.reason is Reason.TRUNCATED


def test_another_file_at_decoding_is_noticed(tmp_path: Path) -> None:
    series = read(saved(tmp_path))
    saved(tmp_path, CUBE[:5])
    assert {type(plane) for plane in planes(series)} == {Rejected}


def test_the_headers_texts_go_nowhere(tmp_path: Path) -> None:
    series = read(saved(tmp_path, descrip=b"DOE^JOHN", aux_file=b"SECRET", db_name=b"SECRET", intent_name=b"SECRET"))
    assert "DOE" not in repr(series)
    assert "SECRET" not in repr(series)


@settings(max_examples=150, deadline=None)
@given(changes=st.lists(st.tuples(st.integers(0, 351), st.integers(0, 255)), min_size=1, max_size=6))
def test_a_mutated_header_is_refused_or_read_and_never_raises(
    tmp_path_factory: pytest.TempPathFactory, changes: list[tuple[int, int]]
) -> None:
    folder = tmp_path_factory.getbasetemp()
    whole = bytearray(saved(folder, name="m.nii").read_bytes())
    for place, value in changes:
        whole[place] = value
    (folder / "m.nii").write_bytes(whole)
    got = nifti.read(folder / "m.nii", "m.nii")
    if isinstance(got, Series):
        for plane in nifti.read_planes(got, range(0, len(got.planes), max(1, len(got.planes) // 3))):
            assert isinstance(plane, Rejected) or (plane.shape == got.geometry.shape and plane.min() >= -1024)  # type: ignore[union-attr]
