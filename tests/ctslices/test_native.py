"""Uncompressed pixels read at a remembered offset."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from ctslices.native import FileChangedError, native_values, own_bits
from ctslices.series import StoredPixels


def layout(file_bytes: int, bits: int = 16, signed: bool = False, big_endian: bool = False) -> StoredPixels:
    return StoredPixels("1.2.840.10008.1.2.1", (2, 3), bits, bits, signed, 5, big_endian, False, None, None, file_bytes)


@pytest.mark.parametrize("big_endian", [False, True])
@pytest.mark.parametrize(("bits", "signed"), [(8, False), (16, False), (16, True), (32, True)])
def test_each_frame_of_every_layout(tmp_path: Path, bits: int, signed: bool, big_endian: bool) -> None:
    frames = np.arange(12).reshape(2, 2, 3) - (6 if signed else 0)
    order = ">" if big_endian else "<"
    data = b"12345" + frames.astype(f"{order}{'i' if signed else 'u'}{bits // 8}").tobytes() + b"rest"
    (tmp_path / "file").write_bytes(data)
    for frame in (0, 1):
        values = native_values(str(tmp_path / "file"), frame, layout(len(data), bits, signed, big_endian))
        assert values.tolist() == frames[frame].tolist()
        assert values.dtype.isnative


def test_another_size_is_another_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"\0" * 17)
    with pytest.raises(FileChangedError):
        native_values(str(tmp_path / "file"), 0, layout(18))
    with pytest.raises(FileChangedError):
        native_values(str(tmp_path / "file"), 1, layout(17))


def test_bits_above_the_pixels_go_and_the_sign_stays() -> None:
    assert own_bits(np.array([0xF00A, 0x0FFF], np.uint16), 12).tolist() == [0x00A, 0xFFF]
    assert own_bits(np.array([0x0FFF, 0x0800, 0x7005], np.int16), 12).tolist() == [-1, -2048, 5]
