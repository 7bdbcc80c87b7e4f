"""Native decoders that die or hang, for real: the plane is lost, and nothing else."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import gdcm
import numpy as np
import pytest
from numpy.typing import NDArray

from ctslices import decode, isolate
from ctslices.options import Options
from ctslices.reject import Reason, Rejected
from ctslices.series import Series
from ctslices.sources import dicom

Write = Callable[..., list[Path]]


@pytest.fixture
def lossless_jpegs(tmp_path: Path, write_series: Write, real_chest: NDArray[np.int16]) -> list[Path]:
    files = write_series(tmp_path / "a", "P1", real_chest[12:17])
    for path in files:
        reader = gdcm.ImageReader()
        reader.SetFileName(str(path))
        assert reader.Read()
        change = gdcm.ImageChangeTransferSyntax()
        change.SetTransferSyntax(gdcm.TransferSyntax(gdcm.TransferSyntax.JPEGLosslessProcess14_1))
        change.SetInput(reader.GetImage())
        assert change.Change()
        writer = gdcm.ImageWriter()
        writer.SetFileName(str(path))
        writer.SetFile(reader.GetFile())
        writer.SetImage(change.GetOutput())
        assert writer.Write()
    return files


def claim_154_bits(path: Path) -> None:
    """A sample precision that sends GDCM's lossless decoder over the end of its tables."""
    data = bytearray(path.read_bytes())
    data[data.index(b"\xff\xc3") + 4] = 154
    path.write_bytes(data)


def series_of(files: list[Path]) -> Series:
    (series,), _ = dicom.read(files, files[0].parent, Options())
    return series


def test_the_planted_file_does_kill_a_process(lossless_jpegs: list[Path]) -> None:
    claim_154_bits(lossless_jpegs[2])
    code = f"import pydicom; pydicom.dcmread({str(lossless_jpegs[2])!r}).pixel_array"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False)
    assert done.returncode < 0


@pytest.mark.parametrize("all_isolated", [False, True])
def test_a_decoder_that_kills_its_process_costs_one_plane(
    lossless_jpegs: list[Path], real_chest: NDArray[np.int16], all_isolated: bool
) -> None:
    claim_154_bits(lossless_jpegs[1])
    claim_154_bits(lossless_jpegs[3])
    planes = list(decode.planes(series_of(lossless_jpegs), range(5), isolate=all_isolated))
    refused = {at: plane for at, plane in enumerate(planes) if isinstance(plane, Rejected)}
    assert {at: plane.reason for at, plane in refused.items()} == {
        1: Reason.DECODER_CRASHED,
        3: Reason.DECODER_CRASHED,
    }
    assert refused[1].path == "0001.dcm"
    for at in (0, 2, 4):
        assert np.array_equal(planes[at], real_chest[12 + at])


def test_a_decoder_that_hangs_costs_one_plane_and_its_time(
    tmp_path: Path, write_series: Write, real_chest: NDArray[np.int16]
) -> None:
    files = write_series(tmp_path / "a", "P1", real_chest[12:17])
    series = series_of(files)
    list(decode.planes(series, [0], isolate=True))  # the child is warm
    files[1].unlink()
    os.mkfifo(files[1])  # nobody writes: opening it never returns
    started = time.monotonic()
    first, second, third = decode.planes(series, [0, 1, 2], isolate=True, timeout_s=5.0)
    assert time.monotonic() - started < 30
    assert isinstance(second, Rejected)
    assert second.reason is Reason.DECODER_TIMEOUT
    assert np.array_equal(first, real_chest[12])
    assert np.array_equal(third, real_chest[14])


def test_the_child_ends_with_its_parent(lossless_jpegs: list[Path]) -> None:
    code = (
        "import os, pickle, sys\n"
        "from pathlib import Path\n"
        "from ctslices import decode, isolate\n"
        "from ctslices.options import Options\n"
        "from ctslices.sources import dicom\n"
        f"files = [Path(p) for p in {[str(path) for path in lossless_jpegs]!r}]\n"
        "(series,), _ = dicom.read(files, files[0].parent, Options())\n"
        "list(decode.planes(series, [0]))\n"
        "print(isolate._child._process.pid, flush=True)\n"
        "os.kill(os.getpid(), 9)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60)
    child = int(done.stdout)
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline and Path(f"/proc/{child}").exists():
        if Path(f"/proc/{child}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
            break  # ended; whoever inherited it has not waited for it yet
        time.sleep(0.05)
    else:
        assert not Path(f"/proc/{child}").exists()


def test_uncompressed_planes_start_no_child(
    tmp_path: Path, write_series: Write, real_chest: NDArray[np.int16], monkeypatch: pytest.MonkeyPatch
) -> None:
    files = write_series(tmp_path / "a", "P1", real_chest[:5])
    monkeypatch.setattr(isolate, "_child", None)
    list(decode.planes(series_of(files), range(5)))
    assert isolate._child is None
