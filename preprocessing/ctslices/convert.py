"""One series to slices of the store, without a trace of where it came from: pure, and run in worker processes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from ctslices import burned_in, decode
from ctslices.geometry import (
    Coarse,
    Cutter,
    Field,
    Orientation,
    Point,
    body_box,
    centre_of,
    orientation_of,
    plane_centre,
)
from ctslices.hounsfield import RescaledCheck
from ctslices.options import Options
from ctslices.region import LUNG_MM2, Region, classify, in_context, lung_mm2
from ctslices.reject import Reason, Rejected
from ctslices.resample import area_average, overlap, to_int16
from ctslices.series import PlaneRef, Series
from ctslices.sources.pictures import label_of

_SURVEYED = 12
"""Planes of a series that decide on its centre and on its values."""
_SURVEYED_BYTES = 64 * 2**20
_NOTED_TURN_DEGREES = 5.0
_HIGHEST_AIR_HU = -200.0
"""A CT plane has air round the body or in it; where all values lie above, nothing is Hounsfield units."""


@dataclass(frozen=True, slots=True)
class Converted:
    """What one series became. k slices, ascending along the normal; k may be 0."""

    hu: NDArray[np.int16]
    """int16 [k, size, size]: HU, or grey values 0..255 where `values` is grey."""
    values: Literal["hu", "grey"]
    position_mm: NDArray[np.float32]
    """float32 [k], along the series' normal; pictures: their running number."""
    planes: tuple[int, ...]
    """[k], index of each slice into `Series.planes`."""
    dropped_by_region: dict[str, int]
    """Slices not kept, by what they show: head, abdomen, limb, other."""
    centre_mm: Point | None = None
    """Centre of the field on the first kept slice, source LPS millimetres; None for pictures and where k is 0."""
    corners_mm: tuple[Point, ...] = ()
    """Outer corners of that field: of row 0 column 0, then clockwise on the image."""
    notes: tuple[str, ...] = ()
    """For the manifest: free of identifiers, dates, UIDs and paths."""
    rejected: tuple[Rejected, ...] = ()
    """Files refused at decoding, suspected burned-in text, or the whole series (not HU)."""
    quarantined: tuple[int, ...] = ()
    """Indices into `Series.planes` of the planes that the screen for burned-in text suspects; `picture` shows them."""
    labels: tuple[str, ...] = ()
    """[k], of pictures: the name of each one's class folder; () for everything else."""


def convert(series: Series, options: Options, isolate: bool = False) -> Converted:
    """The slices of `series` that `options` asks for, plane by plane: memory does not grow with the series.

    `isolate` decodes in a child process, so that a native decoder that dies costs one file and not this process.
    Files that cannot be decoded are in `rejected`.
    """
    if series.geometry is None:
        return _pictures(series, options)
    turn = orientation_of(series.geometry)
    heights = [float(np.asarray(plane.origin_mm) @ turn.up) for plane in series.planes]
    chosen = nearest_to_steps(heights, options.every_mm)
    survey = _survey(series, chosen, turn, options, isolate)
    if survey.refusal is not None:
        return _nothing(survey.refusal)
    square = Field(turn, survey.centre, options.field_mm)
    taken = _Taken(series, options, Cutter(series.geometry, square, options.size))
    for index, pixels in _pixels(series, chosen, survey.pixels, isolate):
        taken.add(index, pixels, survey.coarse)
    kept = taken.kept
    centre, corners = square.on_plane(series.planes[kept[0]]) if kept else (None, ())
    return Converted(
        hu=taken.stack(),
        values="hu",
        position_mm=np.asarray([heights[k] for k in kept], np.float32),
        planes=tuple(kept),
        dropped_by_region=taken.dropped(),
        centre_mm=centre,
        corners_mm=corners,
        notes=survey.notes,
        rejected=tuple(dict.fromkeys(taken.rejected)),
        quarantined=tuple(taken.quarantined),
    )


def nearest_to_steps(positions_mm: Sequence[float], every_mm: float | None) -> list[int]:
    """Indices in the order of ascending position: of each step of `every_mm` from the lowest on, the nearest one.

    No index comes twice; None takes every one. Of two that are equally near the lower is taken.
    """
    order = np.argsort(positions_mm, kind="stable")
    if every_mm is None or len(order) < 2:
        return [int(k) for k in order]
    sorted_mm = np.asarray(positions_mm)[order]
    count = int(np.floor((sorted_mm[-1] - sorted_mm[0]) / every_mm + 0.5)) + 1
    steps = sorted_mm[0] + every_mm * np.arange(count)
    right = np.clip(np.searchsorted(sorted_mm, steps), 1, len(order) - 1)
    # a micrometre keeps rounding from deciding between two that are equally near
    nearest = np.where(steps - sorted_mm[right - 1] <= sorted_mm[right] - steps + 1e-3, right - 1, right)
    # where slices are missing a step has none: the gap's edges belong to steps of their own
    near = np.abs(sorted_mm[nearest] - steps) <= every_mm / 2 + 1e-3
    return [int(order[k]) for k in np.unique(nearest[near])]


def picture(series: Series, plane: int) -> NDArray[np.uint8]:
    """uint8 [rows, columns], HU -1000..1000 as 0..255: one source plane for a person to look at, as acquired.

    ValueError when it cannot be decoded.
    """
    pixels = next(iter(decode.planes(series, [plane])))
    if isinstance(pixels, Rejected):
        raise ValueError("the plane cannot be decoded")
    grey = pixels if series.geometry is None else (pixels + 1000) * (255 / 2000)
    shown: NDArray[np.uint8] = np.rint(np.clip(grey, 0, 255)).astype(np.uint8)
    return shown


@dataclass(slots=True)
class _Survey:
    """What a few planes of a series say of all of it."""

    centre: tuple[float, float]
    notes: tuple[str, ...] = ()
    refusal: Rejected | None = None
    pixels: dict[int, NDArray[np.float32] | Rejected] = field(default_factory=dict)
    """Planes that are decoded already, by index."""
    coarse: Coarse | None = None


def _survey(series: Series, chosen: Sequence[int], turn: Orientation, options: Options, isolate: bool) -> _Survey:
    geometry = series.geometry
    assert geometry is not None
    few = _evenly(chosen, max(3, min(_SURVEYED, _SURVEYED_BYTES // (4 * geometry.shape[0] * geometry.shape[1]))))
    pixels = dict(zip(few, decode.planes(series, few, isolate), strict=True))
    good = {index: plane for index, plane in pixels.items() if not isinstance(plane, Rejected)}
    coarse = Coarse(geometry)
    boxes = []
    for index, plane in good.items():
        copy = coarse.copy(plane)
        wanted = options.region == "any" or lung_mm2(copy, coarse.pixel_mm) >= LUNG_MM2
        box = body_box(copy, coarse.pixel_mm, geometry, turn, series.planes[index])
        if box is not None:
            boxes.append((wanted, box))
    # a long scan's legs and head must not pull the field off the chest
    framed = [box for wanted, box in boxes if wanted] or [box for _, box in boxes]
    centre = centre_of(framed, plane_centre(geometry, turn, series.planes[chosen[0]]))
    notes = []
    if framed and (width := float(np.median([box.width_mm for box in framed]))) > options.field_mm:
        notes.append(f"the body is wider than the field: {width:.0f} mm")
    if (turned := float(np.degrees(np.arctan2(abs(turn.right[1]), abs(turn.right[0]))))) > _NOTED_TURN_DEGREES:
        notes.append(f"the planes are turned by {turned:.0f} degrees about their normal; they stay so")
    return _Survey(
        centre,
        tuple(notes),
        not_hu(series, list(good.values()), [series.planes[index] for index in good]),
        pixels,
        coarse,
    )


def not_hu(series: Series, planes: Sequence[NDArray[np.float32]], refs: Sequence[PlaneRef] = ()) -> Rejected | None:
    """Whether a sample of a series' planes (float32 [rows, columns]) shows that its pixels are no Hounsfield units."""
    ranges = [(float(plane.min()), float(plane.max())) for plane in planes]
    path = series.relative_paths[0]
    if ranges and min(low for low, _ in ranges) > _HIGHEST_AIR_HU:
        return Rejected(path, Reason.NOT_HU, "no air in any plane: the values are not Hounsfield units")
    check = RescaledCheck()
    for at, plane in enumerate(planes):
        check.add(plane, *((refs[at].slope, refs[at].intercept) if refs else ()))
    if check.stretched:
        return Rejected(path, Reason.NOT_HU, "each plane was stretched to the same maximum")
    return None


class _Taken:
    """The slices kept so far, and what was not kept."""

    def __init__(self, series: Series, options: Options, cutter: Cutter) -> None:
        self._series, self._options, self._cutter = series, options, cutter
        self._slices: list[NDArray[np.int16]] = []
        self._regions: list[Region] = []
        self.kept: list[int] = []
        self.rejected: list[Rejected] = []
        self.quarantined: list[int] = []

    def add(self, index: int, pixels: NDArray[np.float32] | Rejected, coarse: Coarse | None) -> None:
        """Judge one plane, float32 [rows, columns] HU, and keep its slice or note why not."""
        if isinstance(pixels, Rejected):
            self.rejected.append(pixels)
            return
        if self._options.region == "chest" and coarse is not None:
            self._regions.append(classify(coarse.copy(pixels), coarse.pixel_mm))
            if self._regions[-1] is not Region.CHEST:
                return
        plane = self._series.planes[index]
        if self._screened(plane) and burned_in.suspected(pixels):
            self.quarantined.append(index)
            return
        self._slices.append(to_int16(self._cutter.cut(pixels, plane)))
        self.kept.append(index)

    def _screened(self, plane: PlaneRef) -> bool:
        released = (plane.relative_path, plane.frame) in self._options.released
        return not self._options.allow_burned_in and not released

    def stack(self) -> NDArray[np.int16]:
        """int16 [k, size, size]."""
        size = self._options.size
        return np.stack(self._slices) if self._slices else np.empty((0, size, size), np.int16)

    def dropped(self) -> dict[str, int]:
        """Slices not kept, by region."""
        counts = Counter(str(region) for region in in_context(self._regions) if region is not Region.CHEST)
        return dict(sorted(counts.items()))


def _pixels(
    series: Series, chosen: Sequence[int], known: dict[int, NDArray[np.float32] | Rejected], isolate: bool
) -> Iterator[tuple[int, NDArray[np.float32] | Rejected]]:
    """The chosen planes in order; those known already are let go of as they are given."""
    others = decode.planes(series, [index for index in chosen if index not in known], isolate)
    for index in chosen:
        yield index, known.pop(index) if index in known else next(others)


def _evenly(indices: Sequence[int], count: int) -> list[int]:
    """At most `count` of them, evenly spread."""
    places = np.unique(np.linspace(0, len(indices) - 1, min(count, len(indices))).round().astype(int))
    return [indices[place] for place in places]


def _nothing(refusal: Rejected) -> Converted:
    nothing: NDArray[np.int16] = np.empty((0, 0, 0), np.int16)
    return Converted(nothing, "hu", np.empty(0, np.float32), (), {}, rejected=(refusal,))


def _pictures(series: Series, options: Options) -> Converted:
    """Grey pictures: padded with black to a square, then area-averaged."""
    slices: list[NDArray[np.int16]] = []
    kept: list[int] = []
    rejected: list[Rejected] = []
    for index, grey in enumerate(decode.planes(series, range(len(series.planes)))):
        if isinstance(grey, Rejected):
            rejected.append(grey)
            continue
        slices.append(to_int16(_squared(grey, options.size), lowest=0))
        kept.append(index)
    return Converted(
        hu=np.stack(slices) if slices else np.empty((0, options.size, options.size), np.int16),
        values="grey",
        position_mm=np.asarray([series.planes[k].position_mm for k in kept], np.float32),
        planes=tuple(kept),
        dropped_by_region={},
        rejected=tuple(rejected),
        labels=tuple(label_of(series.planes[k].relative_path) for k in kept),
    )


def _squared(grey: NDArray[np.float32], size: int) -> NDArray[np.float32]:
    """float32 [size, size] from grey float32 [rows, columns], in the middle of a black square."""
    side = max(grey.shape)
    # whole pixels, as padding does: the middle of an odd difference lies half a pixel up and left
    down, right = (overlap((side - n) // 2 + 0.5, 1.0, n, 0.0, side, size) for n in grey.shape)
    return area_average(grey, down, right, outside=0)
