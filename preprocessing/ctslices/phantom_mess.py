"""What lies among the chest series of a hospital's export: localizers, broken files, reports, pages of text."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from pydicom.dataset import Dataset, FileDataset
from pydicom.sequence import Sequence
from pydicom.uid import UID, ExplicitVRLittleEndian, SecondaryCaptureImageStorage

from ctslices.phantom import HospitalProfile, Patient
from ctslices.phantom_dicom import SeriesLabel, file_meta, instances, series_template, stored, study_header, write
from ctslices.phantom_head import head_slices
from ctslices.phantom_identity import Identity

DOSE_REPORT = UID("1.2.840.10008.5.1.4.1.1.88.67")


def write_localizer(
    folder: Path, profile: HospitalProfile, patient: Patient, who: Identity, volume: NDArray[np.int16]
) -> None:
    """A front view: the mean of the volume from front to back, stretched to a square."""
    plain = dataclasses.replace(profile, compression="none", padding_value=None)
    front = volume[::-1].astype(np.float32).mean(axis=1)
    rows = np.linspace(0, len(front) - 1, profile.matrix)
    low = np.minimum(rows.astype(int), len(front) - 2)
    share = (rows - low)[:, None]
    picture = front[low] * (1 - share) + front[low + 1] * share
    label = SeriesLabel(1, "Topogram", "T20f")
    ds = series_template(plain, patient, who, label)
    pixels = np.clip(picture[None] - plain.intercept_hu, 0, 4095).astype(np.int16 if plain.signed else np.uint16)
    made = next(instances(ds, who, pixels, np.array([300.0])))
    made.ImageType = ["ORIGINAL", "PRIMARY", "LOCALIZER"]
    made.ImageOrientationPatient = [1, 0, 0, 0, 0, -1]
    made.SliceThickness = 400
    write(made, folder)


def write_head(path: Path, profile: HospitalProfile, patient: Patient, who: Identity, rng: np.random.Generator) -> int:
    """A head series under `path`, 14 slices; returns how many files were written."""
    narrow = dataclasses.replace(profile, field_mm=240.0, thickness_mm=5.0, padding_value=None, compression="none")
    heights = np.arange(14, dtype=np.float64) * np.float64(8.0)
    hu = head_slices(rng, narrow.matrix, narrow.field_mm, heights)
    template = series_template(narrow, patient, who, SeriesLabel(9, "Head routine", "H31s", "HEAD"))
    for i, ds in enumerate(instances(template, who, stored(hu, narrow), heights)):
        write(ds, path / f"HEAD{i:04d}.dcm")
    return len(heights)


def write_dose_report(path: Path, profile: HospitalProfile, patient: Patient, who: Identity) -> None:
    """An X-Ray Radiation Dose SR with one content item."""
    instance = who.uid("dose")
    ds = FileDataset("", {}, file_meta=file_meta(DOSE_REPORT, instance), preamble=b"\0" * 128)
    study_header(ds, profile, patient, who)
    ds.SOPClassUID, ds.SOPInstanceUID, ds.Modality = DOSE_REPORT, instance, "SR"
    ds.SeriesInstanceUID, ds.SeriesNumber, ds.InstanceNumber = who.uid("dose series"), 999, 1
    ds.CompletionFlag, ds.VerificationFlag, ds.ValueType = "COMPLETE", "UNVERIFIED", "CONTAINER"
    ds.ContinuityOfContent = "SEPARATE"
    item, code = Dataset(), Dataset()
    code.CodeValue, code.CodingSchemeDesignator, code.CodeMeaning = "113813", "DCM", "CT Dose Length Product Total"
    item.RelationshipType, item.ValueType, item.TextValue = "CONTAINS", "TEXT", "251 mGy.cm"
    item.ConceptNameCodeSequence = Sequence([code])
    ds.ContentSequence = Sequence([item])
    write(ds, path)


def write_text_page(path: Path, profile: HospitalProfile, patient: Patient, who: Identity) -> None:
    """A secondary capture under modality CT: a page that shows the patient's name."""
    instance = who.uid("page")
    meta = file_meta(SecondaryCaptureImageStorage, instance, ExplicitVRLittleEndian)
    ds = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
    study_header(ds, profile, patient, who)
    ds.SOPClassUID, ds.SOPInstanceUID, ds.Modality = SecondaryCaptureImageStorage, instance, "CT"
    ds.SeriesInstanceUID, ds.SeriesNumber, ds.InstanceNumber = who.uid("page series"), 501, 1
    ds.SeriesDescription, ds.ConversionType, ds.BurnedInAnnotation = "PATIENT_INFO", "WSD", "YES"
    ds.ImageType = ["DERIVED", "SECONDARY"]
    picture = Image.new("L", (256, 192), 0)
    lines = f"{who.family}, {who.given}\n{who.patient_id}\n{who.birth:%d.%m.%Y}\n{who.accession}"
    ImageDraw.Draw(picture).multiline_text((12, 12), lines, fill=255, spacing=8)
    ds.SamplesPerPixel, ds.PhotometricInterpretation = 1, "MONOCHROME2"
    ds.Rows, ds.Columns = picture.height, picture.width
    ds.BitsAllocated = ds.BitsStored = 8
    ds.HighBit, ds.PixelRepresentation = 7, 0
    ds.PixelData = picture.tobytes()
    ds["PixelData"].VR = "OB"
    write(ds, path)


def truncate(path: Path) -> None:
    """Cut a file to 60 percent of its bytes, as a full disk or a broken transfer does."""
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * 0.6)])


def duplicate(path: Path) -> None:
    """Lay the same instance beside itself under another name."""
    shutil.copyfile(path, path.with_name("Copy of " + path.name))
