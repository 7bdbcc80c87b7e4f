"""What a decoder process answers for one frame."""

from __future__ import annotations

import struct
import tracemalloc
from dataclasses import replace
from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom.data import get_testdata_file

from ctslices.codecs import UndecodableError, _check_codestream, decode_frame
from ctslices.decoder_process import stored_from
from ctslices.options import Options
from ctslices.reject import Reason
from ctslices.series import PlaneRef
from ctslices.sources import dicom


@pytest.fixture
def lossy() -> PlaneRef:
    path = Path(str(get_testdata_file("693_J2KI.dcm", download=False)))
    (series,), _ = dicom.read([path], path.parent, Options(min_slices=1))
    return series.planes[0]


def test_a_frame_is_what_pydicom_makes_of_it(lossy: PlaneRef) -> None:
    assert lossy.stored is not None
    values = decode_frame(lossy.path, 0, lossy.stored)
    assert np.array_equal(values, pydicom.dcmread(lossy.path).pixel_array)


def test_other_sizes_and_files_are_refused(lossy: PlaneRef) -> None:
    assert lossy.stored is not None
    for wrong, reason in (
        (replace(lossy.stored, shape=(256, 1024)), Reason.UNDECODABLE),
        (replace(lossy.stored, file_bytes=1), Reason.TRUNCATED),
        (replace(lossy.stored, transfer_syntax="1.2.840.10008.1.2.4.80"), Reason.UNDECODABLE),
    ):
        with pytest.raises(UndecodableError) as caught:
            decode_frame(lossy.path, 0, wrong)
        assert caught.value.reason is reason


def test_a_frame_that_is_not_there(lossy: PlaneRef) -> None:
    assert lossy.stored is not None
    with pytest.raises(UndecodableError):
        decode_frame(lossy.path, 7, lossy.stored)


def test_the_layout_survives_its_json_form(lossy: PlaneRef) -> None:
    import json
    from dataclasses import asdict

    for padding in (None, (-2000, -1990)):
        stored = replace(lossy.stored, padding=padding)  # type: ignore[type-var]
        assert stored_from(json.loads(json.dumps(asdict(stored)))) == stored


def _patched(plane: PlaneRef, folder: Path, at: int, content: bytes) -> PlaneRef:
    """The plane's file with other bytes in its codestream, `at` bytes from the codestream's start."""
    assert plane.stored is not None
    data = bytearray(Path(plane.path).read_bytes())
    start = data.index(b"\xff\x4f\xff\x51") + at
    data[start : start + len(content)] = content
    (folder / "patched.dcm").write_bytes(data)
    return replace(plane, path=str(folder / "patched.dcm"))


def test_a_stream_of_a_giant_picture_is_refused_before_it_takes_memory(lossy: PlaneRef, tmp_path: Path) -> None:
    giant = _patched(lossy, tmp_path, 8, struct.pack(">II", 60_000, 60_000))
    assert giant.stored is not None
    tracemalloc.start()
    with pytest.raises(UndecodableError, match="not of the size"):
        decode_frame(giant.path, 0, giant.stored)
    assert tracemalloc.get_traced_memory()[1] < 1 << 24
    tracemalloc.stop()


@pytest.mark.parametrize(
    ("stream", "header_signed", "taken"),
    [(0x0F, False, True), (0x0F, True, True), (0x8F, False, False), (0x0B, True, False)],
)
def test_a_stream_and_a_header_that_differ_in_sign(
    lossy: PlaneRef, tmp_path: Path, stream: int, header_signed: bool, taken: bool
) -> None:
    """The byte Ssiz: 0x0f is 16 bits without a sign, 0x8f with one, 0x0b 12 bits without."""
    assert lossy.stored is not None
    patched = _patched(lossy, tmp_path, 42, bytes([stream]))
    stored = replace(lossy.stored, signed=header_signed, bits_stored=16)
    if taken:
        _check_codestream(Path(patched.path).read_bytes()[-_tail(patched) :], stored)
    else:
        with pytest.raises(UndecodableError, match="sign"):
            decode_frame(patched.path, 0, stored)


def _tail(plane: PlaneRef) -> int:
    data = Path(plane.path).read_bytes()
    return len(data) - data.index(b"\xff\x4f\xff\x51")
