"""An export's DICOM files to series: each trap of real exports is one test."""

from __future__ import annotations

import pickle
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pydicom
import pytest
from numpy.typing import NDArray
from pydicom.dataset import FileDataset
from pydicom.uid import ImplicitVRLittleEndian, SecondaryCaptureImageStorage, generate_uid

from ctslices.options import Options
from ctslices.reject import Reason, Rejected
from ctslices.series import Series
from ctslices.sources import dicom

Write = Callable[..., list[Path]]
Change = Callable[[FileDataset], object]


def read(export: Path, **options: object) -> tuple[list[Series], list[Rejected]]:
    files = sorted(path for path in export.rglob("*") if path.is_file())
    return dicom.read(files, export, Options(**options))  # type: ignore[arg-type]


def reasons(rejected: list[Rejected]) -> list[Reason]:
    return [one.reason for one in rejected]


@pytest.fixture
def hu(real_chest: NDArray[np.int16]) -> NDArray[np.int16]:
    return real_chest[10:16]


def test_a_series_is_ordered_by_position_whatever_names_and_numbers_say(
    tmp_path: Path, write_series: Write, hu: NDArray[np.int16]
) -> None:
    def shuffle(ds: FileDataset) -> None:
        ds.InstanceNumber = 100 - int(ds.InstanceNumber)
        ds.ImagePositionPatient[2] = -float(ds.ImagePositionPatient[2])

    write_series(tmp_path / "a", "P1", hu, change=shuffle)
    series, rejected = read(tmp_path)
    assert rejected == []
    (one,) = series
    assert one.raw_patient == "P1"
    assert [plane.position_mm for plane in one.planes] == [-50, -40, -30, -20, -10, 0]
    assert [Path(plane.path).name for plane in one.planes] == [f"{at:04d}.dcm" for at in (5, 4, 3, 2, 1, 0)]
    assert one.planes[0].relative_path == "a/0005.dcm"
    assert (one.manufacturer, one.kernel, one.kvp, one.thickness_mm) == ("Siemens", "B40f", 120.0, 10.0)
    assert one.geometry is not None
    assert one.geometry.spacing_mm == (3.046, 3.046)
    assert (one.spacing_between_mm, one.gaps, one.irregular, one.tilt_degrees) == (10.0, (), False, 0.0)
    assert pickle.loads(pickle.dumps(one)) == one


def test_headers_may_be_read_by_several_workers(tmp_path: Path, write_series: Write, hu: NDArray[np.int16]) -> None:
    files = write_series(tmp_path / "a", "P1", hu)
    with ThreadPoolExecutor(2) as pool:
        assert dicom.read(files, tmp_path, Options(), pool.map) == dicom.read(files, tmp_path, Options())


def set_to(**values: object) -> Change:
    def change(ds: FileDataset) -> None:
        for keyword, value in values.items():
            setattr(ds, keyword, value)

    return change


def without(*keywords: str) -> Change:
    def change(ds: FileDataset) -> None:
        for keyword in keywords:
            delattr(ds, keyword)

    return change


CORONAL = [1, 0, 0, 0, 0, -1]
TILTED_29 = [1, 0, 0, 0, np.cos(np.radians(29)), np.sin(np.radians(29))]
TILTED_31 = [1, 0, 0, 0, np.cos(np.radians(31)), np.sin(np.radians(31))]

REFUSED = [
    ("localizer", set_to(ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"]), Reason.LOCALIZER),
    ("coronal", set_to(ImageOrientationPatient=CORONAL), Reason.NOT_AXIAL),
    ("beyond 30 degrees", set_to(ImageOrientationPatient=TILTED_31), Reason.NOT_AXIAL),
    ("reformat", set_to(ImageType=["DERIVED", "SECONDARY", "REFORMATTED", "AVERAGE"]), Reason.NOT_AXIAL),
    ("MPR", set_to(ImageType=["DERIVED", "SECONDARY", "MPR"]), Reason.NOT_AXIAL),
    ("MIP", set_to(ImageType=["DERIVED", "SECONDARY", "AXIAL", "CSA MIP"]), Reason.NOT_AXIAL),
    ("PET", set_to(Modality="PT"), Reason.OTHER_MODALITY),
    ("no modality", without("Modality"), Reason.OTHER_MODALITY),
    ("structure set", set_to(Modality="RTSTRUCT"), Reason.OTHER_MODALITY),
    ("no patient", without("PatientID"), Reason.NO_PATIENT_ID),
    ("blank patient", set_to(PatientID="  "), Reason.NO_PATIENT_ID),
    ("no pixels", without("PixelData"), Reason.NO_PIXEL_DATA),
    ("no position", without("ImagePositionPatient"), Reason.NO_GEOMETRY),
    ("no orientation", without("ImageOrientationPatient"), Reason.NO_GEOMETRY),
    ("oblique unit vectors", set_to(ImageOrientationPatient=[1, 0, 0, 0.5, 0.866, 0]), Reason.NO_GEOMETRY),
    ("no spacing", without("PixelSpacing"), Reason.NO_GEOMETRY),
    ("no spacing width", set_to(PixelSpacing=[0, 0.7]), Reason.NO_GEOMETRY),
    ("no series UID", without("SeriesInstanceUID"), Reason.NO_GEOMETRY),
    ("several frames without groups", set_to(NumberOfFrames=2), Reason.NO_GEOMETRY),
    ("no slope", without("RescaleSlope"), Reason.NOT_HU),
    ("no intercept", without("RescaleIntercept"), Reason.NOT_HU),
    ("slope 0", set_to(RescaleSlope=0), Reason.NOT_HU),
    ("electron density", set_to(RescaleType="ED"), Reason.NOT_HU),
    ("unspecified units", set_to(RescaleType="US"), Reason.NOT_HU),
    ("perfusion map", set_to(ImageType=["DERIVED", "PRIMARY", "PERFUSION", "RCBF"]), Reason.NOT_HU),
    ("burned in", set_to(BurnedInAnnotation="YES"), Reason.BURNED_IN_MARKED),
    ("too many rows", set_to(Rows=127), Reason.UNDECODABLE),
    ("high bit", set_to(BitsStored=12, HighBit=15), Reason.UNDECODABLE),
    ("more rows than pixels", set_to(Rows=129), Reason.TRUNCATED),
]


@pytest.mark.parametrize(("change", "reason"), [case[1:] for case in REFUSED], ids=[case[0] for case in REFUSED])
def test_a_refused_file_leaves_the_others(
    tmp_path: Path, write_series: Write, hu: NDArray[np.int16], change: Change, reason: Reason
) -> None:
    def only_the_third(ds: FileDataset) -> None:
        if ds.InstanceNumber == 3:
            change(ds)

    write_series(tmp_path / "a", "P1", hu, change=only_the_third)
    series, rejected = read(tmp_path)
    assert [(one.path, one.reason) for one in rejected] == [("a/0002.dcm", reason)]
    assert [len(one.planes) for one in series] == [5]
    assert series[0].gaps == ((10.0, 20.0),)


def test_synthetic_data_are_refused(tmp_path: Path, write_series: Write, hu: NDArray[np.int16]) -> None:
    def mark(ds: FileDataset) -> None:
        ds.add_new(0x0008001C, "CS", "YES")

    write_series(tmp_path / "a", "P1", hu, change=mark)
    assert reasons(read(tmp_path)[1]) == [Reason.SYNTHETIC] * 6


def test_marked_text_is_taken_on_the_sites_word_and_noted(
    tmp_path: Path, write_series: Write, hu: NDArray[np.int16]
) -> None:
    write_series(tmp_path / "a", "P1", hu, change=set_to(BurnedInAnnotation="YES"))
    (one,), rejected = read(tmp_path, allow_burned_in=True)
    assert rejected == []
    assert "burned-in" in one.notes[0]


def test_a_page_of_patient_information_among_the_slices(
    tmp_path: Path, write_series: Write, hu: NDArray[np.int16]
) -> None:
    """A secondary capture that says CT, with neither position nor slope."""
    write_series(tmp_path / "a", "P1", hu)
    page = write_series(tmp_path / "b", "P1", hu[:1], change=set_to(SOPClassUID=SecondaryCaptureImageStorage))[0]
    ds = pydicom.dcmread(page)
    for keyword in ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "RescaleSlope"):
        delattr(ds, keyword)
    ds.save_as(page)
    series, rejected = read(tmp_path)
    assert len(series) == 1
    assert reasons(rejected) == [Reason.NO_GEOMETRY]


def test_a_colour_picture_is_no_ct(tmp_path: Path, write_series: Write, hu: NDArray[np.int16]) -> None:
    write_series(tmp_path / "a", "P1", hu, change=set_to(SamplesPerPixel=3, PhotometricInterpretation="RGB"))
    assert set(reasons(read(tmp_path)[1])) == {Reason.NOT_HU}


def test_truncated_files_cost_themselves(tmp_path: Path, write_series: Write, hu: NDArray[np.int16]) -> None:
    files = write_series(tmp_path / "a", "P1", hu)
    whole = files[2].read_bytes()
    for at, size in ((0, 900), (1, len(whole) - 1), (2, len(whole) - 5000)):
        files[at].write_bytes(whole[:size] if at == 2 else files[at].read_bytes()[:size])
    series, rejected = read(tmp_path, min_slices=3)
    assert [len(one.planes) for one in series] == [3]
    assert reasons(rejected) == [Reason.TRUNCATED] * 3


def test_not_dicom_at_all(tmp_path: Path) -> None:
    (tmp_path / "letter.txt").write_text("Dear colleague, " * 50)
    (tmp_path / "empty").write_bytes(b"")
    assert set(reasons(read(tmp_path)[1])) == {Reason.NOT_AN_IMAGE}


def test_files_without_preamble_and_meta_are_read(tmp_path: Path, write_series: Write, hu: NDArray[np.int16]) -> None:
    for path in write_series(tmp_path / "a", "P1", hu):
        ds = pydicom.dcmread(path)
        ds.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian
        ds.save_as(path, implicit_vr=True, little_endian=True)
        data = path.read_bytes()
        start = data.index(b"\x08\x00\x08\x00")  # ImageType, the first element of the data set
        path.write_bytes(data[start:])
    (one,), rejected = read(tmp_path)
    assert rejected == []
    assert len(one.planes) == 6


def test_a_series_copied_into_another_folder_counts_once(
    tmp_path: Path, write_series: Write, hu: NDArray[np.int16]
) -> None:
    write_series(tmp_path / "a", "P1", hu)
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    (one,), rejected = read(tmp_path)
    assert len(one.planes) == 6
    assert {(r.path.split("/")[0], r.reason) for r in rejected} == {("b", Reason.DUPLICATE_INSTANCE)}


def test_a_series_copied_under_new_uids_counts_once(tmp_path: Path, write_series: Write, hu: NDArray[np.int16]) -> None:
    frame = generate_uid()
    for folder in ("a", "b"):
        write_series(tmp_path / folder, "P1", hu, change=set_to(FrameOfReferenceUID=frame))
    (one,), rejected = read(tmp_path)
    assert one.relative_paths[0].startswith("a/")
    assert [(r.path, r.reason) for r in rejected] == [("b/0000.dcm", Reason.DUPLICATE_SERIES)]


def test_two_time_points_in_one_series_do_not_mix(tmp_path: Path, write_series: Write, hu: NDArray[np.int16]) -> None:
    uid = generate_uid()
    for number in (1, 2):
        write_series(tmp_path / f"t{number}", "P1", hu, change=set_to(SeriesInstanceUID=uid, AcquisitionNumber=number))
    series, rejected = read(tmp_path)
    assert rejected == []
    assert [len({p.split("/")[0] for p in one.relative_paths}) for one in series] == [1, 1]
    assert [one.raw_series for one in series] == [uid, f"{uid}#2"]


def test_repeats_that_nothing_tells_apart_are_one_a_position(
    tmp_path: Path, write_series: Write, hu: NDArray[np.int16]
) -> None:
    uid = generate_uid()
    for folder in ("a", "b"):
        write_series(tmp_path / folder, "P1", hu, change=set_to(SeriesInstanceUID=uid))
    (one,), rejected = read(tmp_path)
    assert len(one.planes) == 6
    assert reasons(rejected) == [Reason.DUPLICATE_INSTANCE] * 6


def test_one_series_uid_on_two_patients_does_not_mix_them(
    tmp_path: Path, write_series: Write, hu: NDArray[np.int16]
) -> None:
    uid = generate_uid()
    for patient in ("P1", "P2"):
        write_series(tmp_path / patient, patient, hu, change=set_to(SeriesInstanceUID=uid))
    series, _ = read(tmp_path)
    assert [one.raw_patient for one in series] == ["P1", "P2"]
    assert [{p.split("/")[0] for p in one.relative_paths} for one in series] == [{"P1"}, {"P2"}]


def test_stacks_of_two_orientations_in_one_series_are_two(
    tmp_path: Path, write_series: Write, hu: NDArray[np.int16]
) -> None:
    uid = generate_uid()
    write_series(tmp_path / "a", "P1", hu, change=set_to(SeriesInstanceUID=uid))
    change = set_to(SeriesInstanceUID=uid, ImageOrientationPatient=TILTED_29)
    write_series(tmp_path / "b", "P1", hu, change=change)
    series, _ = read(tmp_path)
    assert [round(one.tilt_degrees) for one in series] == [0, 29]


def test_gaps_are_noted_and_irregular_spacing_is_taken(
    tmp_path: Path, write_series: Write, real_chest: NDArray[np.int16]
) -> None:
    files = write_series(tmp_path / "a", "P1", real_chest[:10])
    files[4].unlink()
    files[5].unlink()
    (one,), _ = read(tmp_path)
    assert (one.gaps, one.irregular, one.spacing_between_mm) == (((30.0, 30.0),), False, 10.0)

    def uneven(ds: FileDataset) -> None:
        ds.ImagePositionPatient[2] = 1.3 ** float(ds.InstanceNumber)

    write_series(tmp_path / "b" / "c", "P2", real_chest[:10], change=uneven)
    (two,), rejected = read(tmp_path / "b")
    assert rejected == []
    assert two.irregular


def test_too_few_slices(tmp_path: Path, write_series: Write, hu: NDArray[np.int16]) -> None:
    write_series(tmp_path / "a", "P1", hu[:4])
    assert reasons(read(tmp_path)[1]) == [Reason.TOO_FEW_SLICES]
    assert len(read(tmp_path, min_slices=4)[0]) == 1


@pytest.mark.parametrize(("asked", "taken"), [(None, "B30f"), ("B70f", "B70f"), ("b50F", "B50f"), ("absent", "B30f")])
def test_of_kernel_twins_one_is_taken(
    tmp_path: Path, write_series: Write, hu: NDArray[np.int16], asked: str | None, taken: str
) -> None:
    frame = generate_uid()
    for kernel in ("B70f", "B50f", "B30f"):
        write_series(tmp_path / kernel, "P1", hu, kernel=kernel, change=set_to(FrameOfReferenceUID=frame))
    (one,), rejected = read(tmp_path, kernel=asked)
    assert one.kernel == taken
    assert reasons(rejected) == [Reason.OTHER_KERNEL] * 2


def test_phases_of_one_study_are_no_twins(tmp_path: Path, write_series: Write, hu: NDArray[np.int16]) -> None:
    """Without and with contrast: same places, other acquisitions."""
    frame = generate_uid()
    for number in (1, 2):
        change = set_to(FrameOfReferenceUID=frame, AcquisitionNumber=number)
        write_series(tmp_path / f"p{number}", "P1", hu, kernel=f"B{number + 2}0f", change=change)
    series, rejected = read(tmp_path)
    assert rejected == []
    assert len({one.acquisition for one in series}) == 2


def test_a_real_chest_and_real_tilted_phantoms(fedscan_data: Path, tmp_path: Path) -> None:
    for archive in sorted((fedscan_data / "dicom").glob("*.zip")):
        shutil.unpack_archive(archive, tmp_path / archive.stem)
    series, rejected = read(tmp_path)
    assert rejected == []
    chest, tilted_a, tilted_b = series
    assert (len(chest.planes), chest.kernel, chest.spacing_between_mm, chest.irregular) == (30, "B40f", 8.0, False)
    assert [round(one.tilt_degrees, 1) for one in (tilted_a, tilted_b)] == [18.5, 16.5]
    # The table steps by 2.5 mm; along the normal that is less, and every plane is shifted within itself.
    assert [round(one.spacing_between_mm or 0, 3) for one in (tilted_a, tilted_b)] == [2.371, 2.397]
    steps = np.diff([plane.origin_mm for plane in tilted_a.planes], axis=0)
    assert tilted_a.geometry is not None
    in_plane = steps - np.outer(steps @ tilted_a.geometry.normal, tilted_a.geometry.normal)
    assert np.allclose(np.linalg.norm(in_plane, axis=1), 0.79, atol=0.01)
