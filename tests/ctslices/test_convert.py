"""The way of one series, against an area average made another way: a float64 integral image of the source.

The oracle takes nothing from the package but where the field lies (`corners_mm`, `position_mm`): those points, in
patient millimetres, go back to voxel indices through the inverse of the affine that the test itself wrote. The mean
over a field pixel is then a difference of four values of the source's integral, exact for box-shaped pixels.
"""

from __future__ import annotations

import itertools
import zipfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import nrrd
import numpy as np
import pydicom
import pytest
from numpy.typing import NDArray
from PIL import Image

from ctslices.convert import Converted, convert, nearest_to_steps, not_hu, picture
from ctslices.options import Options
from ctslices.reject import Reason
from ctslices.series import Series
from ctslices.sources import scan

Affine = NDArray[np.float64]
ALL = Options(min_slices=1, region="any", every_mm=None)


def write_nifti(path: Path, values: NDArray[np.generic], affine_lps: Affine) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = nib.Nifti1Image(values, np.diag([-1.0, -1, 1, 1]) @ affine_lps)
    image.header.set_xyzt_units("mm")
    nib.save(image, path)
    return path


def only(export: Path, options: Options = ALL) -> Series:
    series, rejected = scan.find(export, options)
    assert not rejected
    assert len(series) == 1
    return series[0]


def integral_mean(plane: NDArray[np.float64], rows: NDArray[np.float64], columns: NDArray[np.float64]) -> Affine:
    """Mean of `plane` (outside it -1024) over the cells between edges, given in index units (pixel k: k-.5 to k+.5)."""
    above = np.zeros((plane.shape[0] + 1, plane.shape[1] + 1))
    above[1:, 1:] = (plane + 1024).cumsum(0).cumsum(1)

    def at(r: NDArray[np.float64], c: NDArray[np.float64]) -> NDArray[np.float64]:
        r, c = np.clip(r + 0.5, 0, plane.shape[0]), np.clip(c + 0.5, 0, plane.shape[1])
        i, j = np.minimum(r.astype(int), plane.shape[0] - 1), np.minimum(c.astype(int), plane.shape[1] - 1)
        fr, fc = (r - i)[:, None], (c - j)[None]
        a, b = above[i][:, j], above[i][:, j + 1]
        d, e = above[i + 1][:, j], above[i + 1][:, j + 1]
        return (a * (1 - fc) + b * fc) * (1 - fr) + (d * (1 - fc) + e * fc) * fr

    whole = at(rows, columns)
    cells = np.diff(np.diff(whole, axis=0), axis=1)
    return cells / np.outer(np.diff(rows), np.diff(columns)) - 1024


def expected(volume: NDArray[np.generic], affine_lps: Affine, got: Converted, number: int) -> NDArray[np.float64]:
    """float64 [size, size]: slice `number` of `got`, from the array [i, j, k] and its affine."""
    corner, right, _, down = (np.asarray(p) for p in got.corners_mm)
    size = got.hu.shape[1]
    normal = np.cross(right - corner, down - corner)
    normal /= np.linalg.norm(normal)
    start = corner + normal * (float(got.position_mm[number]) - float(got.position_mm[0]))
    inverse = np.linalg.inv(affine_lps)
    steps = np.linspace(0, 1, size + 1)[:, None]
    along_right = (start + steps * (right - corner)) @ inverse[:3, :3].T + inverse[:3, 3]
    along_down = (start + steps * (down - corner)) @ inverse[:3, :3].T + inverse[:3, 3]
    moves_right, moves_down = (int(np.argmax(np.ptp(edges, axis=0))) for edges in (along_right, along_down))
    stack = 3 - moves_right - moves_down
    for edges in (along_right, along_down):
        assert np.allclose(edges[:, stack], np.round(edges[0, stack]), atol=1e-2), "the slice leaves its plane"
    plane = np.asarray(volume, np.float64).take(round(along_right[0, stack]), axis=stack)
    if moves_right < moves_down:
        plane = plane.T
    rows, columns = along_down[:, moves_down], along_right[:, moves_right]
    flipped = plane[:: int(np.sign(rows[1] - rows[0])), :: int(np.sign(columns[1] - columns[0]))]
    if rows[1] < rows[0]:
        rows = plane.shape[0] - 1 - rows
    if columns[1] < columns[0]:
        columns = plane.shape[1] - 1 - columns
    return integral_mean(np.maximum(flipped, -1024), rows, columns)


def deviations(volume: NDArray[np.generic], affine_lps: Affine, got: Converted) -> list[float]:
    """Mean absolute difference of each slice to the oracle, HU."""
    return [
        float(np.abs(got.hu[k] - np.clip(expected(volume, affine_lps, got, k), -1024, 32767)).mean())
        for k in range(len(got.hu))
    ]


def turned(volume: NDArray[np.int16], affine: Affine, order: Sequence[int], flips: Sequence[bool]) -> tuple:  # type: ignore[type-arg]
    """The same volume in the same place with its axes in another order and sense."""
    values, placed = volume.transpose(order), affine[:, [*order, 3]].copy()
    for axis, flip in enumerate(flips):
        if flip:
            values = np.flip(values, axis)
            placed[:3, 3] += placed[:3, axis] * (values.shape[axis] - 1)
            placed[:3, axis] *= -1
    return np.ascontiguousarray(values), placed


@pytest.fixture(scope="module")
def chest(real_chest: NDArray[np.int16]) -> tuple[NDArray[np.int16], Affine]:
    """[i, j, k] along LPS, every third slice, cut unevenly so that no two axes look alike; its affine in LPS."""
    volume = np.ascontiguousarray(real_chest[2::3, 10:120, 2:122].transpose(2, 1, 0))
    affine = np.diag([3.046, 3.046, 30.0, 1.0])
    affine[:3, 3] = [-190.3, -141.7, -812.2]
    return volume, affine


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
def test_every_order_and_sense_of_the_axes_gives_the_same_slices(
    tmp_path: Path, chest: tuple[NDArray[np.int16], Affine], order: tuple[int, ...]
) -> None:
    write_nifti(tmp_path / "plain" / "v.nii", *chest)
    plain = convert(only(tmp_path / "plain"), ALL)
    assert len(plain.hu) == chest[0].shape[2]
    for number, flips in enumerate(itertools.product((False, True), repeat=3)):
        values, affine = turned(*chest, order, flips)
        write_nifti(tmp_path / str(number) / "v.nii", values, affine)
        got = convert(only(tmp_path / str(number)), ALL)
        assert max(deviations(values, affine, got)) <= 0.6
        # coarse copies of a flipped plane begin at its other end: the centre may move by part of one of their pixels
        assert np.allclose(got.centre_mm, plain.centre_mm, atol=4)
        assert np.allclose(got.position_mm, plain.position_mm, atol=1e-3)


@pytest.mark.parametrize("spacing", [(0.61, 0.61, 1.0), (0.9, 1.7, 5.0), (6.5, 6.5, 8.0), (5.625, 5.625, 3.0)])
@pytest.mark.parametrize(("side", "size"), [(360.0, 64), (211.3, 37)])
def test_every_spacing(
    tmp_path: Path,
    chest: tuple[NDArray[np.int16], Affine],
    spacing: tuple[float, float, float],
    side: float,
    size: int,
) -> None:
    affine = np.diag([*spacing, 1.0])
    affine[:3, 3] = [13.7, -88.1, 402.0]
    write_nifti(tmp_path / "v.nii.gz", chest[0], affine)
    got = convert(only(tmp_path), replace(ALL, field_mm=side, size=size))
    assert got.hu.shape == (chest[0].shape[2], size, size)
    assert max(deviations(chest[0], affine, got)) <= 0.6
    corners = np.asarray(got.corners_mm)
    assert np.allclose(np.linalg.norm(corners - np.roll(corners, 1, axis=0), axis=1), side)
    assert np.allclose(corners.mean(0), got.centre_mm)


def tilted(affine: Affine, degrees: float, sheared: bool) -> Affine:
    """The planes turned about the patient's x; a sheared stack goes on along z, as a table does under a gantry."""
    angle = np.radians(degrees)
    turn = np.array([[1, 0, 0], [0, np.cos(angle), -np.sin(angle)], [0, np.sin(angle), np.cos(angle)]])
    placed = affine.copy()
    placed[:3, :3] = turn @ affine[:3, :3]
    if sheared:
        placed[:3, 2] = affine[:3, 2]
    return placed


@pytest.mark.parametrize("sheared", [True, False])
@pytest.mark.parametrize("degrees", [-29.0, -18.5, 7.0, 22.0])
def test_tilted_planes_stay_whole_and_stand_on_their_true_normal(
    tmp_path: Path, chest: tuple[NDArray[np.int16], Affine], degrees: float, sheared: bool
) -> None:
    affine = tilted(chest[1], degrees, sheared)
    write_nifti(tmp_path / "v.nii", chest[0], affine)
    series = only(tmp_path)
    got = convert(series, ALL)
    assert series.tilt_degrees == pytest.approx(abs(degrees), abs=0.01)
    assert max(deviations(chest[0], affine, got)) <= 0.6
    step = 30.0 * (np.cos(np.radians(degrees)) if sheared else 1)
    assert np.allclose(np.diff(got.position_mm), step, atol=1e-3)
    assert series.spacing_between_mm == pytest.approx(step, abs=1e-3)


def test_a_sheared_rod_along_the_true_normal_is_upright(tmp_path: Path) -> None:
    affine = tilted(np.diag([2.0, 2.0, 5.0, 1.0]), 20.0, sheared=True)
    normal = np.cross(affine[:3, 0], affine[:3, 1])
    normal /= np.linalg.norm(normal)
    index = np.stack(np.meshgrid(*(np.arange(n) for n in (100, 100, 20)), indexing="ij"), -1)
    points = index @ affine[:3, :3].T
    away = points - points[60, 50, 10]
    distance = np.linalg.norm(away - (away @ normal)[..., None] * normal, axis=-1)
    body = (np.abs(index[..., 0] - 50) < 45) & (np.abs(index[..., 1] - 50) < 40)
    volume = np.where(distance < 10, 900 + index[..., 2], np.where(body, 40, -1000)).astype(np.int16)
    write_nifti(tmp_path / "v.nii", volume, affine)
    got = convert(only(tmp_path), replace(ALL, field_mm=220.0))
    weights = np.maximum(got.hu - 100.0, 0)
    rows, columns = np.mgrid[:64, :64]
    spots = [((rows * w).sum() / w.sum(), (columns * w).sum() / w.sum()) for w in weights]
    assert np.ptp(np.asarray(spots), axis=0).max() < 0.4


def marked(shape: tuple[int, int, int] = (80, 70, 12)) -> NDArray[np.int16]:
    """[i, j, k] along LPS: a body of water in air, with a rod of bone at the patient's right and front."""
    i, j, k = np.meshgrid(*(np.arange(n) for n in shape), indexing="ij")
    volume = np.where(((i - 40) / 35) ** 2 + ((j - 35) / 28) ** 2 < 1, 0, -1000)
    volume[(np.abs(i - 22) < 5) & (np.abs(j - 22) < 4)] = 700
    volume[k == 0] -= 3
    return volume.astype(np.int16)


def assert_right_is_left(got: Converted) -> None:
    """Bone in the image's upper left; the foot end first."""
    plane = got.hu[len(got.hu) // 2].astype(int)
    half = plane.shape[0] // 2
    assert (plane[:half, :half] > 300).sum() > 4
    assert (plane > 300).sum() == (plane[:half, :half] > 300).sum()
    assert (np.diff(got.position_mm) > 0).all()
    assert got.hu[0].max() < got.hu[1].max()
    corners = np.asarray(got.corners_mm)
    assert corners[0, 0] < corners[1, 0]
    assert corners[0, 1] < corners[3, 1]


@pytest.mark.parametrize("flips", list(itertools.product((False, True), repeat=3)))
def test_the_patients_right_is_on_the_images_left_in_nifti(tmp_path: Path, flips: tuple[bool, ...]) -> None:
    values, affine = turned(marked(), np.diag([4.0, 4.0, 6.0, 1.0]), (1, 0, 2), flips)
    write_nifti(tmp_path / "v.nii.gz", values, affine)
    assert_right_is_left(convert(only(tmp_path), ALL))


@pytest.mark.parametrize(
    ("space", "signs"),
    [
        ("left-posterior-superior", (1, 1, 1)),
        ("right-anterior-superior", (-1, -1, 1)),
        ("RAS", (-1, -1, 1)),
        ("left-anterior-superior", (1, -1, 1)),
    ],
)
def test_the_patients_right_is_on_the_images_left_in_nrrd(
    tmp_path: Path, space: str, signs: tuple[int, int, int]
) -> None:
    directions = np.diag(np.asarray([4.0, 4.0, 6.0]) * signs)
    header = {"space": space, "space directions": directions, "space origin": np.zeros(3), "kinds": ["domain"] * 3}
    nrrd.write(str(tmp_path / "v.nrrd"), marked(), header)
    assert_right_is_left(convert(only(tmp_path), ALL))


@pytest.mark.parametrize(
    "orientation", [[1, 0, 0, 0, 1, 0], [-1, 0, 0, 0, -1, 0], [0, 1, 0, 1, 0, 0], [1, 0, 0, 0, -1, 0]]
)
def test_the_patients_right_is_on_the_images_left_in_dicom(
    tmp_path: Path,
    write_series,  # type: ignore[no-untyped-def]
    orientation: list[int],
) -> None:
    row, column = np.asarray(orientation[:3]), np.asarray(orientation[3:])
    planes = marked().transpose(2, 1, 0)
    if row[1]:
        planes = planes.transpose(0, 2, 1)
    planes = planes[:, :: int(column.sum()), :: int(row.sum())]
    start = np.where(np.minimum(row, 0) + np.minimum(column, 0) < 0, np.asarray([79, 69, 0]) * 4.0, 0.0)

    def place(ds: pydicom.Dataset) -> None:
        ds.ImageOrientationPatient = orientation
        ds.ImagePositionPatient = [start[0], start[1], float(ds.ImagePositionPatient[2])]

    write_series(tmp_path / "s", "someone", planes, step_mm=6.0, spacing_mm=4.0, change=place)
    assert_right_is_left(convert(only(tmp_path), ALL))


@pytest.mark.parametrize("name", ["chest_8mm_b40f", "phantom_tilt_a", "phantom_tilt_b"])
def test_real_dicom_is_within_two_hu_of_the_oracle(fedscan_data: Path, tmp_path: Path, name: str) -> None:
    with zipfile.ZipFile(fedscan_data / "dicom" / f"{name}.zip") as archive:
        archive.extractall(tmp_path)
    for other in list(tmp_path.rglob("*.txt")):
        other.unlink()
    got = convert(only(tmp_path), ALL)
    sets = [pydicom.dcmread(path) for path in tmp_path.rglob("*.dcm")]
    row, column = (np.asarray(sets[0].ImageOrientationPatient[k : k + 3], float) for k in (0, 3))
    normal = np.cross(row, column)
    sets.sort(key=lambda ds: float(np.asarray(ds.ImagePositionPatient, float) @ normal))
    assert len(sets) == len(got.hu)
    worst = 0.0
    for number, ds in enumerate(sets):
        hu = ds.pixel_array.astype(float) * float(ds.RescaleSlope) + float(ds.RescaleIntercept)
        affine = np.eye(4)
        affine[:3, 0], affine[:3, 1] = row * float(ds.PixelSpacing[1]), column * float(ds.PixelSpacing[0])
        affine[:3, 2], affine[:3, 3] = normal, np.asarray(ds.ImagePositionPatient, float)
        one = expected(np.maximum(hu, -1024).T[:, :, None], affine, got, number)
        worst = max(worst, float(np.abs(got.hu[number] - one).mean()))
    assert worst <= 0.6


def test_shared_volumes_are_within_two_hu_of_the_oracle(fedscan_data: Path, tmp_path: Path) -> None:
    for patient in ("p001", "p004", "p005", "p012", "p030", "p056"):
        for path in (fedscan_data / "ct_hu" / patient).glob("*.nii.gz"):
            place = tmp_path / f"{patient}-{path.name}"
            place.mkdir()
            (place / path.name).write_bytes(path.read_bytes())
            image = nib.load(path)
            got = convert(only(place), replace(ALL, every_mm=20.0))
            volume, affine = np.asarray(image.dataobj), np.diag([-1.0, -1, 1, 1]) @ image.affine
            assert max(deviations(volume, affine, got)) <= 0.6


def test_the_step_takes_the_nearest_slice_and_none_twice() -> None:
    assert nearest_to_steps([0, 1.25, 2.5, 3.75, 5, 6.25, 7.5, 8.75, 10], 5) == [0, 4, 8]
    assert nearest_to_steps([0, 3, 6, 9, 12, 15], 5) == [0, 2, 3, 5]
    assert nearest_to_steps([0, 8, 16, 24], 5) == [0, 1, 2, 3]
    assert nearest_to_steps([0, 2.5, 7.5, 10], 5) == [0, 1, 3]
    assert nearest_to_steps([30, 20, 10, 0], 10) == [3, 2, 1, 0]
    assert nearest_to_steps([5.0, 5.1, 60.0], 5) == [0, 2]
    assert nearest_to_steps([7.0], 5) == [0]
    assert nearest_to_steps([2, 1, 3], None) == [1, 0, 2]


def test_a_slice_is_a_source_slice_and_never_an_average_of_several(
    tmp_path: Path, chest: tuple[NDArray[np.int16], Affine]
) -> None:
    volume, affine = chest[0], chest[1].copy()
    affine[2, 2] = 3.0
    write_nifti(tmp_path / "v.nii", volume, affine)
    got = convert(only(tmp_path), replace(ALL, every_mm=5.0))
    assert got.planes == (0, 2, 3, 5, 7, 8, 10)
    assert max(deviations(volume, affine, got)) <= 0.6


def test_only_lung_is_kept_and_the_rest_is_counted(fedscan_data: Path, tmp_path: Path) -> None:
    source = fedscan_data / "ct_hu" / "p001" / "s1.nii.gz"
    (tmp_path / "v.nii.gz").write_bytes(source.read_bytes())
    series = only(tmp_path)
    got = convert(series, Options(every_mm=None))
    assert len(got.hu) + sum(got.dropped_by_region.values()) == len(series.planes)
    assert got.dropped_by_region.keys() == {"abdomen", "neck"}
    assert list(got.planes) == list(range(got.planes[0], got.planes[-1] + 1))
    assert len(convert(series, ALL).hu) == len(series.planes)


def test_memory_does_not_grow_with_the_series(tmp_path: Path) -> None:
    import tracemalloc

    peaks = []
    for count in (20, 120):
        folder = tmp_path / str(count)
        volume = np.tile(marked((160, 140, 1)), (1, 1, count))
        volume += np.arange(count, dtype=np.int16)
        write_nifti(folder / "v.nii", volume, np.diag([2.0, 2.0, 5.0, 1.0]))
        series = only(folder)
        tracemalloc.start()
        convert(series, ALL)
        peaks.append(tracemalloc.get_traced_memory()[1] - count * 64 * 64 * 2)
        tracemalloc.stop()
    assert peaks[1] < peaks[0] + 2 * 120 * 64 * 64 * 2


@pytest.mark.parametrize(
    "spoil",
    [
        lambda v: (v + 1000).clip(0),
        lambda v: ((v + 1000) / 1700).astype(np.float32),
        lambda v: (v + 1000).clip(0) * (255 / v.max((0, 1), keepdims=True)),
        lambda v: -1000 + (v + 1000.0) * (2000 / (v.max((0, 1), keepdims=True) + 1000)),
    ],
)
def test_what_only_looks_like_ct_is_refused(tmp_path: Path, spoil) -> None:  # type: ignore[no-untyped-def]
    volume = marked() + 7 * np.arange(12, dtype=np.int16)
    values = spoil(volume).astype(np.float32)
    write_nifti(tmp_path / "v.nii", values, np.diag([4.0, 4.0, 6.0, 1.0]))
    got = convert(only(tmp_path), ALL)
    assert [r.reason for r in got.rejected] == [Reason.NOT_HU]
    assert len(got.hu) == len(got.planes) == 0
    write_nifti(tmp_path / "v.nii", volume, np.diag([4.0, 4.0, 6.0, 1.0]))
    assert not convert(only(tmp_path), ALL).rejected
    assert not_hu(only(tmp_path), []) is None


def test_planted_text_goes_to_quarantine_and_a_release_lets_it_in(tmp_path: Path) -> None:
    from PIL import ImageDraw

    rng = np.random.default_rng(5)
    volume = np.kron(marked()[:, :, :6], np.ones((4, 4, 1), np.int16)) + rng.normal(0, 12, (320, 280, 6))
    canvas = Image.new("1", (320, 280))
    ImageDraw.Draw(canvas).text((90, 130), "DOE JOHN 1950 HOSPITAL", fill=1)
    volume[np.asarray(canvas).T, 3] = 1500
    write_nifti(tmp_path / "v.nii", np.rint(volume).astype(np.int16), np.diag([1.0, 1.0, 5.0, 1.0]))
    series = only(tmp_path)
    got = convert(series, ALL)
    assert got.quarantined == (3,)
    assert 3 not in got.planes
    assert picture(series, 3).shape == (280, 320)
    assert picture(series, 3).max() == 255
    assert len(convert(series, replace(ALL, released=frozenset({("v.nii", 3)}))).hu) == 6
    assert len(convert(series, replace(ALL, allow_burned_in=True)).hu) == 6


def test_pictures_are_padded_to_a_square_and_averaged(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    grey = np.kron(rng.integers(0, 256, (20, 30)), np.ones((8, 8))).astype(np.uint8)
    (tmp_path / "COVID").mkdir()
    Image.fromarray(grey).save(tmp_path / "COVID" / "Covid (7).png")
    got = convert(only(tmp_path), ALL)
    assert (got.values, got.labels, got.centre_mm, got.corners_mm) == ("grey", ("COVID",), None, ())
    assert got.position_mm.tolist() == [7.0]
    padded = np.pad(grey.astype(float), ((40, 40), (0, 0)))
    edges = np.linspace(0, 240, 65) - 0.5
    wanted = integral_mean(padded - 1024, edges, edges) + 1024
    assert np.abs(got.hu[0] - wanted).max() <= 0.51


def test_a_volume_that_ends_too_early_costs_itself_alone(
    tmp_path: Path, chest: tuple[NDArray[np.int16], Affine]
) -> None:
    path = write_nifti(tmp_path / "v.nii.gz", *chest)
    series = only(tmp_path)
    path.write_bytes(path.read_bytes()[:-20000])
    got = convert(series, ALL)
    assert {r.reason for r in got.rejected} <= {Reason.TRUNCATED, Reason.UNDECODABLE}
    assert got.rejected
    assert len(got.hu) < len(series.planes)
