"""Synthetic slices as DICOM CT Image Storage that nobody can take for a patient's.

PS3.3 A.3 (CT Image IOD), C.12.1.1 (SOP Common: Synthetic Data), C.7.6.1 (General Image). Each slice is a series and a
frame of reference of its own, since slices of one draw belong to no common body. There is no date in them: nothing was
acquired.
"""

from __future__ import annotations

import hashlib
import io
from pathlib import Path

import numpy as np
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import UID, CTImageStorage, ExplicitVRLittleEndian

from fedscan import __version__
from fedscan.release.draw import Draw

RESCALE_INTERCEPT_HU = -1024


def write_dicom(draw: Draw, folder: Path) -> list[Path]:
    """slice-00000.dcm and so on. Raises ValueError for pictures, and where the model has no scale."""
    if draw.values != "hu":
        raise ValueError("CT Image Storage needs HU, got a model of pictures: choose format png or npz")
    if draw.pixel_mm is None:
        raise ValueError(
            "CT Image Storage needs a pixel spacing, got a model without one, of sites with different fields: "
            "say which with --field-mm, or choose format png or npz"
        )
    files = []
    for index in range(len(draw.hu)):
        buffer = io.BytesIO()
        instance(draw, index).save_as(buffer, enforce_file_format=True)
        files.append(folder / f"slice-{index:05d}.dcm")
        files[-1].write_bytes(buffer.getvalue())
    return files


def uid(draw: Draw, *parts: object) -> UID:
    """A UID under 2.25 (PS3.5 B.2) that follows from the draw: the same draw has the same UIDs."""
    text = ":".join(["fedscan synthetic", draw.identity, *map(str, parts)])
    number = int.from_bytes(hashlib.sha256(text.encode()).digest()[:16], "big")
    # A version 8 UUID (RFC 9562, 5.8): its content is ours, its form everybody's.
    number = (number & ~(0xF << 76) | (8 << 76)) & ~(0x3 << 62) | (0x2 << 62)
    return UID(f"2.25.{number}")


def instance(draw: Draw, index: int) -> FileDataset:
    """Slice number `index` of `draw` as a data set."""
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = CTImageStorage
    meta.MediaStorageSOPInstanceUID = uid(draw, "instance", index)
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.ImplementationClassUID = UID("2.25.148093261838264157826418226377421904113")
    meta.ImplementationVersionName = f"FEDSCAN_{__version__}"[:16]
    ds = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
    _patient_and_study(ds, draw)
    _series(ds, draw, index)
    _image(ds, draw, index)
    _plane(ds, draw, index)
    _pixels(ds, draw, index)
    return ds


def _patient_and_study(ds: FileDataset, draw: Draw) -> None:
    ds.SpecificCharacterSet = "ISO_IR 192"
    ds.PatientName = "SYNTHETIC^FEDSCAN"
    ds.PatientID = f"SYNTHETIC-{draw.identity[:12].upper()}"
    ds.PatientBirthDate = ds.PatientSex = ""
    ds.PatientComments = "Not a person: drawn by a diffusion model."
    ds.StudyInstanceUID = uid(draw, "study")
    ds.StudyDate = ds.StudyTime = ds.AccessionNumber = ds.ReferringPhysicianName = ""
    ds.StudyID = "SYNTHETIC"
    ds.StudyDescription = "SYNTHETIC chest CT slices, not for diagnosis"
    ds.Manufacturer = "Fedscan"
    ds.ManufacturerModelName = "diffusion model"
    ds.SoftwareVersions = __version__


def _series(ds: FileDataset, draw: Draw, index: int) -> None:
    ds.Modality = "CT"
    ds.SeriesInstanceUID = uid(draw, "series", index)
    ds.SeriesNumber = index + 1
    label = draw.label_of(index)
    ds.SeriesDescription = ("SYNTHETIC slice" + (f": {label}" if label else ""))[:64]
    ds.PatientPosition = "HFS"
    ds.FrameOfReferenceUID = uid(draw, "frame", index)
    ds.PositionReferenceIndicator = ""


def _image(ds: FileDataset, draw: Draw, index: int) -> None:
    ds.SOPClassUID = CTImageStorage
    ds.SOPInstanceUID = uid(draw, "instance", index)
    ds.SyntheticData = "YES"
    ds.InstanceNumber = 1
    ds.ImageType = ["DERIVED", "SECONDARY", "AXIAL"]
    ds.BurnedInAnnotation = "NO"
    ds.RecognizableVisualFeatures = "NO"
    ds.LossyImageCompression = "00"
    ds.DerivationDescription = (
        f"Drawn by a diffusion model. Model SHA-256 {draw.model_sha256}, plan {draw.plan_digest}. {draw.method}"
    )[:1024]
    ds.KVP = None
    ds.AcquisitionNumber = None
    ds.WindowCenter, ds.WindowWidth = [-600, 40], [1500, 400]
    ds.WindowCenterWidthExplanation = ["LUNG", "MEDIASTINUM"]


def _plane(ds: FileDataset, draw: Draw, index: int) -> None:
    assert draw.pixel_mm is not None
    corner = -draw.pixel_mm * (draw.hu.shape[1] - 1) / 2
    ds.PixelSpacing = [_decimal(draw.pixel_mm)] * 2
    ds.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
    ds.ImagePositionPatient = [_decimal(corner), _decimal(corner), "0"]
    ds.SliceThickness = None


def _pixels(ds: FileDataset, draw: Draw, index: int) -> None:
    plane = draw.hu[index]
    ds.SamplesPerPixel = 1
    ds.PhotometricInterpretation = "MONOCHROME2"
    ds.Rows, ds.Columns = plane.shape
    ds.BitsAllocated = ds.BitsStored = 16
    ds.HighBit = 15
    ds.PixelRepresentation = 1
    ds.RescaleIntercept = RESCALE_INTERCEPT_HU
    ds.RescaleSlope = 1
    ds.RescaleType = "HU"
    ds.PixelData = (plane.astype(np.int32) - RESCALE_INTERCEPT_HU).astype("<i2").tobytes()
    ds["PixelData"].VR = "OW"


def _decimal(value: float) -> str:
    """A decimal string (VR DS), at most 16 characters."""
    return f"{value:.8g}"
