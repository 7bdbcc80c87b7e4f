"""Exports made to break out of `prepare`: each costs itself alone, and nothing beside the store is harmed."""

from __future__ import annotations

import gzip
import json
import os
import resource
import shutil
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import nibabel
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from pydicom.uid import RLELossless

from ctslices.inventory import entries
from ctslices.labels import TableError, read_labels
from ctslices.options import Options
from ctslices.pool import MEMORY_LIMIT_BYTES, WorkerPool
from ctslices.prepare import Site, prepare
from ctslices.reject import Reason, Rejected
from ctslices.sources import nifti, nrrd, pictures
from ctslices.sources.scan import find
from ctslices.store import SliceStore

NRRD = (
    "NRRD0004\ntype: short\ndimension: 3\nspace: LPS\nsizes: {sizes}\nspace directions: (5,0,0) (0,5,0) (0,0,5)\n"
    "space origin: (0,0,0)\nendian: little\nencoding: raw\n"
)


def _refused(found: object, reason: Reason) -> bool:
    return isinstance(found, Rejected) and found.reason is reason


def test_a_module_beside_the_scans_is_not_imported(
    tmp_path: Path, real_chest: NDArray[np.int16], write_series: Callable[..., list[Path]]
) -> None:
    export = tmp_path / "export"
    write_series(
        export / "ct", "P1", real_chest[12:18], change=lambda ds: ds.compress(RLELossless, generate_instance_uid=False)
    )
    (export / "pydicom.py").write_text(f"open({str(tmp_path / 'was here')!r}, 'w')\n")
    command = [sys.executable, "-P", "-m", "ctslices", "prepare", ".", "--out", "../store", "--workers", "1", "--json"]
    done = subprocess.run(command, cwd=export, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout)["slices"] == 6
    assert not (tmp_path / "was here").exists()


@pytest.mark.parametrize("deep", ["store.old", "store.new"])
def test_folders_named_like_the_store_are_left_alone(tmp_path: Path, deep: str) -> None:
    (tmp_path / "export").mkdir()
    (tmp_path / deep).mkdir()
    (tmp_path / deep / "backup").write_text("precious")
    for size in (64, 32):
        prepare(tmp_path / "export", tmp_path / "store", Options(size=size), Site(workers=1))
    assert (tmp_path / deep / "backup").read_text() == "precious"


def test_a_store_behind_a_link_can_be_made_again(tmp_path: Path) -> None:
    (tmp_path / "export").mkdir()
    (tmp_path / "disk").mkdir()
    (tmp_path / "store").symlink_to(tmp_path / "disk")
    for size in (64, 32):
        prepare(tmp_path / "export", tmp_path / "store", Options(size=size), Site(workers=1))
    assert (tmp_path / "store").is_symlink()
    assert SliceStore.open(tmp_path / "store").size == 32


def _nifti2(slices: int) -> bytes:
    header = nibabel.Nifti2Header()
    header.set_data_dtype(np.int16)
    header.set_data_shape((16, 16, 10))
    header.set_sform(np.eye(4), 1)
    header["vox_offset"], header["magic"] = 544, b"n+2\0\r\n\x1a\n"
    header["dim"][3] = slices
    return bytes(header.binaryblock) + b"\0\0\0\0"


def test_a_header_cannot_claim_all_memory(tmp_path: Path) -> None:
    (tmp_path / "a.nii.gz").write_bytes(gzip.compress(_nifti2(10**10)))
    assert _refused(nifti.read(tmp_path / "a.nii.gz", "a.nii.gz"), Reason.UNREADABLE)
    for sizes in ("1 1 2000000000", "60000000 1 20"):
        (tmp_path / "a.nrrd").write_text(NRRD.format(sizes=sizes) + "\n")
        assert _refused(nrrd.read(tmp_path / "a.nrrd", "a.nrrd", tmp_path), Reason.UNREADABLE)


def test_extensions_of_nifti_are_not_read(tmp_path: Path) -> None:
    content = bytearray(nibabel.Nifti1Image(np.ones((16, 16, 10), np.int16), np.eye(4)).to_bytes())
    content[348] = 1
    struct.pack_into("<f", content, 108, 352.0 + 1024)
    claims_two_gib = struct.pack("<ii", 2**31 - 16, 2)
    (tmp_path / "a.nii").write_bytes(content[:352] + claims_two_gib.ljust(1024, b"\xff") + content[352:])
    series = nifti.read(tmp_path / "a.nii", "a.nii")
    assert not isinstance(series, Rejected)
    (plane,) = nifti.read_planes(series, [3])
    np.testing.assert_array_equal(plane, np.ones((16, 16)))
    assert not nifti._load(tmp_path / "a.nii").header.extensions


def test_an_nrrd_header_has_an_end(tmp_path: Path) -> None:
    path = tmp_path / "a.nrrd"
    with path.open("wb") as file:
        file.write(b"NRRD0004\n# ")
        file.truncate(1 << 40)  # a sparse file: one line of a tebibyte
    assert _refused(nrrd.read(path, "a.nrrd", tmp_path), Reason.UNREADABLE)
    path.unlink()
    path.write_text(NRRD.format(sizes="64 64 10") + "line skip: 999999999999\n\n")
    assert _refused(nrrd.read(path, "a.nrrd", tmp_path), Reason.UNREADABLE)


def test_a_picture_of_one_endless_line_is_none(tmp_path: Path) -> None:
    Image.new("1", (30_000_000, 1)).save(tmp_path / "a.png")
    _, (refused,) = pictures.read([(tmp_path / "a.png", "a.png")])
    assert _refused(refused, Reason.NOT_AN_IMAGE)


@pytest.fixture
def nested(tmp_path: Path) -> Iterator[Path]:
    """A folder of 1100 folders in each other, with one file in the last; removed again by `rm`, which can."""
    export = tmp_path / "export"
    export.mkdir()
    before = os.getcwd()
    os.chdir(export)
    for _ in range(1100):
        os.mkdir("d")
        os.chdir("d")
    Path("file").write_text("x")
    os.chdir(before)
    yield export
    subprocess.run([shutil.which("rm") or "rm", "-rf", str(export)], check=True)


def test_folders_may_lie_deep_in_each_other(nested: Path) -> None:
    _, rejected = find(nested, Options())
    assert [(len(r.path), r.reason) for r in rejected] == [(2204, Reason.NOT_AN_IMAGE)]
    assert [len(entry.path) for entry in entries(nested)] == [2204]


def test_a_table_that_is_no_csv_says_so(tmp_path: Path) -> None:
    (tmp_path / "labels.csv").write_text("key,label\n" + "x" * 200_000 + ",covid\n")
    with pytest.raises(TableError, match="no CSV"):
        read_labels(tmp_path / "labels.csv")


def test_a_worker_takes_no_more_memory_than_a_scan_needs() -> None:
    with WorkerPool[int, tuple[int, int]](resource.getrlimit, 1) as pool:
        memory, core = (outcome.result for outcome in pool.run([resource.RLIMIT_AS, resource.RLIMIT_CORE]))
    assert memory is not None
    assert 0 < memory[0] <= MEMORY_LIMIT_BYTES
    assert core == (0, 0)
