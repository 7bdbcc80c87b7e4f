"""One converted series in the work folder beside the store: what a worker leaves, and a killed run finds again."""

from __future__ import annotations

import io
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from ctslices.files import write_whole
from ctslices.manifest import SeriesRecord, Values
from ctslices.options import Options
from ctslices.pseudonym import SiteKey
from ctslices.reject import Reason, Rejected
from ctslices.series import PlaneRef, Series
from ctslices.version import VERSION

if TYPE_CHECKING:
    from ctslices.convert import Converted

PICTURES_OF_SUSPECTS = 50
"""Most quarantine pictures written for one series."""


NO_PIXELS: NDArray[np.int16] = np.empty((0, 0, 0), np.int16)


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, strict=True, extra="forbid", allow_inf_nan=False)


class Refusal(_Record):
    """A `Rejected` in JSON."""

    path: str
    reason: str
    detail: str


class Suspect(_Record):
    """One plane in quarantine."""

    path: str
    frame: int
    picture: str | None = None
    """File name of its picture in the work folder; None where there are too many in the series."""


class Part(_Record):
    """What one series became. Paths in it are for the site's files beside the store and never enter the store."""

    record: SeriesRecord | None
    """For the manifest, its patient not yet filled in; None where no slice was kept."""
    values: Values
    position_mm: tuple[float, ...]
    files: tuple[str, ...]
    """Of each slice, relative to the export: labels.csv may name files."""
    labels: tuple[str, ...]
    dropped_by_region: dict[str, int]
    value_range: tuple[int, int]
    rejected: tuple[Refusal, ...]
    suspects: tuple[Suspect, ...]

    def refusals(self) -> list[Rejected]:
        """As the store's other rejections."""
        return [Rejected(r.path, Reason(r.reason), r.detail) for r in self.rejected]


@dataclass(frozen=True, slots=True)
class Work:
    """A worker's task: a series, how to convert it, and where to leave the part."""

    series: Series
    series_id: str
    options: Options
    folder: Path
    name: str
    """Of the part's files: a seal over all that decides its content, so that a stale part is never taken."""
    isolate: bool = False


@dataclass(frozen=True, slots=True)
class WriteFailed:
    """The work folder took no more: which error (an errno), without paths."""

    errno: int


def part_name(series: Series, options: Options, key: SiteKey) -> str:
    """The seal over the series as its header was read, its files' sizes and times, the options and the version."""
    files = []
    for path in sorted({plane.path for plane in series.planes}):
        found = os.stat(path)
        files.append((path, found.st_size, found.st_mtime_ns))
    return key.seal(json.dumps([VERSION, repr(series), options_text(options), files]))[:32]


def options_text(options: Options) -> str:
    """One text for equal options, whatever the order in which this process keeps sets."""
    fields = {name: getattr(options, name) for name in options.__dataclass_fields__}
    return repr({name: sorted(value) if isinstance(value, frozenset) else value for name, value in fields.items()})


def pixels_path(folder: Path, name: str) -> Path:
    """The pixels of a part: a NumPy file, int16 [k, size, size]."""
    return folder / f"{name}.npy"


def read_part(folder: Path, name: str) -> Part | None:
    """The part, or None where it was not finished."""
    try:
        return Part.model_validate_json((folder / f"{name}.json").read_bytes())
    except (FileNotFoundError, ValueError):
        return None


def read_pixels(folder: Path, name: str) -> NDArray[np.int16]:
    """int16 [k, size, size], memory-mapped."""
    pixels: NDArray[np.int16] = np.load(pixels_path(folder, name), mmap_mode="r", allow_pickle=False)
    return pixels


def make_part(work: Work) -> Literal[True] | WriteFailed:
    """Convert one series and leave the part in the work folder; runs in a worker process, which alone imports SciPy."""
    from ctslices.convert import convert, picture

    try:
        converted = convert(work.series, work.options, isolate=work.isolate)
        images = [_png(picture(work.series, plane)) for plane in converted.quarantined[:PICTURES_OF_SUSPECTS]]
    except OSError:
        part, hu, images = failed_part(work, Reason.UNREADABLE, "gone or unreadable at decoding"), NO_PIXELS, []
    else:
        part, hu = _describe(work, converted), converted.hu
    try:
        for suspect, image in zip(part.suspects, images, strict=False):
            write_whole(work.folder / str(suspect.picture), image, mode=0o600)
        write_part(work, part, hu)
    except OSError as error:
        return WriteFailed(error.errno or 0)
    return True


def write_part(work: Work, part: Part, hu: NDArray[np.int16]) -> None:
    """Pixels first, then the record, whose presence says that the part is whole."""
    stream = io.BytesIO()
    np.save(stream, hu, allow_pickle=False)
    write_whole(pixels_path(work.folder, work.name), stream.getvalue(), mode=0o600)
    write_whole(work.folder / f"{work.name}.json", part.model_dump_json().encode(), mode=0o600)


def failed_part(work: Work, reason: Reason, detail: str) -> Part:
    """The part of a series that gave nothing: every file of it refused for one reason."""
    refusals = tuple(Refusal(path=p, reason=str(reason), detail=detail) for p in work.series.relative_paths)
    return _part(work, refusals)


def _part(work: Work, rejected: tuple[Refusal, ...], **found: Any) -> Part:
    given = {"values": "hu", "position_mm": (), "files": (), "labels": (), "dropped_by_region": {}, "suspects": ()}
    given |= {"value_range": (0, 0), "record": None, "rejected": rejected} | found
    return Part.model_validate(given)


def _suspect(work: Work, number: int, plane: int) -> Suspect:
    ref = work.series.planes[plane]
    name = f"{work.name}-{number:05d}.png" if number < PICTURES_OF_SUSPECTS else None
    return Suspect(path=_path(ref, work.series), frame=ref.frame, picture=name)


def _held(suspect: Suspect) -> Refusal:
    detail = f"frame {suspect.frame} is in quarantine, for a person to look at"
    return Refusal(path=suspect.path, reason=str(Reason.BURNED_IN_SUSPECTED), detail=detail)


def _describe(work: Work, converted: Converted) -> Part:
    hu = converted.hu
    suspects = tuple(_suspect(work, n, plane) for n, plane in enumerate(converted.quarantined))
    refused = [Refusal(path=r.path, reason=str(r.reason), detail=r.detail) for r in converted.rejected]
    held = [_held(suspect) for suspect in suspects]
    return _part(
        work,
        (*refused, *held),
        record=_record(work, converted),
        values=converted.values,
        position_mm=tuple(float(p) for p in converted.position_mm),
        files=tuple(_path(work.series.planes[plane], work.series) for plane in converted.planes),
        labels=tuple(converted.labels),
        dropped_by_region={k: v for k, v in sorted(converted.dropped_by_region.items()) if v},
        value_range=(int(hu.min()), int(hu.max())) if hu.size else (0, 0),
        suspects=suspects,
    )


def _record(work: Work, converted: Converted) -> SeriesRecord | None:
    series = work.series
    if not len(converted.hu):
        return None
    return SeriesRecord(
        id=work.series_id,
        patient=0,
        kind=series.kind.value,
        slices=len(converted.hu),
        centre_mm=converted.centre_mm,
        corners_mm=converted.corners_mm,
        spacing_mm=None if series.geometry is None else series.geometry.spacing_mm,
        spacing_between_mm=series.spacing_between_mm,
        thickness_mm=series.thickness_mm,
        manufacturer=series.manufacturer,
        kernel=series.kernel,
        kvp=series.kvp,
        tilt_degrees=series.tilt_degrees,
        notes=tuple(dict.fromkeys((*series.notes, *spacing_notes(series), *converted.notes))),
    )


def spacing_notes(series: Series) -> tuple[str, ...]:
    """Missing slices and irregular steps, as the manifest notes them."""
    gaps = [f"slices are missing: {gap:.2f} mm without one after position {at:.2f} mm" for at, gap in series.gaps]
    return (*gaps, *(["the spacing between slices is irregular"] if series.irregular else []))


def _path(plane: PlaneRef, series: Series) -> str:
    return plane.relative_path or series.relative_paths[0]


def _png(grey: NDArray[np.uint8]) -> bytes:
    from PIL import Image

    stream = io.BytesIO()
    Image.fromarray(grey).save(stream, "PNG")
    return stream.getvalue()
