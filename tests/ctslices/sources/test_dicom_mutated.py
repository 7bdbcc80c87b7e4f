"""Mutated DICOM bytes: no crash, no hang, and what is taken is what pydicom itself reads out of the same bytes."""

from __future__ import annotations

import os
import time
import warnings
from collections.abc import Callable
from functools import partial
from io import BytesIO
from pathlib import Path

import numpy as np
import pydicom
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from pydicom.data import get_testdata_file
from pydicom.dataset import FileDataset
from pydicom.multival import MultiValue
from pydicom.uid import DeflatedExplicitVRLittleEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian

from ctslices import decode
from ctslices.options import Options
from ctslices.reject import Rejected
from ctslices.series import PlaneRef, Series
from ctslices.sources import dicom

Write = Callable[..., list[Path]]
PATIENCE_S = 30.0
QUICK, LONG = 400, 6000

VRS = (b"OB", b"OW", b"SQ", b"UN", b"UT", b"DS", b"US", b"SS", b"LO", b"FD", b"\0\0", b"ZZ")
NUMBERS = (b"1", b"-1024", b"0", b"1e9", b"nan", b"inf", b"1_0", b"", b"0x10", b"1\\1", b"-", b"9" * 30)

# One mutation: (what, where in 0..1 of the header or the file, which, amount).
mutation = st.tuples(
    st.sampled_from(
        ["byte", "bit", "cut", "drop", "insert", "length", "vr", "number", "repeat", "overwrite", "tag", "pixel byte"]
    ),
    st.floats(0, 1, exclude_max=True),
    st.integers(0, 255),
    st.integers(1, 64),
)


def mutate(data: bytes, steps: list[tuple[str, float, int, int]]) -> bytes:
    mutated = bytearray(data)
    for what, where, which, amount in steps:
        if len(mutated) > 200:
            _mutate(mutated, elements_of(bytes(mutated)), what, where, which, amount)
    return bytes(mutated)


def elements_of(data: bytes) -> list[tuple[int, int]]:
    """(start of the element, start of its value) of the elements that pydicom still finds, in the file's order."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            dataset = pydicom.dcmread(BytesIO(data), force=True, stop_before_pixels=True)
            tells = sorted(element.value_tell for element in dataset._dict.values() if hasattr(element, "value_tell"))
        except Exception:  # noqa: BLE001 - damaged beyond pydicom: positions are then drawn blindly
            tells = []
    return [(max(tell - 8, 0), tell) for tell in tells if tell < len(data)] or [(132, 140)]


def _mutate(data: bytearray, elements: list[tuple[int, int]], what: str, where: float, which: int, amount: int) -> None:
    start, value = elements[int(where * len(elements))]
    header = max(elements[-1][1] + 16, 200)
    at = int(where * min(header, len(data)))
    pixel = min(header + int(where * max(len(data) - header, 0)), len(data) - 1)
    text = NUMBERS[which % len(NUMBERS)]
    bit = bytes([data[at] ^ 1 << which % 8])
    changes: dict[str, tuple[int, int, bytes]] = {
        "byte": (at, at + 1, bytes([which])),
        "bit": (at, at + 1, bit),
        "cut": (int(where * len(data)), len(data), b""),
        "drop": (at, at + amount, b""),
        "insert": (at, at, bytes([which]) * amount),
        "length": (value - 2, value, bytes([which, amount if amount > 32 else 0])),
        "vr": (start + 4, start + 6, VRS[which % len(VRS)]),
        "number": (value, value + len(text), text),
        "repeat": (start, start, bytes(data[start : start + amount])),
        "overwrite": (at, at + amount, bytes(data[start : start + amount])),
        "tag": (start, start + 4, bytes(data[at : at + 4])),
        "pixel byte": (pixel, pixel + 1, bytes([which])),
    }
    first, last, fresh = changes[what]
    data[first:last] = fresh


GROUPS = (
    "PixelMeasuresSequence",
    "PlaneOrientationSequence",
    "PlanePositionSequence",
    "PixelValueTransformationSequence",
)


def plain(element_of: FileDataset, plane: PlaneRef) -> FileDataset:
    """Where pydicom's data set keeps the plane's own geometry and rescale: at the top, or in functional groups."""
    if "PerFrameFunctionalGroupsSequence" not in element_of:
        return element_of
    merged = pydicom.Dataset()
    for groups in (
        element_of.SharedFunctionalGroupsSequence[0],
        element_of.PerFrameFunctionalGroupsSequence[plane.frame],
    ):
        for keyword in GROUPS:
            if groups.get(keyword):
                merged.update(groups[keyword].value[0])
    return merged


def check(data: bytes, folder: Path) -> bool:
    """Read the bytes both ways; True where they were taken."""
    path = folder / "mutated.dcm"
    path.write_bytes(data)
    started = time.monotonic()
    series, rejected = dicom.read([path], folder, Options(min_slices=1))
    taken = False
    for one in series:
        for plane, hu in zip(one.planes, decode.planes(one, range(len(one.planes))), strict=True):
            if not isinstance(hu, Rejected):
                taken = True
                agrees(data, one, plane, hu)
    assert time.monotonic() - started < PATIENCE_S
    assert taken or series or len(rejected) == 1
    return taken


def agrees(data: bytes, series: Series, plane: PlaneRef, hu: NDArray[np.float32]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dataset = pydicom.dcmread(BytesIO(data), force=True)
        if "TransferSyntaxUID" not in dataset.file_meta:
            implicit, little = dataset.original_encoding
            known = ImplicitVRLittleEndian if implicit else ExplicitVRLittleEndian
            dataset.file_meta.TransferSyntaxUID = known if little else pydicom.uid.ExplicitVRBigEndian
        stored = dataset.pixel_array
        own = plain(dataset, plane)
        assert dataset.Modality == "CT"
        assert one_text(dataset.PatientID) == one_text(series.raw_patient)
        assert one_text(dataset.SeriesInstanceUID) == one_text(series.raw_series)
        assert [float(x) for x in own.ImagePositionPatient] == list(plane.origin_mm)
        assert series.geometry is not None
        orientation = [*series.geometry.row_direction, *series.geometry.column_direction]
        assert np.allclose([float(x) for x in own.ImageOrientationPatient], orientation, atol=2e-3)
        assert [float(x) for x in own.PixelSpacing] == list(series.geometry.spacing_mm)
        stored = stored[plane.frame] if stored.ndim == 3 else stored
        expected = stored.astype(np.float64) * float(own.RescaleSlope) + float(own.RescaleIntercept)
        assert str(own.get("RescaleType", "HU") or "HU").upper() == "HU"
        expected = np.maximum(expected, -1024)
        expected[padded(dataset, stored)] = -1024
    assert hu.shape == expected.shape
    assert np.allclose(hu, expected, rtol=1e-6, atol=0.01)


def one_text(value: object) -> str:
    """Identifiers without padding, which pydicom takes off each of several values."""
    joined = "\\".join(value) if isinstance(value, MultiValue) else str(value)
    return "".join(joined.replace("\0", " ").split())


def padded(dataset: FileDataset, stored: NDArray[np.integer]) -> NDArray[np.bool_]:
    if dataset.get("PixelPaddingValue") is None:
        return np.zeros(stored.shape, bool)
    first = int(dataset.PixelPaddingValue)
    last = first if dataset.get("PixelPaddingRangeLimit") is None else int(dataset.PixelPaddingRangeLimit)
    ends = [end - 65536 if dataset.PixelRepresentation and end > 32767 else end for end in (first, last)]
    inside: NDArray[np.bool_] = (stored >= min(ends)) & (stored <= max(ends))
    return inside


KINDS = ("classic", "implicit", "deflated", "enhanced", "GE with padding", "JPEG 2000", "tilted")


@pytest.fixture(scope="module")
def whole(
    write_series: Write, real_chest: NDArray[np.int16], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, bytes]:
    """One whole file of each kind."""
    folder = tmp_path_factory.mktemp("whole")
    small = np.ascontiguousarray(real_chest[12:13, 32:96, 32:96])
    path = write_series(folder / "a", "P1", small)[0]
    files = {"classic": path.read_bytes()}
    for name, syntax in (("implicit", ImplicitVRLittleEndian), ("deflated", DeflatedExplicitVRLittleEndian)):
        ds = pydicom.dcmread(BytesIO(files["classic"]))
        ds.file_meta.TransferSyntaxUID = syntax
        ds.save_as(path, enforce_file_format=True, implicit_vr=name == "implicit", little_endian=True)
        files[name] = path.read_bytes()
    for name, test_file in (
        ("GE with padding", "CT_small.dcm"),
        ("JPEG 2000", "693_J2KI.dcm"),
        ("tilted", "J2K_pixelrep_mismatch.dcm"),
    ):
        files[name] = Path(str(get_testdata_file(test_file, download=False))).read_bytes()
    files["enhanced"] = _enhanced(files["classic"], path)
    return files


def _enhanced(classic: bytes, path: Path) -> bytes:
    ds = pydicom.dcmread(BytesIO(classic))
    shared, frame = pydicom.Dataset(), pydicom.Dataset()
    groups = {
        "PixelMeasuresSequence": (shared, ["PixelSpacing", "SliceThickness"]),
        "PlaneOrientationSequence": (shared, ["ImageOrientationPatient"]),
        "PlanePositionSequence": (frame, ["ImagePositionPatient"]),
        "PixelValueTransformationSequence": (frame, ["RescaleSlope", "RescaleIntercept", "RescaleType"]),
    }
    for sequence, (target, keywords) in groups.items():
        item = pydicom.Dataset()
        for keyword in keywords:
            item[keyword] = ds[keyword]
            del ds[keyword]
        setattr(target, sequence, [item])
    ds.NumberOfFrames = 1
    ds.SharedFunctionalGroupsSequence, ds.PerFrameFunctionalGroupsSequence = [shared], [frame]
    ds.save_as(path, enforce_file_format=True)
    return path.read_bytes()


@pytest.mark.parametrize("kind", KINDS)
def test_whole_files_are_taken(whole: dict[str, bytes], tmp_path: Path, kind: str) -> None:
    assert check(whole[kind], tmp_path)


def run(examples: int, kinds: tuple[str, ...], whole: dict[str, bytes], folder: Path, fixed: bool) -> int:
    taken = [0]

    @settings(
        max_examples=examples,
        deadline=None,
        derandomize=fixed,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(kind=st.sampled_from(kinds), steps=st.lists(mutation, min_size=1, max_size=4))
    def feed(kind: str, steps: list[tuple[str, float, int, int]]) -> None:
        taken[0] += check(mutate(whole[kind], steps), folder)

    feed()
    return taken[0]


UNCOMPRESSED = KINDS[:5]


def test_some_hundred_mutated_files(whole: dict[str, bytes], tmp_path: Path) -> None:
    assert run(QUICK, UNCOMPRESSED, whole, tmp_path, fixed=True) > QUICK // 20, "the mutations destroy everything"


def test_some_mutated_compressed_files(whole: dict[str, bytes], tmp_path: Path) -> None:
    run(QUICK // 8, KINDS[5:], whole, tmp_path, fixed=True)


@pytest.mark.slow
def test_thousands_of_mutated_files(whole: dict[str, bytes], tmp_path: Path) -> None:
    """Another set each time; hypothesis prints the failing mutations."""
    run(int(os.environ.get("FEDSCAN_MUTATIONS", LONG)), KINDS, whole, tmp_path, fixed=False)


@pytest.mark.parametrize("kind", KINDS)
def test_every_truncation_is_refused_or_harmless(whole: dict[str, bytes], tmp_path: Path, kind: str) -> None:
    data = whole[kind]
    step = max(len(data) // 60, 1)
    for size in [*range(0, len(data), step), *range(len(data) - 12, len(data))]:
        taken = check(data[:size], tmp_path)
        if taken:
            assert len(data) - size <= 8 or partial(bytes.endswith, data)(b"\0" * 4)
