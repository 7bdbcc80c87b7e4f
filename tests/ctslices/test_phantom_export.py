"""Phantom exports: real DICOM that reads back to the rendered HU, with the mess that exports have, resumable."""

from __future__ import annotations

import hashlib
import warnings
from collections import Counter
from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom.errors import InvalidDicomError

from ctslices.phantom import PROFILES, draw_patient, render, slice_heights
from ctslices.phantom_export import write_hospital_export


@pytest.fixture(scope="module", params=range(3), ids=[p.name for p in PROFILES])
def export(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[int, Path]:
    number: int = request.param
    folder = tmp_path_factory.mktemp("exports") / PROFILES[number].name
    write_hospital_export(folder, PROFILES[number], 3, seed=20 + number)
    return number, folder


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def _read(path: Path) -> pydicom.FileDataset | None:
    try:
        with warnings.catch_warnings():
            # The truncated slice of a compressed series warns before it is read as far as it goes.
            warnings.simplefilter("ignore", UserWarning)
            ds = pydicom.dcmread(path)
            return ds if "Modality" in ds else None
    except (InvalidDicomError, EOFError):
        return None


def _digests(folder: Path) -> dict[str, str]:
    return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in _files(folder)}


def test_the_first_patients_series_reads_back_to_its_hu(export: tuple[int, Path]) -> None:
    number, folder = export
    profile = PROFILES[number]
    rng = np.random.default_rng([20 + number, 0, 1])
    patient = draw_patient(rng, profile)
    read = [ds for path in _files(folder) if (ds := _read(path)) is not None and ds.get("SeriesNumber") == 2]
    key = next(ds.PatientID for ds in read if ds.PatientID.endswith("00000"))
    chest = sorted((ds for ds in read if key == ds.PatientID), key=lambda ds: float(ds.ImagePositionPatient[2]))
    heights = slice_heights(patient, profile.step_mm)
    assert len(chest) == len(heights)
    np.testing.assert_allclose(np.diff([float(ds.ImagePositionPatient[2]) for ds in chest]), profile.step_mm)
    got = np.stack([ds.pixel_array * float(ds.RescaleSlope) + float(ds.RescaleIntercept) for ds in chest])
    assert float(chest[0].PixelSpacing[0]) == pytest.approx(profile.field_mm / profile.matrix, abs=1e-5)
    # The names are drawn between patient and noise, so the noise is not redrawn here: compare what is beyond it.
    want = render(np.random.default_rng(0), patient, profile, heights).astype(float)
    side = np.arange(profile.matrix) - (profile.matrix - 1) / 2
    inside = np.hypot(side[:, None], side[None]) < profile.matrix / 2 - 1
    error = (got - np.maximum(want, profile.intercept_hu))[:, inside]
    assert abs(error.mean()) < 2
    assert np.sqrt(np.square(error).mean()) < 1.6 * profile.noise_hu * (1 + 0.8 * profile.sharpness)
    corner = -3024 if profile.padding_value == -2000 else profile.intercept_hu
    assert set(got[:, 0, 0]) == {corner}


def test_the_mess_is_there(export: tuple[int, Path]) -> None:
    _, folder = export
    read = {path: _read(path) for path in _files(folder)}
    good = [ds for ds in read.values() if ds is not None]
    assert {path.name for path, ds in read.items() if ds is None} >= {"DISC.txt", "labels.csv"}
    assert sum("LOCALIZER" in ds.get("ImageType", []) for ds in good) == 1
    assert sum(ds.Modality == "SR" for ds in good) == 1
    assert sum(ds.get("BurnedInAnnotation") == "YES" for ds in good) == 1
    assert sum(ds.get("BodyPartExamined") == "HEAD" for ds in good) == 14
    instances = Counter(str(ds.SOPInstanceUID) for ds in good if "SOPInstanceUID" in ds)
    assert sorted(instances.values())[-2:] == [1, 2]
    first = {ds.ConvolutionKernel for ds in good if ds.PatientID.endswith("00000") and ds.get("SeriesNumber") in (2, 3)}
    assert len(first) == 2
    # pydicom reads a truncated file as one without pixels, short of pixels, or not at all, by its syntax.
    unread = {path for path, ds in read.items() if ds is None and path.name not in ("DISC.txt", "labels.csv")}
    sizes = {path: path.stat().st_size for path, ds in read.items() if ds is not None and ds.get("SeriesNumber") == 2}
    short = {path for path, size in sizes.items() if size < 0.8 * np.median(list(sizes.values()))}
    assert len(unread | short) == 1


def test_labels_name_chest_patients_alone(export: tuple[int, Path]) -> None:
    _, folder = export
    rows = [line.split(",") for line in (folder / "labels.csv").read_text().splitlines()]
    assert rows[0] == ["key", "label"]
    assert len(rows) == 4
    assert {label for _, label in rows[1:]} <= {"disease", "healthy"}
    chest = {ds.PatientID for p in _files(folder) if (ds := _read(p)) is not None and ds.get("SeriesNumber") == 2}
    assert {key for key, _ in rows[1:]} == chest


def test_compressed_series_use_their_syntax(export: tuple[int, Path]) -> None:
    number, folder = export
    syntaxes = {ds.file_meta.TransferSyntaxUID.name for p in _files(folder) if (ds := _read(p)) is not None}
    want = ["Explicit VR Little Endian", "RLE Lossless", "JPEG 2000 Image Compression (Lossless Only)"][number]
    assert want in syntaxes


def test_an_interrupted_export_is_gone_on_with_to_the_same_bytes(tmp_path: Path) -> None:
    class Killed(BaseException):
        pass

    def stop(done: int, _: int) -> None:
        if done == 1:
            raise Killed

    whole, broken = tmp_path / "a" / "x", tmp_path / "b" / "x"
    write_hospital_export(whole, PROFILES[2], 2, seed=1)
    with pytest.raises(Killed):
        write_hospital_export(broken, PROFILES[2], 2, seed=1, progress=stop)
    assert not (broken / "labels.csv").exists()
    write_hospital_export(broken, PROFILES[2], 2, seed=1)
    assert _digests(whole) == _digests(broken)


def test_two_exports_are_never_mixed(tmp_path: Path) -> None:
    write_hospital_export(tmp_path / "x", PROFILES[2], 1, seed=1)
    with pytest.raises(ValueError, match="another profile, number or seed"):
        write_hospital_export(tmp_path / "x", PROFILES[2], 1, seed=2)
