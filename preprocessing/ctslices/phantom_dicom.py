"""Phantom slices as DICOM CT Image Storage, the way scanners of three makers write them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.sequence import Sequence
from pydicom.uid import UID, CTImageStorage, ExplicitVRLittleEndian, JPEG2000Lossless, RLELossless, generate_uid

from ctslices.phantom import HospitalProfile, Patient
from ctslices.phantom_identity import Identity

_SYNTAX = {"none": ExplicitVRLittleEndian, "rle": RLELossless, "jpeg2000": JPEG2000Lossless}


@dataclass(frozen=True, slots=True)
class SeriesLabel:
    """What names a series within its study."""

    number: int
    description: str
    kernel: str
    body_part: str = "CHEST"


def file_meta(sop_class: UID, instance: UID, syntax: UID = ExplicitVRLittleEndian) -> FileMetaDataset:
    """The file's head."""
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = sop_class
    meta.MediaStorageSOPInstanceUID = instance
    meta.TransferSyntaxUID = syntax
    meta.ImplementationClassUID = generate_uid(entropy_srcs=["ctslices phantom"])
    meta.ImplementationVersionName = "CTSLICES_PHANTOM"
    return meta


def study_header(ds: Dataset, profile: HospitalProfile, patient: Patient, who: Identity) -> None:
    """Patient, study and equipment, planted with everything that may identify somebody."""
    ds.SpecificCharacterSet = "ISO_IR 100"
    ds.PatientName = who.name
    ds.PatientID = who.patient_id
    ds.PatientBirthDate = who.birth.strftime("%Y%m%d")
    ds.PatientSex = "F" if patient.female else "M"
    ds.PatientAge = f"{patient.age_years:03d}Y"
    ds.OtherPatientNames = f"{who.family}^{who.given[0]}"
    ds.PatientComments = f"Known to the clinic as {who.given} {who.family}"
    ds.StudyInstanceUID = who.study_uid
    ds.StudyID = who.accession[1:5]
    ds.StudyDate = ds.SeriesDate = ds.AcquisitionDate = ds.ContentDate = who.study.strftime("%Y%m%d")
    ds.StudyTime = ds.SeriesTime = ds.AcquisitionTime = ds.ContentTime = who.time
    ds.AccessionNumber = who.accession
    ds.ReferringPhysicianName = "Referrer^Rosa"
    ds.InstitutionName = f"{profile.name.title()} General Hospital"
    ds.InstitutionAddress = f"1 {profile.name.title()} Street"
    ds.StationName = f"CT{profile.name[:4].upper()}1"
    ds.OperatorsName = "Operator^Otto"
    ds.DeviceSerialNumber = str(100000 + sum(profile.name.encode()))
    ds.Manufacturer = profile.manufacturer
    ds.ManufacturerModelName = profile.scanner
    request = Dataset()
    request.RequestedProcedureID = who.accession
    request.RequestedProcedureDescription = f"CT for {who.family}"
    ds.RequestAttributesSequence = Sequence([request])
    block = ds.private_block(0x0009, "GEMS_IDEN_01", create=True)
    block.add_new(0x04, "SH", who.patient_id)
    block.add_new(0x1D, "LO", f"{who.given} {who.family}"[:60])


def series_template(profile: HospitalProfile, patient: Patient, who: Identity, label: SeriesLabel) -> FileDataset:
    """A data set with everything that all slices of a series share."""
    meta = file_meta(CTImageStorage, UID("1.2.3"), _SYNTAX[profile.compression])
    ds = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
    study_header(ds, profile, patient, who)
    ds.SOPClassUID = CTImageStorage
    ds.Modality = "CT"
    ds.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
    ds.SeriesInstanceUID = who.uid("series", label.number)
    ds.SeriesNumber = label.number
    ds.SeriesDescription = label.description
    ds.ProtocolName = label.description
    ds.BodyPartExamined = label.body_part
    ds.FrameOfReferenceUID = who.frame_uid
    ds.PositionReferenceIndicator = "SN"
    ds.PatientPosition = "HFS"
    ds.AcquisitionNumber = 1
    ds.KVP = profile.kvp
    ds.ConvolutionKernel = label.kernel
    ds.SliceThickness = profile.thickness_mm
    ds.GantryDetectorTilt = 0
    ds.ReconstructionDiameter = profile.field_mm
    ds.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
    _pixel_header(ds, profile)
    return ds


def _pixel_header(ds: Dataset, profile: HospitalProfile) -> None:
    ds.SamplesPerPixel = 1
    ds.PhotometricInterpretation = "MONOCHROME2"
    ds.Rows = ds.Columns = profile.matrix
    ds.BitsAllocated = 16
    ds.BitsStored, ds.HighBit = (16, 15) if profile.signed else (12, 11)
    ds.PixelRepresentation = int(profile.signed)
    ds.PixelSpacing = [round(profile.field_mm / profile.matrix, 6)] * 2
    ds.RescaleIntercept = profile.intercept_hu
    ds.RescaleSlope = 1
    ds.RescaleType = "HU"
    ds.WindowCenter, ds.WindowWidth = [40, -600], [400, 1500]
    if profile.padding_value is not None:
        ds.PixelPaddingValue = profile.padding_value


def stored(hu: NDArray[np.int16], profile: HospitalProfile) -> NDArray[np.int16] | NDArray[np.uint16]:
    """Stored values [n, rows, cols] of HU: rescaled, cut to the bits, and padded outside the reconstruction circle."""
    values = hu.astype(np.int32) - profile.intercept_hu
    side = np.arange(profile.matrix) - (profile.matrix - 1) / 2
    outside = np.hypot(side[:, None], side[None, :]) > profile.matrix / 2
    if profile.padding_value is not None:
        values[:, outside] = profile.padding_value
    else:
        values[:, outside] = 0
    if profile.signed:
        return values.astype(np.int16)
    return np.clip(values, 0, 4095).astype(np.uint16)


def instances(
    template: FileDataset,
    who: Identity,
    pixels: NDArray[np.int16] | NDArray[np.uint16],
    heights_mm: NDArray[np.float64],
) -> Iterator[FileDataset]:
    """One data set after another (the same object, filled anew), from the feet to the head."""
    spacing = float(template.PixelSpacing[0])
    corner = -spacing * (pixels.shape[2] - 1) / 2
    for i, (plane, z) in enumerate(zip(pixels, heights_mm, strict=True)):
        instance = who.uid("series", template.SeriesNumber, "instance", i)
        template.SOPInstanceUID = instance
        template.file_meta.MediaStorageSOPInstanceUID = instance
        template.InstanceNumber = i + 1
        template.ImagePositionPatient = [round(corner, 4), round(corner, 4), round(float(z), 3)]
        template.SliceLocation = round(float(z), 3)
        _fill(template, plane)
        yield template


def _fill(ds: FileDataset, plane: NDArray[np.int16] | NDArray[np.uint16]) -> None:
    syntax = ds.file_meta.TransferSyntaxUID
    if not syntax.is_compressed:
        ds.PixelData = plane.tobytes()
        ds["PixelData"].VR = "OW"
        return
    ds.PixelData = encapsulate([_encode(ds, plane, syntax)])
    ds["PixelData"].VR = "OB"
    ds["PixelData"].is_undefined_length = True


def _encode(ds: FileDataset, plane: NDArray[np.int16] | NDArray[np.uint16], syntax: UID) -> bytes:
    if syntax == RLELossless:
        from rle.utils import encode_pixel_data

        shape = {"rows": plane.shape[0], "columns": plane.shape[1], "samples_per_pixel": 1, "bits_allocated": 16}
        return bytes(encode_pixel_data(plane.tobytes(), byteorder="<", number_of_frames=1, **shape))
    from openjpeg.utils import encode_array as encode_jpeg2000

    return bytes(encode_jpeg2000(plane, bits_stored=ds.BitsStored, photometric_interpretation=2, use_mct=False))


def write(ds: Dataset, path: Path) -> None:
    """Write a data set as a DICOM file with preamble and head."""
    path.parent.mkdir(parents=True, exist_ok=True)
    ds.save_as(path, enforce_file_format=True)
