"""ctslices.sources.scan: files sorted by what they hold, in one order, with nothing raised on damage."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import nrrd
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from ctslices.options import Options
from ctslices.reject import Reason, Rejected
from ctslices.series import SourceKind
from ctslices.sources import scan

ANY = Options(min_slices=1)
LPS = {"space": "left-posterior-superior", "space origin": [0, 0, 0], "space directions": np.diag([2.0, 2, 5])}
CUBE = np.arange(8 * 9 * 6, dtype=np.int16).reshape(8, 9, 6)


def by_path(rejected: list[Rejected]) -> dict[str, Reason]:
    return {one.path: one.reason for one in rejected}


def test_a_tree_of_everything(
    tmp_path: Path, write_series: Callable[..., list[Path]], real_chest: NDArray[np.int16]
) -> None:
    write_series(tmp_path / "a" / "b" / "c" / "dicom", "P1", real_chest[:6])
    for path in (tmp_path / "a" / "b" / "c" / "dicom").iterdir():
        path.rename(path.with_suffix(".scan"))
    nib.save(nib.Nifti1Image(CUBE, np.diag([2.0, 2, 5, 1])), tmp_path / "a" / "v.nii.gz")
    (tmp_path / "a" / "v.nii.gz").rename(tmp_path / "a" / "VOLUME.GZ")
    nib.save(nib.Nifti2Image(CUBE, np.diag([2.0, 2, 5, 1])), tmp_path / "w.nii")
    (tmp_path / "w.nii").rename(tmp_path / "w")
    nrrd.write(str(tmp_path / "x.nrrd"), CUBE, LPS)
    nrrd.write(str(tmp_path / "y.nhdr"), CUBE, LPS)
    Image.new("L", (9, 9)).save(tmp_path / "preview.png")
    (tmp_path / "notes.txt").write_text("hello")
    (tmp_path / "empty").touch()
    (tmp_path / "DICOMDIR").write_bytes(b"\0" * 128 + b"DICM" + b"\0" * 400)
    (tmp_path / "broken.dcm").write_bytes(b"rubbish")
    (tmp_path / "broken.nii").write_bytes(b"rubbish")
    (tmp_path / "broken.nii.gz").write_bytes(b"\x1f\x8brubbish")
    (tmp_path / "broken.nrrd").write_bytes(b"rubbish")
    series, rejected = scan.find(tmp_path, ANY)
    assert [(one.kind, one.relative_paths[0], len(one.planes)) for one in series] == [
        (SourceKind.NIFTI, "a/VOLUME.GZ", 6),
        (SourceKind.DICOM, "a/b/c/dicom/0000.scan", 6),
        (SourceKind.NIFTI, "w", 6),
        (SourceKind.NRRD, "x.nrrd", 6),
        (SourceKind.NRRD, "y.nhdr", 6),
    ]
    assert by_path(rejected) == {
        "DICOMDIR": Reason.NOT_AN_IMAGE,
        "broken.dcm": Reason.NOT_AN_IMAGE,
        "broken.nii": Reason.UNREADABLE,
        "broken.nii.gz": Reason.UNREADABLE,
        "broken.nrrd": Reason.UNREADABLE,
        "empty": Reason.NOT_AN_IMAGE,
        "notes.txt": Reason.NOT_AN_IMAGE,
        "preview.png": Reason.NOT_AN_IMAGE,
    }
    again = scan.find(tmp_path, ANY)
    assert again == (series, rejected)


def test_links_lead_nowhere(tmp_path: Path) -> None:
    outside, export = tmp_path / "outside", tmp_path / "export"
    outside.mkdir()
    export.mkdir()
    nib.save(nib.Nifti1Image(CUBE, np.eye(4)), outside / "v.nii")
    (export / "file").symlink_to(outside / "v.nii")
    (export / "folder").symlink_to(outside)
    (export / "loop").symlink_to(export)
    series, rejected = scan.find(export, ANY)
    assert series == []
    assert by_path(rejected) == dict.fromkeys(("file", "folder", "loop"), Reason.NOT_AN_IMAGE)
    through = tmp_path / "through"
    through.symlink_to(outside)
    assert len(scan.find(through, ANY)[0]) == 1


def test_a_pixel_file_outside_the_export_is_not_read(tmp_path: Path) -> None:
    export = tmp_path / "export"
    export.mkdir()
    nrrd.write(str(tmp_path / "v.nhdr"), CUBE, LPS)
    header = (tmp_path / "v.nhdr").read_text()
    (export / "v.nhdr").write_text(header.replace("data file: v", "data file: ../v"))
    series, rejected = scan.find(export, ANY)
    assert series == []
    assert by_path(rejected) == {"v.nhdr": Reason.UNREADABLE}


def test_the_sites_own_tables_are_no_part_of_the_export(tmp_path: Path) -> None:
    (tmp_path / "labels.csv").write_text("key,label\n")
    assert scan.find(tmp_path, Options(not_scans=frozenset({str(tmp_path / "labels.csv")}))) == ([], [])
    assert by_path(scan.find(tmp_path, ANY)[1]) == {"labels.csv": Reason.NOT_AN_IMAGE}


def test_too_few_slices(tmp_path: Path) -> None:
    nib.save(nib.Nifti1Image(CUBE[:, :, :4], np.eye(4)), tmp_path / "v.nii")
    assert by_path(scan.find(tmp_path, Options())[1]) == {"v.nii": Reason.TOO_FEW_SLICES}
    assert len(scan.find(tmp_path, Options(min_slices=4))[0]) == 1


def test_names_that_are_not_utf8_and_what_is_no_file(tmp_path: Path) -> None:
    nib.save(nib.Nifti1Image(CUBE, np.eye(4)), tmp_path / "v.nii")
    os.rename(os.fsencode(tmp_path / "v.nii"), os.fsencode(tmp_path) + b"/M\xfcller.nii")
    os.mkfifo(tmp_path / "pipe")
    series, rejected = scan.find(tmp_path, ANY)
    assert series[0].raw_series.encode() == b"M\\xfcller.nii"
    assert by_path(rejected) == {"pipe": Reason.NOT_AN_IMAGE}


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_what_may_not_be_read(tmp_path: Path) -> None:
    (tmp_path / "file").touch(mode=0)
    (tmp_path / "folder").mkdir(mode=0)
    assert set(by_path(scan.find(tmp_path, ANY)[1]).values()) == {Reason.UNREADABLE}
