"""Synthetic slices as DICOM: complete, marked so that nobody takes them for a patient's, and refused by ctslices."""

from __future__ import annotations

import dataclasses
import re
import warnings
from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom import config
from pydicom.dataset import validate_file_meta
from pydicom.uid import CTImageStorage

from ctslices.options import Options
from ctslices.phantom import LABELS, chest_slices
from ctslices.reject import Reason
from ctslices.sources import scan
from fedscan.release.dicom import instance, write_dicom
from fedscan.release.draw import Draw

TYPE_1 = (
    "StudyInstanceUID",
    "SeriesInstanceUID",
    "SOPClassUID",
    "SOPInstanceUID",
    "Modality",
    "FrameOfReferenceUID",
    "ImageType",
    "PixelSpacing",
    "ImageOrientationPatient",
    "ImagePositionPatient",
    "SamplesPerPixel",
    "PhotometricInterpretation",
    "Rows",
    "Columns",
    "BitsAllocated",
    "BitsStored",
    "HighBit",
    "PixelRepresentation",
    "PixelData",
    "RescaleIntercept",
    "RescaleSlope",
    "PatientPosition",
)
TYPE_2 = (
    "PatientName",
    "PatientID",
    "PatientBirthDate",
    "PatientSex",
    "StudyDate",
    "StudyTime",
    "ReferringPhysicianName",
    "StudyID",
    "AccessionNumber",
    "SeriesNumber",
    "Manufacturer",
    "PositionReferenceIndicator",
    "InstanceNumber",
    "SliceThickness",
    "KVP",
    "AcquisitionNumber",
)
"""Attributes that PS3.3 A.3 demands with a value, and demands at all, of a CT image without contrast."""


@pytest.fixture(scope="module")
def draw() -> Draw:
    hu, label = chest_slices(np.random.default_rng(1), 4)
    hu[0, 0, :2] = (-1000, 1000)
    return Draw(hu, label, LABELS, "hu", 360 / 64, "full", "ab" * 32, "cd" * 32, "ef" * 32, "Sampler ddim, seed 3.")


@pytest.fixture(scope="module")
def read(draw: Draw, tmp_path_factory: pytest.TempPathFactory) -> list[pydicom.FileDataset]:
    return [pydicom.dcmread(path) for path in write_dicom(draw, tmp_path_factory.mktemp("dicom"))]


def test_hu_and_spacing_read_back(draw: Draw, read: list[pydicom.FileDataset]) -> None:
    for want, ds in zip(draw.hu, read, strict=True):
        np.testing.assert_array_equal(ds.pixel_array * ds.RescaleSlope + ds.RescaleIntercept, want)
        assert [float(v) for v in ds.PixelSpacing] == [5.625, 5.625]
        assert [float(v) for v in ds.ImagePositionPatient] == [-5.625 * 31.5, -5.625 * 31.5, 0.0]


def test_every_attribute_of_the_iod_is_there(read: list[pydicom.FileDataset]) -> None:
    for ds in read:
        validate_file_meta(ds.file_meta, enforce_standard=True)
        assert [name for name in TYPE_1 if ds.get(name) in (None, "")] == []
        assert [name for name in TYPE_2 if name not in ds] == []
        assert ds.SOPClassUID == ds.file_meta.MediaStorageSOPClassUID == CTImageStorage
        assert ds.SOPInstanceUID == ds.file_meta.MediaStorageSOPInstanceUID


def test_every_value_is_legal(draw: Draw) -> None:
    before = config.settings.writing_validation_mode
    config.settings.writing_validation_mode = config.RAISE
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            for element in instance(draw, 0).iterall():
                pydicom.dataelem.DataElement(element.tag, element.VR, element.value, validation_mode=config.RAISE)
    finally:
        config.settings.writing_validation_mode = before


def test_nobody_takes_it_for_a_patients(draw: Draw, read: list[pydicom.FileDataset]) -> None:
    for i, ds in enumerate(read):
        assert ds[0x0008, 0x001C].value == "YES"
        assert list(ds.ImageType)[:2] == ["DERIVED", "SECONDARY"]
        assert "SYNTHETIC" in str(ds.PatientName)
        assert ds.PatientID.startswith("SYNTHETIC-")
        assert ds.BurnedInAnnotation == "NO"
        assert "SYNTHETIC" in ds.SeriesDescription
        assert LABELS[draw.label[i]] in ds.SeriesDescription
        assert draw.model_sha256 in ds.DerivationDescription
        assert draw.plan_digest in ds.DerivationDescription
        assert [e.keyword for e in ds.iterall() if e.VR in ("DA", "TM", "DT") and e.value] == []


def test_each_slice_is_a_series_of_its_own(draw: Draw, read: list[pydicom.FileDataset]) -> None:
    for name in ("SeriesInstanceUID", "SOPInstanceUID", "FrameOfReferenceUID"):
        assert len({ds[name].value for ds in read}) == 4
    assert len({ds.StudyInstanceUID for ds in read}) == 1
    uids = {ds[name].value for ds in read for name in ("SeriesInstanceUID", "SOPInstanceUID", "StudyInstanceUID")}
    assert all(uid.is_valid and re.fullmatch(r"2\.25\.[1-9]\d+", uid) for uid in uids)
    other = instance(dataclasses.replace(draw, identity="00" * 32), 0)
    assert other.SOPInstanceUID not in uids
    assert other.PatientID != read[0].PatientID


def test_the_same_draw_gives_the_same_bytes(draw: Draw, tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    for one, other in zip(write_dicom(draw, tmp_path / "a"), write_dicom(draw, tmp_path / "b"), strict=True):
        assert one.read_bytes() == other.read_bytes()


def test_ctslices_refuses_it_as_synthetic(draw: Draw, tmp_path: Path) -> None:
    write_dicom(draw, tmp_path)
    series, rejected = scan.find(tmp_path, Options(min_slices=1))
    assert series == []
    assert [r.reason for r in rejected] == [Reason.SYNTHETIC] * 4


def test_pictures_cannot_be_ct(draw: Draw, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="choose format png or npz"):
        write_dicom(dataclasses.replace(draw, values="grey", pixel_mm=None), tmp_path)
    assert list(tmp_path.iterdir()) == []
