"""A real chest, and a writer that makes DICOM series of it, for every test of the intake."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

SeriesWriter = Callable[..., list[Path]]


@pytest.fixture(scope="session")
def real_chest() -> NDArray[np.int16]:
    """int16 [34, 128, 128] HU, 10 mm apart, 3.046 mm pixels, LPS: slicerio's CTChest4."""
    import nrrd
    import slicerio

    data, _ = nrrd.read(str(Path(slicerio.__file__).parent / "data" / "CTChest4.nrrd"))
    chest: NDArray[np.int16] = np.ascontiguousarray(data[::-1, ::-1].transpose(2, 1, 0)).clip(-1024, 3071)
    return chest.astype(np.int16)


def _write_series(
    folder: Path,
    patient_id: str | None,
    hu: NDArray[np.int16],
    step_mm: float = 10.0,
    spacing_mm: float = 3.046,
    kernel: str = "B40f",
    study: str = "",
    change: Callable[[FileDataset], object] | None = None,
) -> list[Path]:
    """One CT series, a file a plane, explicit little endian; the UIDs follow from the patient, folder's name, kernel.

    `change` is called with every data set before it is written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    series = generate_uid(entropy_srcs=[str(patient_id), folder.name, kernel])
    frame = generate_uid(entropy_srcs=[str(patient_id), folder.name, "frame"])
    paths = []
    for number, plane in enumerate(hu):
        meta = FileMetaDataset()
        meta.MediaStorageSOPClassUID = CTImageStorage
        meta.MediaStorageSOPInstanceUID = generate_uid(entropy_srcs=[series, str(number)])
        meta.TransferSyntaxUID = ExplicitVRLittleEndian
        path = folder / f"{number:04d}.dcm"
        ds = FileDataset(str(path), {}, file_meta=meta, preamble=b"\0" * 128)
        ds.SOPClassUID, ds.SOPInstanceUID = CTImageStorage, meta.MediaStorageSOPInstanceUID
        ds.Modality, ds.ImageType = "CT", ["ORIGINAL", "PRIMARY", "AXIAL"]
        if patient_id is not None:
            ds.PatientID = patient_id
        ds.StudyInstanceUID = study or generate_uid(entropy_srcs=[str(patient_id), "study"])
        ds.SeriesInstanceUID, ds.FrameOfReferenceUID = series, frame
        ds.Manufacturer, ds.ConvolutionKernel, ds.KVP = "SIEMENS", kernel, "120"
        ds.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
        ds.ImagePositionPatient = [-spacing_mm * 64, -spacing_mm * 64, number * step_mm]
        ds.PixelSpacing, ds.SliceThickness = [spacing_mm, spacing_mm], step_mm
        ds.InstanceNumber = number + 1
        ds.SamplesPerPixel, ds.PhotometricInterpretation = 1, "MONOCHROME2"
        ds.Rows, ds.Columns = plane.shape
        ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 16, 16, 15, 1
        ds.RescaleSlope, ds.RescaleIntercept, ds.RescaleType = 1, 0, "HU"
        ds.PixelData = plane.astype("<i2").tobytes()
        if change is not None:
            change(ds)
        ds.save_as(path, enforce_file_format=True)
        paths.append(path)
    return paths


@pytest.fixture(scope="session")
def write_series() -> SeriesWriter:
    """The function that writes one CT series; see `_write_series`."""
    return _write_series
