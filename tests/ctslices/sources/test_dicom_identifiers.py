"""Identifiers planted in every position of a header come out of the reader nowhere but in the raw_* fields."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pydicom
import pytest
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileDataset

from ctslices import decode
from ctslices.options import Options
from ctslices.reject import Rejected
from ctslices.series import Series
from ctslices.sources import dicom

Write = Callable[..., list[Path]]
NAME = "MUSTERMANN"
NUMBER = "4711081500"
DATE = "19560709"
UID = "1.2.276.0.7230010.3.4711081500"
SECRETS = (NAME, NUMBER, DATE)

# Free text wherever a reader may be tempted to keep it, and identifiers where they belong.
TEXTS = {
    "Manufacturer": NAME,
    "ManufacturerModelName": f"Model {NAME}",
    "ConvolutionKernel": [f"{NAME}", NUMBER],
    "InstitutionName": f"Hospital {NAME}",
    "StationName": NAME,
    "StudyDescription": f"CT {NAME}",
    "SeriesDescription": f"Chest {NAME} {NUMBER}",
    "ProtocolName": NAME,
    "PatientName": f"{NAME}^ANNA",
    "PatientID": NUMBER,
    "PatientBirthDate": DATE,
    "OtherPatientIDs": NUMBER,
    "AccessionNumber": NUMBER,
    "StudyDate": DATE,
    "StudyID": NUMBER,
    "ImageComments": f"{NAME} {DATE}",
    "OperatorsName": NAME,
    "DeviceSerialNumber": NUMBER,
    "BodyPartExamined": NAME,
    "PatientComments": NAME,
    "StudyInstanceUID": UID,
    "FrameOfReferenceUID": UID,
    "AcquisitionNumber": "47110815",
    "AcquisitionTime": "071156.4711",
}


def plant(ds: FileDataset) -> None:
    for keyword, value in TEXTS.items():
        setattr(ds, keyword, value)
    block = ds.private_block(0x0029, NAME, create=True)
    block.add_new(0x01, "LO", NUMBER)
    block.add_new(0x02, "OB", f"{NAME} {DATE}".encode())
    inner, outer = Dataset(), Dataset()
    inner.PatientID, inner.PatientName, inner.TextValue = NUMBER, NAME, NAME
    outer.ContentSequence, outer.PatientBirthDate = [inner], DATE
    ds.RequestAttributesSequence = [outer]
    ds.add_new(0x60000010, "US", 128)
    ds.add_new(0x60000011, "US", 128)
    ds.add_new(0x60000022, "LO", NAME)
    ds.add_new(0x60001500, "LO", NUMBER)
    ds.add_new(0x60003000, "OW", f"{NAME}{NUMBER}".encode())
    ds.add_new(0xFFFCFFFC, "OB", NAME.encode() * 3)
    ds.preamble = NAME.encode() * 12 + b"\0" * 8
    ds.file_meta.SourceApplicationEntityTitle = NAME


def leaks(*values: object) -> list[str]:
    text = "\n".join(str(value) for value in values)
    return [secret for secret in (*SECRETS, UID) if secret in text]


def visible(series: Series) -> list[object]:
    """All that a store or a report may show: every field but the raw ones, the paths, and the planes' paths."""
    hidden = {"raw_patient", "raw_series", "relative_paths", "planes"}
    fields = [getattr(series, f.name) for f in dataclasses.fields(series) if f.name not in hidden]
    planes = [dataclasses.replace(plane, path="", relative_path="") for plane in series.planes]
    return [*fields, *planes]


BREAKAGES: dict[str, Callable[[FileDataset], object]] = {
    "nothing": lambda ds: None,
    "another modality": lambda ds: setattr(ds, "Modality", NAME),
    "a rescale type": lambda ds: setattr(ds, "RescaleType", NAME),
    "an image type": lambda ds: setattr(ds, "ImageType", ["LOCALIZER", NAME]),
    "no position": lambda ds: delattr(ds, "ImagePositionPatient"),
    "no pixels": lambda ds: delattr(ds, "PixelData"),
    "burned in": lambda ds: setattr(ds, "BurnedInAnnotation", "YES"),
    "no patient": lambda ds: delattr(ds, "PatientID"),
    "one slice": lambda ds: None,
    "another character set": lambda ds: setattr(ds, "SpecificCharacterSet", NAME),
    "frames": lambda ds: setattr(ds, "NumberOfFrames", 3),
}


@pytest.mark.parametrize("breakage", BREAKAGES)
def test_nothing_of_a_patient_comes_out(
    tmp_path: Path,
    write_series: Write,
    real_chest: NDArray[np.int16],
    breakage: str,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
) -> None:
    def change(ds: FileDataset) -> None:
        plant(ds)
        BREAKAGES[breakage](ds)

    folder = tmp_path / NAME / DATE
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pydicom's, about what is planted
        files = write_series(folder, NUMBER, real_chest[: 1 if breakage == "one slice" else 5], change=change)
    caplog.clear()
    capfd.readouterr()
    with warnings.catch_warnings(record=True) as warned, caplog.at_level(logging.DEBUG):
        warnings.simplefilter("always")
        series, rejected = dicom.read(files, tmp_path, Options())
        planes = [plane for one in series for plane in decode.planes(one, range(len(one.planes)))]
    assert len(series) == (1 if breakage in {"nothing", "another character set"} else 0)
    assert leaks(*(value for one in series for value in visible(one))) == []
    assert leaks(*(one.detail for one in rejected), *(one.reason for one in rejected)) == []
    assert not [plane for plane in planes if isinstance(plane, Rejected)]
    assert leaks(caplog.text, *capfd.readouterr(), *(str(one.message) for one in warned)) == []


def test_the_raw_fields_do_say_who_it_is(tmp_path: Path, write_series: Write, real_chest: NDArray[np.int16]) -> None:
    """Pseudonyms, joins and labels need them; and it proves that the search above would find what is there."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        files = write_series(tmp_path / NAME, NUMBER, real_chest[:5], change=plant)
    (one,), _ = dicom.read(files, tmp_path, Options())
    assert one.raw_patient == NUMBER
    assert leaks(one) != []
    assert (one.manufacturer, one.kernel) == ("other", "other")


def test_damaged_files_reveal_nothing(
    tmp_path: Path,
    write_series: Write,
    real_chest: NDArray[np.int16],
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        whole = write_series(tmp_path / "w", NUMBER, real_chest[:1], change=plant)[0].read_bytes()
    rng = np.random.default_rng(5)
    files = []
    for number in range(150):
        damaged = bytearray(whole)
        for at in rng.integers(128, len(whole) - real_chest[0].nbytes, 8):
            damaged[at] = rng.integers(0, 256)
        path = tmp_path / f"{NAME}-{number}.dcm"
        path.write_bytes(damaged)
        files.append(path)
    caplog.clear()
    with warnings.catch_warnings(record=True) as warned, caplog.at_level(logging.DEBUG):
        warnings.simplefilter("always")
        series, rejected = dicom.read(files, tmp_path, Options(min_slices=1))
        with contextlib.closing(decode.planes(series[0], [0])) if series else contextlib.nullcontext([]) as planes:
            list(planes)
    assert len(rejected) > 20
    assert leaks(*(one.detail for one in rejected)) == []
    assert leaks(*(value for one in series for value in visible(one))) == []
    assert leaks(caplog.text, *capfd.readouterr(), *(str(one.message) for one in warned)) == []


def test_a_name_in_a_national_script_is_the_same_patient(
    tmp_path: Path, write_series: Write, real_chest: NDArray[np.int16]
) -> None:
    """PatientID in ISO 8859-5 and in UTF-8: one identity, as the site writes it in its own lists."""

    def change(charset: str) -> Callable[[FileDataset], None]:
        def set_to(ds: FileDataset) -> None:
            ds.SpecificCharacterSet, ds.PatientID = charset, "Люкceмбypг"

        return set_to

    for charset in ("ISO_IR 144", "ISO_IR 192"):
        write_series(tmp_path / charset[-3:], "P", real_chest[:5], change=change(charset))
    series, _ = dicom.read(sorted(tmp_path.rglob("*.dcm")), tmp_path, Options())
    assert {one.raw_patient for one in series} == {"Люкceмбypг"}
    assert pydicom.dcmread(series[0].planes[0].path).PatientID == "Люкceмбypг"
