"""ctslices.geometry: orientation, and the field's centre on the body without its table."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from numpy.typing import NDArray

from ctslices.geometry import (
    Coarse,
    Field,
    body_box,
    body_mask,
    centre_of,
    opened,
    orientation_of,
    plane_centre,
)
from ctslices.series import PlaneGeometry, PlaneRef


def geometry(
    row: tuple[float, float, float] = (1, 0, 0),
    column: tuple[float, float, float] = (0, 1, 0),
    spacing: tuple[float, float] = (1.0, 1.0),
    shape: tuple[int, int] = (400, 400),
) -> PlaneGeometry:
    return PlaneGeometry(row, column, spacing, shape)


def test_every_way_to_lie_becomes_lps() -> None:
    for x, y in itertools.product((1.0, -1.0), repeat=2):
        for row, column in (((x, 0, 0), (0, y, 0)), ((0, y, 0), (x, 0, 0))):
            turn = orientation_of(geometry(row, column))
            assert np.allclose(turn.right, [1, 0, 0])
            assert np.allclose(turn.down, [0, 1, 0])
            assert np.allclose(turn.up, [0, 0, 1])
            assert turn.transposed == (row[0] == 0)


def test_a_tilted_plane_keeps_its_own_axes() -> None:
    tilt = np.radians(20)
    turn = orientation_of(geometry((1, 0, 0), (0, np.cos(tilt), -np.sin(tilt))))
    assert np.allclose(turn.up, [0, np.sin(tilt), np.cos(tilt)])


def body_on_table(centre: tuple[int, int], gap: int, thick: int = 6) -> NDArray[np.float32]:
    """A chest of 300 by 200 mm at `centre` (row, column), lungs in it; `gap` mm below it a table of two boards."""
    rows, columns = np.mgrid[:400, :400]
    plane = np.full((400, 400), -1000, np.float32)
    y, x = rows - centre[0], columns - centre[1]
    plane[(x / 150) ** 2 + (y / 100) ** 2 < 1] = 30
    for side in (-65, 65):
        plane[((x - side) / 45) ** 2 + (y / 65) ** 2 < 1] = -860
    top = centre[0] + 100 + gap
    for height in (top, top + 40):
        plane[height : height + thick, 20:380] = 150
    return plane


@pytest.mark.parametrize("thick", [6, 18])
@pytest.mark.parametrize("gap", [12, 3, 0, -4])
@pytest.mark.parametrize("centre", [(200, 200), (170, 230), (190, 90)])
def test_the_table_does_not_move_the_centre(gap: int, centre: tuple[int, int], thick: int) -> None:
    frame, plane = geometry(), PlaneRef("", 0, 0.0, (-50.0, 30.0, 7.0))
    turn, coarse = orientation_of(frame), Coarse(frame)
    box = body_box(coarse.copy(body_on_table(centre, gap, thick)), coarse.pixel_mm, frame, turn, plane)
    assert box is not None
    left = max(0, centre[1] - 150)
    assert box.centre[0] == pytest.approx(-50 + (left + centre[1] + 150) / 2, abs=4.5)
    assert box.centre[1] == pytest.approx(30 + centre[0], abs=5 + thick / 3)
    assert box.width_mm == pytest.approx(centre[1] + 150 - left, abs=9)


def test_a_real_chest_lies_in_its_box(real_chest: NDArray[np.int16]) -> None:
    frame = geometry(spacing=(3.046, 3.046), shape=(128, 128))
    coarse = Coarse(frame)
    for plane in real_chest[14:24:3]:
        mask = body_mask(coarse.copy(plane.astype(np.float32)), coarse.pixel_mm)
        air_in_body = (coarse.copy(plane.astype(np.float32)) < -600) & mask
        assert 0.15 < mask.mean() < 0.75
        assert air_in_body.sum() > 0.1 * mask.sum()


def test_no_body_no_box_and_the_planes_middle_is_taken() -> None:
    frame, plane = geometry(spacing=(2.0, 1.0), shape=(100, 50)), PlaneRef("", 0, 0.0, (10.0, 20.0, 0.0))
    turn, coarse = orientation_of(frame), Coarse(frame)
    assert body_box(np.full((25, 12), -1000, np.float32), coarse.pixel_mm, frame, turn, plane) is None
    assert plane_centre(frame, turn, plane) == pytest.approx((10 + 24.5, 20 + 99))
    assert centre_of([], (1.0, 2.0)) == (1.0, 2.0)


def test_corners_go_clockwise_from_the_patients_right_front() -> None:
    turn = orientation_of(geometry((0, 1, 0), (-1, 0, 0)))
    centre, corners = Field(turn, (5.0, -3.0), 100.0).on_plane(PlaneRef("", 0, 0.0, (40.0, 8.0, -70.0)))
    assert centre == pytest.approx((5, -3, -70))
    assert np.allclose(corners, [(-45, -53, -70), (55, -53, -70), (55, 47, -70), (-45, 47, -70)])


def test_opening_takes_what_is_thin_and_keeps_what_the_edge_cuts() -> None:
    mask = np.zeros((20, 20), bool)
    mask[5:12, 5:12] = mask[15, 2:18] = mask[0:2, 8:14] = True
    kept = opened(mask)
    assert kept[5:12, 5:12].all()
    assert kept[0:2, 8:14].all()
    assert kept.sum() == 49 + 12


def test_coarse_pixels_are_about_four_mm_or_the_sources() -> None:
    fine = Coarse(geometry(spacing=(0.7, 0.7), shape=(512, 512)))
    assert fine.copy(np.zeros((512, 512), np.float32)).shape == (90, 90)
    assert fine.pixel_mm == pytest.approx((3.98, 3.98), abs=0.01)
    assert Coarse(geometry(spacing=(9.0, 6.0), shape=(40, 50))).pixel_mm == pytest.approx((9, 6))
