"""Identifiers planted wherever a header, name or comment can hold one: no byte of store, output or errors has them."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from pydicom.datadict import DicomDictionary, keyword_for_tag
from pydicom.dataset import Dataset, FileDataset
from pydicom.sequence import Sequence
from pydicom.uid import generate_uid

SECRET = "ZQXWERT"
"""In every text; in capitals, so that code strings can hold it too."""
DIGITS = "73519284607"
"""In every UID and number."""
DATE = "19370219"
TOKENS = tuple(token for text in (SECRET, DIGITS, DATE, "1937-02-19") for token in (text, text.lower()))
TEXTS = {"LO", "SH", "PN", "ST", "LT", "UT", "UC", "AE", "UR", "CS"}
DECIDES = {
    "Modality", "ImageType", "PhotometricInterpretation", "RescaleType", "SpecificCharacterSet", "BurnedInAnnotation",
    "PatientIdentityRemoved", "SyntheticData", "PixelPresentation", "LossyImageCompression", "FrameType",
    "VolumetricProperties", "VolumeBasedCalculationTechnique", "ComplexImageComponent", "AcquisitionContrast",
    "RecognizableVisualFeatures", "PresentationLUTShape", "ModalityLUTType",
}  # fmt: skip
"""Code strings without which a file is no plain CT image; all others hold the secret."""


def _plain(tag: int) -> bool:
    group = tag >> 16
    return group % 2 == 0 and 0x0008 <= group < 0x5000 and tag & 0xFF00FFFF != 0x60003000


def plant_everywhere(ds: FileDataset) -> None:
    """Every text, date, time and UID of the dictionary, private tags, overlays, nested sequences."""
    for tag, (vr, _, _, retired, _) in DicomDictionary.items():
        keyword = keyword_for_tag(tag)
        if not _plain(tag) or not keyword or retired or keyword in DECIDES or tag in ds:
            continue
        if vr in TEXTS:
            ds.add_new(tag, vr, SECRET)
        elif vr in ("DA", "DT", "TM"):
            ds.add_new(tag, vr, DATE if vr != "TM" else "193702.19")
        elif vr == "UI":
            ds.add_new(tag, vr, f"1.2.{DIGITS}.{tag % 99991}")
    ds.Manufacturer, ds.ConvolutionKernel = f"{SECRET} MEDICAL", f"{SECRET}40f"
    ds.PatientName, ds.PatientID = f"{SECRET}^{SECRET}", f"{SECRET}-{ds.PatientID}"
    block = ds.private_block(0x0011, f"{SECRET} 1.0", create=True)
    block.add_new(0x01, "LO", SECRET)
    block.add_new(0x02, "UN", f"{SECRET}{DIGITS}".encode())
    inner, outer = Dataset(), Dataset()
    inner.PatientName = inner.CodeMeaning = SECRET
    outer.ReferencedPatientSequence = Sequence([inner])
    outer.ReferencedSOPInstanceUID = f"1.2.{DIGITS}.1"
    ds.ReferencedStudySequence = Sequence([outer])
    ds.OriginalAttributesSequence = Sequence([outer])
    ds.add_new(0x60000010, "US", 8)
    ds.add_new(0x60000011, "US", 8)
    ds.add_new(0x60000040, "CS", "G")
    ds.add_new(0x60000022, "LO", SECRET)
    ds.add_new(0x60001500, "LO", SECRET)
    ds.add_new(0x60003000, "OW", SECRET.encode().ljust(8))


def _unique_uids(ds: FileDataset, number: int) -> None:
    ds.SOPInstanceUID = ds.file_meta.MediaStorageSOPInstanceUID = f"1.2.{DIGITS}.{number}"
    ds.SeriesInstanceUID = f"1.2.{DIGITS}.5"
    ds.FrameOfReferenceUID = f"1.2.{DIGITS}.6"


def _dicom(export: Path, chest: NDArray[np.int16], write_series: Callable[..., list[Path]]) -> None:
    folder = export / f"{SECRET}^JOHN {DATE}"
    numbers: Iterator[int] = iter(range(1000))

    def change(ds: FileDataset) -> None:
        plant_everywhere(ds)
        _unique_uids(ds, next(numbers))

    paths = write_series(folder / "CT", "A", chest[10:18], change=change)
    for number, path in enumerate(paths):
        path.rename(path.with_name(f"{SECRET}_{number}.dcm"))
    mess = folder / "mess"
    write_series(mess / "short", "B", chest[:2], change=plant_everywhere)
    whole = write_series(mess / "cut", "C", chest[10:18], change=plant_everywhere)
    whole[3].write_bytes(whole[3].read_bytes()[:-5000])
    whole[4].write_bytes(whole[4].read_bytes()[:900])
    write_series(mess / "nobody", None, chest[10:12], change=lambda ds: setattr(ds, "PatientComments", SECRET))
    write_series(mess / "mr", "D", chest[10:12], change=lambda ds: ds.update({"Modality": "MR", "PatientID": SECRET}))

    def damage(ds: FileDataset) -> None:
        plant_everywhere(ds)
        ds.SeriesInstanceUID = generate_uid()
        ds.add_new(0x00280030, "LO", SECRET)  # PixelSpacing is no number
        ds.add_new(0x00281053, "LO", SECRET)

    write_series(mess / "numbers", "E", chest[10:16], change=damage)
    (mess / f"{SECRET}.txt").write_text(SECRET)


def _nifti(export: Path, chest: NDArray[np.int16]) -> None:
    import nibabel

    image = nibabel.Nifti1Image(chest[8:18].transpose(2, 1, 0), np.diag([-3.046, -3.046, 10.0, 1.0]))
    header = image.header
    header["descrip"], header["aux_file"], header["intent_name"] = SECRET, SECRET, SECRET
    header["db_name"] = SECRET
    header.extensions.append(nibabel.nifti1.Nifti1Extension("comment", f"{SECRET} {DATE}".encode()))
    (export / f"{SECRET}_nifti").mkdir()
    nibabel.save(image, export / f"{SECRET}_nifti" / f"{SECRET}.nii.gz")
    broken = (export / f"{SECRET}_nifti" / f"{SECRET}.nii.gz").read_bytes()[:2000]
    (export / f"{SECRET}_nifti" / "broken.nii.gz").write_bytes(broken)


def _nrrd(export: Path, chest: NDArray[np.int16]) -> None:
    import nrrd

    (export / f"{SECRET}_nrrd").mkdir()
    header = {
        "space": "left-posterior-superior",
        "space directions": np.diag([3.046, 3.046, 10.0]),
        "space origin": [-190.0, -190.0, 0.0],
        "content": SECRET,
        "PatientName": f"{SECRET}^{DATE}",
        SECRET: DIGITS,
    }
    volume = np.asfortranarray(chest[8:18].transpose(2, 1, 0))
    nrrd.write(str(export / f"{SECRET}_nrrd" / f"{SECRET}.nrrd"), volume, header)
    text = (export / f"{SECRET}_nrrd" / f"{SECRET}.nrrd").read_bytes()
    (export / f"{SECRET}_nrrd" / "broken.nrrd").write_bytes(text[: len(text) // 2])


def _pictures(export: Path) -> None:
    from PIL import Image
    from PIL.PngImagePlugin import PngInfo

    rng = np.random.default_rng(1)
    for label in ("covid", "clear"):
        folder = export / f"{SECRET} {DATE}" / label
        folder.mkdir(parents=True)
        for number in range(1, 5):
            grey = Image.fromarray(rng.integers(0, 256, (80, 80)).astype(np.uint8))
            info = PngInfo()
            info.add_text("PatientName", f"{SECRET} {DATE}")
            info.add_itxt(SECRET, DIGITS)
            grey.save(folder / f"{SECRET} ({number}).png", pnginfo=info)
            exif = Image.Exif()
            exif[0x010E] = f"{SECRET} {DATE}"
            grey.save(folder / f"{SECRET} ({number + 10}).jpg", exif=exif, comment=SECRET.encode())
        (folder / f"{SECRET} (99).png").write_bytes(b"\x89PNG\r\n\x1a\n" + SECRET.encode())


def _run(*arguments: object) -> tuple[int, str]:
    command = [sys.executable, "-X", "dev", "-W", "default", "-m", "ctslices", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, check=False)
    return done.returncode, (done.stdout + done.stderr).decode()


def _found(data: bytes) -> list[str]:
    encoded = [(t, t.encode(e)) for t in TOKENS for e in ("utf-8", "utf-16-le", "utf-16-be")]
    return sorted({token for token, needle in encoded if needle in data})


@pytest.mark.parametrize("kind", ["scans", "pictures"])
def test_no_identifier_gets_anywhere(
    kind: str,
    tmp_path: Path,
    real_chest: NDArray[np.int16],
    write_series: Callable[..., list[Path]],
) -> None:
    export, store = tmp_path / f"{SECRET} export", tmp_path / "store"
    export.mkdir()
    if kind == "scans":
        _dicom(export, real_chest, write_series)
        _nifti(export, real_chest)
        _nrrd(export, real_chest)
    else:
        _pictures(export)
    tables = tmp_path / SECRET
    tables.mkdir()
    (tables / "labels.csv").write_text(f"key,label\n{SECRET}-A,covid\n{SECRET}-GHOST,clear\n")
    (tables / "ids.txt").write_text(f"{SECRET}-NOBODY\n")
    (tables / "same.csv").write_text(f"patient,same_as\n{SECRET}-A,{SECRET}-Z\n")
    arguments = ["prepare", export, "--out", store, "--patient-from", "folder", "--every-mm", "0", "--workers", "2"]
    arguments += ["--labels", tables / "labels.csv", "--exclude", tables / "ids.txt"]
    arguments += ["--same-patient", tables / "same.csv"]
    code, told = _run(*arguments)
    assert code == 0, told
    assert _found(told.encode()) == []

    manifest = json.loads((store / "manifest.json").read_text())
    assert manifest["slices"] >= 16
    assert set(manifest["kinds"]) == ({"dicom", "nifti", "nrrd"} if kind == "scans" else {"pictures"})
    for path in store.iterdir():
        assert _found(path.read_bytes()) == [], path.name
        assert _found(path.name.encode()) == []
    for name in ("store.state.json", "store.key"):
        assert _found((tmp_path / name).read_bytes()) == []
    refused = [json.loads(line) for line in (tmp_path / "store.rejected.jsonl").read_text().splitlines()]
    assert refused
    assert _found(json.dumps([r["path"] for r in refused]).encode()) != []
    assert _found(json.dumps([(r["reason"], r["detail"]) for r in refused]).encode()) == []

    for more in (["inspect", store], ["inspect", store, "--json"], [*arguments, "--json"]):
        code, told = _run(*more)
        assert code == 0
        assert _found(told.encode()) == []


def test_errors_tell_nothing_either(tmp_path: Path, real_chest: NDArray[np.int16], write_series: object) -> None:
    export = tmp_path / f"{SECRET} export"
    _dicom(export, real_chest, write_series)  # type: ignore[arg-type]
    (tmp_path / "bad.csv").write_text(f"key,label\n{SECRET},\n")
    (tmp_path / "twice.csv").write_text(f"key,label\n{SECRET},a\n{SECRET},b\n")
    (tmp_path / "key").write_text(SECRET)
    (tmp_path / "key").chmod(0o600)
    for more in (
        ["--labels", tmp_path / "bad.csv"],
        ["--labels", tmp_path / "twice.csv"],
        ["--labels", tmp_path / f"{SECRET}.csv"],
        ["--patient-from", tmp_path / f"{SECRET}.csv"],
        ["--key", tmp_path / "key"],
        ["--field-mm", "1"],
        ["--workers", "0"],
    ):
        code, told = _run("prepare", export, "--out", tmp_path / "store", *more)
        assert code == 1, told
        assert "error:" in told
        assert "Traceback" not in told
        assert _found(told.encode()) == []
