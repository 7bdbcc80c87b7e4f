"""DICOM CT files of an export to series: headers read, files judged, planes grouped. No pixel is decoded."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from ctslices.quiet import quiet
from ctslices.reject import Reason, Rejected
from ctslices.series import PlaneGeometry, PlaneRef, Series, SourceKind
from ctslices.sources.dicom_file import Refusal
from ctslices.sources.dicom_group import Stack, stacks_of, steps_of, without_duplicates
from ctslices.sources.dicom_header import Header
from ctslices.sources.dicom_judge import read_header, tilt_degrees
from ctslices.sources.dicom_twins import families
from ctslices.sources.dicom_words import kernel_word, manufacturer_word

Mapper = Callable[[Callable[[Path], Any], Iterable[Path]], Iterable[Any]]


class ReadOptions(Protocol):
    """What of the intake's options decides here."""

    @property
    def kernel(self) -> str | None: ...
    @property
    def min_slices(self) -> int: ...
    @property
    def allow_burned_in(self) -> bool: ...


def read(
    files: Sequence[Path], export: Path, options: ReadOptions, mapper: Mapper = map
) -> tuple[list[Series], list[Rejected]]:
    """The series among `files` (absolute paths below `export`), and every refused file or series with its reason.

    A refused series is one record, at its first file. `mapper` reads the headers (one small, picklable task a file, in
    the order given): a process pool's `map`, say. Nothing is raised on damaged files, and nothing of a header gets
    into `Rejected.detail`, a warning or a log.
    """
    with quiet():
        found = list(mapper(partial(header_quietly, allow_burned_in=options.allow_burned_in), files))
        relative = {str(path): _relative(path, export) for path in files}
        rejected = [
            Rejected(relative[str(path)], result.reason, result.detail)
            for path, result in zip(files, found, strict=True)
            if isinstance(result, Refusal)
        ]
        headers, copies = without_duplicates(result for result in found if isinstance(result, Header))
        stacks = []
        for group in _by_series(headers):
            parts, left_over = stacks_of(group)
            stacks += parts
            copies += left_over
        rejected += [Rejected(relative[header.path], refusal.reason, refusal.detail) for header, refusal in copies]
        series, refused = _taken(stacks, options, relative)
        return series, sorted(rejected + refused, key=lambda one: (one.path, one.reason))


def header_quietly(path: Path, allow_burned_in: bool = False) -> Header | Refusal:
    """`dicom_judge.read_header` for a worker process: silent there too."""
    with quiet():
        return read_header(path, allow_burned_in)


def _relative(path: Path, export: Path) -> str:
    """With forward slashes; bytes of a name that are not UTF-8 become escapes that can be written anywhere."""
    text = path.relative_to(export).as_posix()
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def _by_series(headers: Iterable[Header]) -> list[list[Header]]:
    """By patient and SeriesInstanceUID: one UID on two patients must not mix them."""
    groups: dict[tuple[str, str], list[Header]] = defaultdict(list)
    for header in headers:
        groups[(header.patient, header.series)].append(header)
    return list(groups.values())


def _taken(
    stacks: Sequence[Stack], options: ReadOptions, relative: dict[str, str]
) -> tuple[list[Series], list[Rejected]]:
    series: list[Series] = []
    rejected: list[Rejected] = []

    def refuse(stack: Stack, reason: Reason, detail: str) -> None:
        rejected.append(Rejected(relative[min(plane.header.path for plane in stack.planes)], reason, detail))

    whole = []
    for stack in stacks:
        if len(stack.planes) < options.min_slices:
            refuse(stack, Reason.TOO_FEW_SLICES, f"got {len(stack.planes)} slices, want {options.min_slices}")
        else:
            whole.append(stack)
    for number, family in enumerate(families(whole, options.kernel)):
        series.append(_series(family.taken, f"acquisition-{number:05d}", relative))
        kernel = kernel_word(family.taken.planes[0].header.kernel) or "no kernel"
        for other in family.other_kernels:
            refuse(other, Reason.OTHER_KERNEL, f"{len(other.planes)} slices; of this acquisition, {kernel} is taken")
        for copy in family.copies:
            refuse(copy, Reason.DUPLICATE_SERIES, f"{len(copy.planes)} slices; the acquisition is taken already")
    return series, rejected


def _series(stack: Stack, acquisition: str, relative: dict[str, str]) -> Series:
    header, frame = stack.planes[0].header, stack.planes[0].frame
    steps = steps_of(stack.positions_mm)
    paths = dict.fromkeys(relative[plane.header.path] for plane in stack.planes)
    return Series(
        kind=SourceKind.DICOM,
        raw_patient=header.patient,
        raw_series=header.series if stack.part == 0 else f"{header.series}#{stack.part + 1}",
        relative_paths=tuple(paths),
        planes=tuple(_plane(stack, at, relative) for at in range(len(stack.planes))),
        geometry=_geometry(stack),
        acquisition=acquisition,
        manufacturer=manufacturer_word(header.manufacturer),
        kernel=kernel_word(header.kernel),
        kvp=header.kvp if header.kvp is not None and 40 <= header.kvp <= 200 else None,
        thickness_mm=header.thickness_mm if header.thickness_mm and 0 < header.thickness_mm <= 100 else None,
        spacing_between_mm=steps.nominal_mm,
        gaps=steps.gaps,
        irregular=steps.irregular,
        tilt_degrees=tilt_degrees(frame),
        notes=_notes(stack),
    )


def _plane(stack: Stack, at: int, relative: dict[str, str]) -> PlaneRef:
    plane = stack.planes[at]
    frame = plane.frame
    assert frame.position_mm is not None
    assert frame.slope is not None
    assert frame.intercept is not None
    x, y, z = frame.position_mm
    return PlaneRef(
        path=plane.header.path,
        frame=frame.index,
        position_mm=stack.positions_mm[at],
        origin_mm=(x, y, z),
        slope=frame.slope,
        intercept=frame.intercept,
        stored=plane.header.stored,
        relative_path=relative[plane.header.path],
    )


def _geometry(stack: Stack) -> PlaneGeometry:
    header, frame = stack.planes[0].header, stack.planes[0].frame
    assert frame.orientation is not None
    assert frame.spacing_mm is not None
    assert header.stored is not None
    row, column = (np.asarray(part, float) for part in (frame.orientation[:3], frame.orientation[3:]))
    row, column = row / np.linalg.norm(row), column / np.linalg.norm(column)
    return PlaneGeometry(
        row_direction=(float(row[0]), float(row[1]), float(row[2])),
        column_direction=(float(column[0]), float(column[1]), float(column[2])),
        spacing_mm=(frame.spacing_mm[0], frame.spacing_mm[1]),
        shape=header.stored.shape,
    )


def _notes(stack: Stack) -> tuple[str, ...]:
    notes = []
    if len({(plane.frame.slope, plane.frame.intercept) for plane in stack.planes}) > 1:
        notes.append("the rescale differs between slices")
    if any(plane.header.burned_in for plane in stack.planes):
        notes.append("marked as carrying burned-in text, taken on the site's word")
    return tuple(notes)
