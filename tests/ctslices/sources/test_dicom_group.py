"""Steps between planes, and acquisitions among stacks."""

from __future__ import annotations

from dataclasses import replace

import pytest

from ctslices.series import StoredPixels
from ctslices.sources.dicom_group import Stack, stacks_of, steps_of, without_duplicates
from ctslices.sources.dicom_header import Frame, Header
from ctslices.sources.dicom_twins import families


@pytest.mark.parametrize(
    ("positions", "nominal", "gaps", "irregular"),
    [
        ([0.0], None, (), False),
        ([0.0, 5.0, 10.0], 5.0, (), False),
        ([0.0, 5.01, 9.99, 15.0], 5.01, (), False),
        ([0.0, 5.0, 10.0, 20.0, 25.0], 5.0, ((10.0, 10.0),), False),
        ([0.0, 1.0, 2.0, 12.0, 13.0], 1.0, ((2.0, 10.0),), False),
        ([0.0, 5.0, 10.0, 17.0, 22.0], 5.0, (), True),
        ([0.0, 1.14, 4.0, 8.5, 15.88], None, None, True),  # a GE head series of real life
    ],
)
def test_steps(
    positions: list[float], nominal: float | None, gaps: tuple[tuple[float, float], ...] | None, irregular: bool
) -> None:
    steps = steps_of(positions)
    assert steps.irregular is irregular
    if gaps is not None:
        assert steps.nominal_mm == pytest.approx(nominal)
        assert steps.gaps == gaps


STORED = StoredPixels("1.2.840.10008.1.2.1", (64, 64), 16, 16, True, 0, False, False, None, None, 9000)


def header(path: str, z: float, **values: object) -> Header:
    frame = Frame(0, (0.0, 0.0, z), (1.0, 0, 0, 0, 1, 0), (1.0, 1.0), 1.0, 0.0, "HU", ("ORIGINAL",), False, ("1",))
    fresh = Header(
        path,
        path,
        "1.2",
        "1.3",
        "1.4",
        "P",
        "CT",
        "",
        "",
        "B40f",
        None,
        None,
        "1",
        "",
        "",
        0,
        False,
        False,
        (frame,),
        STORED,
    )
    return replace(fresh, **values)  # type: ignore[arg-type]


def stack(series: str, positions: tuple[float, ...] = (0, 5, 10), **values: object) -> Stack:
    headers = [header(f"{series}/{z}", z, series=series, **values) for z in positions]
    (one,), refused = stacks_of(headers)
    assert refused == []
    return one


def test_the_first_path_of_an_instance_is_kept() -> None:
    kept, refused = without_duplicates([header("b", 0, sop_instance="1"), header("a", 0, sop_instance="1")])
    assert [one.path for one in kept] == ["a"]
    assert [one.path for one, _ in refused] == ["b"]


@pytest.mark.parametrize(
    ("other", "together"),
    [
        ({"kernel": "B70f"}, True),
        ({"kernel": "B70f", "study": "9"}, False),
        ({"kernel": "B70f", "patient": "Q"}, False),
        ({"kernel": "B70f", "frame_of_reference": "9"}, False),
        ({"kernel": "B70f", "acquisition_number": "2"}, False),
        ({"kernel": "B70f", "positions": (0, 5, 11)}, False),
        ({"acquisition_time": "1200"}, False),  # the same kernel at another time: a second scan
    ],
)
def test_what_makes_one_acquisition(other: dict[str, object], together: bool) -> None:
    stacks = [stack("s1", acquisition_time="1100"), stack("s2", **{"acquisition_time": "1100", **other})]  # type: ignore[arg-type]
    assert len(families(stacks, None)) == (1 if together else 2)


def test_thick_and_thin_of_one_exposure_are_one_acquisition() -> None:
    thin = stack("s1", tuple(range(0, 20)), irradiation_event="7")
    thick = stack("s2", (1, 6, 11, 16), irradiation_event="7", kernel="B30f")
    (family,) = families([thin, thick], None)
    assert family.taken == thick, "the smoother kernel"
    assert families([thin, thick], "B40f")[0].taken == thin
