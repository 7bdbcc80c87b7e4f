"""Planes in HU from every transfer syntax, classic and multi-frame; a bad file costs its own planes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import gdcm
import numpy as np
import pydicom
import pytest
from numpy.typing import NDArray
from pydicom.data import get_testdata_file
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.filebase import DicomFileLike
from pydicom.filewriter import write_dataset, write_file_meta_info
from pydicom.sequence import Sequence
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    EnhancedCTImageStorage,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    RLELossless,
    generate_uid,
)

from ctslices import decode
from ctslices.options import Options
from ctslices.reject import Reason, Rejected
from ctslices.series import Series
from ctslices.sources import dicom

Write = Callable[..., list[Path]]

GDCM_SYNTAXES = {
    "JPEG lossless": gdcm.TransferSyntax.JPEGLosslessProcess14,
    "JPEG lossless SV1": gdcm.TransferSyntax.JPEGLosslessProcess14_1,
    "JPEG-LS": gdcm.TransferSyntax.JPEGLSLossless,
    "JPEG 2000 by gdcm": gdcm.TransferSyntax.JPEG2000Lossless,
    "RLE by gdcm": gdcm.TransferSyntax.RLELossless,
}
PYDICOM_SYNTAXES = {
    "implicit": ImplicitVRLittleEndian,
    "explicit": ExplicitVRLittleEndian,
    "deflated": DeflatedExplicitVRLittleEndian,
    "RLE": RLELossless,
    "JPEG 2000": JPEG2000Lossless,
}
STORED = {"signed 16 bit": (1, 16, 0), "unsigned 12 bit": (0, 12, -1024), "signed 13 bit": (1, 13, 0)}


@pytest.fixture
def hu(real_chest: NDArray[np.int16]) -> NDArray[np.int16]:
    return real_chest[12:17]


def read_one(export: Path) -> Series:
    files = sorted(path for path in export.rglob("*") if path.is_file())
    (series,), rejected = dicom.read(files, export, Options())
    assert rejected == []
    return series


def planes_of(series: Series, **how: object) -> list[NDArray[np.float32] | Rejected]:
    return list(decode.planes(series, range(len(series.planes)), **how))  # type: ignore[arg-type]


def arrays_of(series: Series) -> NDArray[np.float32]:
    planes = planes_of(series)
    assert not [plane for plane in planes if isinstance(plane, Rejected)]
    return np.stack(planes)  # type: ignore[arg-type]


def stored_as(kind: str, hu: NDArray[np.int16]) -> Callable[[FileDataset], None]:
    """The change to a data set that stores its plane with other sign, bits and intercept."""
    signed, bits, intercept = STORED[kind]

    def change(ds: FileDataset) -> None:
        plane = hu[int(ds.InstanceNumber) - 1].astype(int) - intercept
        ds.PixelRepresentation, ds.BitsStored, ds.HighBit, ds.RescaleIntercept = signed, bits, bits - 1, intercept
        ds.PixelData = plane.astype("<i2" if signed else "<u2").tobytes()

    return change


@pytest.mark.parametrize("kind", STORED)
@pytest.mark.parametrize("syntax", [*PYDICOM_SYNTAXES, *GDCM_SYNTAXES, "big endian"])
def test_every_lossless_syntax_gives_the_same_hu(
    tmp_path: Path, write_series: Write, hu: NDArray[np.int16], syntax: str, kind: str
) -> None:
    for path in write_series(tmp_path / "a", "P1", hu, change=stored_as(kind, hu)):
        transcode(path, syntax)
    expected = np.minimum(hu, 4095) if kind == "signed 13 bit" else hu
    assert np.array_equal(arrays_of(read_one(tmp_path)), expected)


def transcode(path: Path, syntax: str) -> None:
    if syntax in GDCM_SYNTAXES:
        reader = gdcm.ImageReader()
        reader.SetFileName(str(path))
        assert reader.Read()
        change = gdcm.ImageChangeTransferSyntax()
        change.SetTransferSyntax(gdcm.TransferSyntax(GDCM_SYNTAXES[syntax]))
        change.SetInput(reader.GetImage())
        assert change.Change()
        writer = gdcm.ImageWriter()
        writer.SetFileName(str(path))
        writer.SetFile(reader.GetFile())
        writer.SetImage(change.GetOutput())
        assert writer.Write()
        return
    ds = pydicom.dcmread(path)
    if syntax == "big endian":
        write_big_endian(path, ds)
    elif PYDICOM_SYNTAXES[syntax] in (RLELossless, JPEG2000Lossless):
        ds.compress(PYDICOM_SYNTAXES[syntax])
        ds.save_as(path)
    else:
        ds.file_meta.TransferSyntaxUID = PYDICOM_SYNTAXES[syntax]
        ds.save_as(path, enforce_file_format=True, implicit_vr=syntax == "implicit", little_endian=True)


def write_big_endian(path: Path, ds: FileDataset) -> None:
    """pydicom refuses to turn little into big endian: a fresh data set, its words swapped."""
    fresh = Dataset()
    for element in ds:
        fresh.add(element)
    fresh.PixelData = np.frombuffer(ds.PixelData, "<u2").astype(">u2").tobytes()
    ds.file_meta.TransferSyntaxUID = ExplicitVRBigEndian
    with path.open("wb") as file:
        file.write(b"\0" * 128 + b"DICM")
        write_file_meta_info(file, ds.file_meta)
        out = DicomFileLike(file)
        out.is_implicit_VR, out.is_little_endian = False, False
        fresh.set_original_encoding(False, False)
        write_dataset(out, fresh)


@pytest.mark.parametrize("name", ["693_J2KI.dcm", "J2K_pixelrep_mismatch.dcm", "CT_small.dcm"])
def test_pydicoms_own_real_ct(name: str) -> None:
    """Lossy JPEG 2000, a stream whose sign contradicts its header, and GE's padding of -2000."""
    path = Path(str(get_testdata_file(name, download=False)))
    (series,), _ = dicom.read([path], path.parent, Options(min_slices=1))
    ds = pydicom.dcmread(path)
    expected = ds.pixel_array * float(ds.RescaleSlope) + float(ds.RescaleIntercept)
    if name == "CT_small.dcm":
        assert ds.PixelPaddingValue == -2000
    assert np.array_equal(arrays_of(series)[0], np.maximum(expected, -1024))


def enhanced(hu: NDArray[np.int16]) -> FileDataset:
    """An Enhanced CT of all planes in one file, each with a rescale of its own; stored in falling order."""
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.TransferSyntaxUID = EnhancedCTImageStorage, ExplicitVRLittleEndian
    meta.MediaStorageSOPInstanceUID = generate_uid()
    ds = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
    ds.SOPClassUID, ds.SOPInstanceUID, ds.Modality = EnhancedCTImageStorage, meta.MediaStorageSOPInstanceUID, "CT"
    ds.PatientID, ds.StudyInstanceUID, ds.SeriesInstanceUID = "P1", generate_uid(), generate_uid()
    ds.ImageType, ds.NumberOfFrames = ["ORIGINAL", "PRIMARY", "VOLUME", "NONE"], len(hu)
    ds.SamplesPerPixel, ds.PhotometricInterpretation = 1, "MONOCHROME2"
    ds.Rows, ds.Columns = hu.shape[1:]
    ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 16, 16, 15, 0
    shared, measures, orientation = Dataset(), Dataset(), Dataset()
    measures.PixelSpacing, measures.SliceThickness = [3.046, 3.046], 10
    orientation.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
    shared.PixelMeasuresSequence, shared.PlaneOrientationSequence = Sequence([measures]), Sequence([orientation])
    ds.SharedFunctionalGroupsSequence = Sequence([shared])
    groups, pixels = [], []
    for number, plane in enumerate(hu):
        group, position, transformation = Dataset(), Dataset(), Dataset()
        slope, intercept = 0.5 if number % 2 else 1.0, -1024 - 8 * number
        position.ImagePositionPatient = [0, 0, -10 * number]
        transformation.RescaleSlope, transformation.RescaleIntercept = slope, intercept
        transformation.RescaleType = "HU"
        group.PlanePositionSequence = Sequence([position])
        group.PixelValueTransformationSequence = Sequence([transformation])
        groups.append(group)
        pixels.append(((plane.astype(int) - intercept) / slope).astype("<u2").tobytes())
    ds.PerFrameFunctionalGroupsSequence = Sequence(groups)
    ds.PixelData = b"".join(pixels)
    ds["PixelData"].VR = "OW"
    return ds


@pytest.mark.parametrize("syntax", ["explicit", "RLE", "JPEG 2000"])
def test_enhanced_ct_takes_geometry_and_rescale_from_each_frame(
    tmp_path: Path, hu: NDArray[np.int16], syntax: str
) -> None:
    path = tmp_path / "enhanced.dcm"
    enhanced(hu).save_as(path, enforce_file_format=True)
    if syntax != "explicit":
        transcode(path, syntax)
    series = read_one(tmp_path)
    assert [(plane.position_mm, plane.frame) for plane in series.planes] == [
        (-40, 4),
        (-30, 3),
        (-20, 2),
        (-10, 1),
        (0, 0),
    ]
    assert series.geometry is not None
    assert series.geometry.spacing_mm == (3.046, 3.046)
    assert np.array_equal(arrays_of(series), hu[::-1])
    assert np.array_equal(next(decode.planes(series, [3])), hu[1])


def test_enhanced_ct_with_fewer_groups_than_frames_has_no_geometry(tmp_path: Path, hu: NDArray[np.int16]) -> None:
    ds = enhanced(hu)
    ds.PerFrameFunctionalGroupsSequence = ds.PerFrameFunctionalGroupsSequence[:-1]
    ds.save_as(tmp_path / "enhanced.dcm", enforce_file_format=True)
    _, rejected = dicom.read([tmp_path / "enhanced.dcm"], tmp_path, Options())
    assert [one.reason for one in rejected] == [Reason.NO_GEOMETRY]


def test_a_perfusion_map_in_enhanced_form_is_not_hu() -> None:
    """pydicom-data's eCT_Supplemental: Modality CT, regional cerebral blood flow."""
    path = get_testdata_file("eCT_Supplemental.dcm", download=False)
    if path is None:
        pytest.skip("pydicom-data is not installed")
    _, rejected = dicom.read([Path(str(path))], Path(str(path)).parent, Options(min_slices=1))
    assert [one.reason for one in rejected] == [Reason.NOT_HU]


def test_overlays_in_the_bits_above_the_pixels_do_not_show(
    tmp_path: Path, write_series: Write, hu: NDArray[np.int16]
) -> None:
    """Retired overlays lived in unused high bits."""

    def draw(ds: FileDataset) -> None:
        stored_as("unsigned 12 bit", hu)(ds)
        ds.PixelData = (np.frombuffer(ds.PixelData, "<u2") | 0xA000).astype("<u2").tobytes()

    write_series(tmp_path / "a", "P1", hu, change=draw)
    assert np.array_equal(arrays_of(read_one(tmp_path)), hu)


def test_monochrome1_changes_the_display_and_not_the_hu(
    tmp_path: Path, write_series: Write, hu: NDArray[np.int16]
) -> None:
    def invert_display(ds: FileDataset) -> None:
        ds.PhotometricInterpretation = "MONOCHROME1"

    write_series(tmp_path / "a", "P1", hu, change=invert_display)
    assert np.array_equal(arrays_of(read_one(tmp_path)), hu)


@pytest.mark.parametrize("syntax", ["explicit", "deflated", "RLE", "JPEG-LS"])
def test_a_file_that_changes_after_its_header_was_read_costs_itself(
    tmp_path: Path, write_series: Write, hu: NDArray[np.int16], syntax: str
) -> None:
    files = write_series(tmp_path / "a", "P1", hu)
    for path in files:
        transcode(path, syntax)
    series = read_one(tmp_path)
    files[1].write_bytes(files[1].read_bytes()[:-3000])
    files[2].unlink()
    planes = planes_of(series)
    refused = {at: plane.reason for at, plane in enumerate(planes) if isinstance(plane, Rejected)}
    assert set(refused) == {1, 2}
    assert [plane.path for plane in planes if isinstance(plane, Rejected)] == ["a/0001.dcm", "a/0002.dcm"]
    assert np.array_equal(planes[3], hu[3])


@pytest.mark.parametrize("isolate", [False, True])
def test_damaged_compressed_pixels_cost_one_plane(
    tmp_path: Path, write_series: Write, hu: NDArray[np.int16], isolate: bool
) -> None:
    files = write_series(tmp_path / "a", "P1", hu)
    for path in files:
        transcode(path, "JPEG 2000")
    data = bytearray(files[2].read_bytes())
    start = data.index(b"\xff\x4f\xff\x51")
    data[start : start + 200] = b"\0" * 200
    files[2].write_bytes(data)
    planes = planes_of(read_one(tmp_path), isolate=isolate)
    assert [plane.reason for plane in planes if isinstance(plane, Rejected)] == [Reason.UNDECODABLE]
    assert np.array_equal(planes[1], hu[1])
    assert np.array_equal(planes[3], hu[3])


def test_isolated_decoding_of_plain_files_gives_the_same(
    tmp_path: Path, write_series: Write, hu: NDArray[np.int16]
) -> None:
    write_series(tmp_path / "a", "P1", hu)
    series = read_one(tmp_path)
    assert np.array_equal(np.stack(planes_of(series, isolate=True)), hu)  # type: ignore[arg-type]


def test_big_endian_files_without_meta_information(tmp_path: Path, write_series: Write, hu: NDArray[np.int16]) -> None:
    for path in write_series(tmp_path / "a", "P1", hu):
        transcode(path, "big endian")
        data = path.read_bytes()
        path.write_bytes(data[data.index(b"\0\x08\0\x08CS") :])
    assert np.array_equal(arrays_of(read_one(tmp_path)), hu)
