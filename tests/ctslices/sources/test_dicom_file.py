"""One file's bytes to elements, to a header, to a verdict."""

from __future__ import annotations

import os
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from pydicom.dataset import FileDataset

from ctslices.reject import Reason
from ctslices.sources import dicom_file, dicom_tags
from ctslices.sources.dicom_file import Parsed, Refusal, inflate, looks_like_dicom, parse
from ctslices.sources.dicom_header import Header, header_of
from ctslices.sources.dicom_judge import read_header
from ctslices.sources.dicom_pixels import stored_pixels

Write = Callable[..., list[Path]]


@pytest.fixture
def path(tmp_path: Path, write_series: Write, real_chest: NDArray[np.int16]) -> Path:
    return write_series(tmp_path / "a", "P1", real_chest[:1])[0]


@pytest.mark.parametrize(
    ("head", "is_dicom"),
    [
        (b"\0" * 128 + b"DICM", True),
        (b"\x08\0\x05\0CS\x0a\0ISO_IR 100", True),
        (b"\x08\0\x05\0\x0a\0\0\0ISO_IR 100", True),
        (b"\0\x08\0\x05CS\0\x0aISO_IR 100", True),
        (b"\x08\0\x05\0\xff\xff\xff\xff", False),
        (b"Dear colleague", False),
        (b"\x89PNG\r\n\x1a\n", False),
        (b"", False),
    ],
)
def test_first_bytes(head: bytes, is_dicom: bool) -> None:
    assert looks_like_dicom(head.ljust(132, b" ") if len(head) > 8 else head) is is_dicom


def test_the_pixels_lie_where_the_header_pass_says(path: Path, real_chest: NDArray[np.int16]) -> None:
    parsed = parse(path)
    assert isinstance(parsed, Parsed)
    assert parsed.pixels is not None
    data = path.read_bytes()[parsed.pixels.offset :][: parsed.pixels.length]
    assert data == real_chest[0].astype("<i2").tobytes()
    assert set(parsed.elements) <= set(dicom_tags.WANTED)
    header = header_of(str(path), parsed)
    assert (header.patient, header.modality, header.frames[0].slope) == ("P1", "CT", 1.0)
    assert stored_pixels(path, parsed, 1) == read_header(path).stored  # type: ignore[union-attr]
    assert isinstance(stored_pixels(path, parsed, 2), Refusal)


def test_a_header_longer_than_the_first_read(
    tmp_path: Path, write_series: Write, real_chest: NDArray[np.int16]
) -> None:
    def lengthen(ds: FileDataset) -> None:
        ds.add_new(0x00091001, "OB", b"x" * 3 * dicom_file.HEAD_BYTES)

    (long,) = write_series(tmp_path / "b", "P1", real_chest[:1], change=lengthen)
    header = read_header(long)
    assert isinstance(header, Header)
    assert header.stored is not None
    assert header.stored.offset > 3 * dicom_file.HEAD_BYTES


def test_what_is_no_plain_file_is_not_opened(tmp_path: Path) -> None:
    """Opening a pipe would wait for ever."""
    os.mkfifo(tmp_path / "pipe")
    for name in ("pipe", ".", "absent"):
        refusal = parse(tmp_path / name)
        assert isinstance(refusal, Refusal)
        assert refusal.reason in {Reason.NOT_AN_IMAGE, Reason.UNREADABLE}


def test_inflating_stops_at_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    packer = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    bomb = packer.compress(b"\0" * 100_000) + packer.flush()
    assert inflate(bomb) == b"\0" * 100_000
    assert inflate(bomb[:-3]) is None
    assert inflate(b"\xff\xff\xff") is None
    monkeypatch.setattr(dicom_file, "INFLATED_LIMIT_BYTES", 99_999)
    assert inflate(bomb) is None
