"""What every reader yields: a series of parallel planes with its geometry, before any pixel is decoded."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray

AIR_HU = -1024
"""Padding, out-of-field values and everything lower become this value."""


class SourceKind(StrEnum):
    DICOM = "dicom"
    NIFTI = "nifti"
    NRRD = "nrrd"
    PICTURES = "pictures"


@dataclass(frozen=True, slots=True)
class StoredPixels:
    """How a DICOM file stores the pixels of its frames, remembered from the header so that decoding need not parse it
    again. PS3.3 C.7.6.3.1 (Image Pixel) and C.7.5.1.1.2 (Pixel Padding)."""

    transfer_syntax: str
    shape: tuple[int, int]
    bits_allocated: int
    bits_stored: int
    signed: bool
    offset: int
    """Of the first frame's first byte: in the file, or in the inflated data set where the syntax is deflated.
    0 where the pixels are encapsulated."""
    big_endian: bool
    encapsulated: bool
    deflated_at: int | None
    """Where in the file the deflated data set begins; None where nothing is deflated."""
    padding: tuple[int, int] | None
    """Lowest and highest stored value that are padding, inclusive."""
    file_bytes: int
    """The file's size when its header was read: another size at decoding means another file."""


@dataclass(frozen=True, slots=True)
class PlaneRef:
    """Where one plane's pixels lie: `path` on this machine, and the index of its frame or slice within the file."""

    path: str
    frame: int
    position_mm: float
    """Along the series' normal, in source millimetres; pictures: their running number."""
    origin_mm: tuple[float, float, float] = (0.0, 0.0, 0.0)
    """LPS position of the centre of the first stored pixel (row 0, column 0) of this plane."""
    slope: float = 1.0
    """DICOM: HU = slope * stored + intercept, of this very frame."""
    intercept: float = 0.0
    stored: StoredPixels | None = None
    """DICOM alone."""
    relative_path: str = ""
    """`path` relative to the export, for STORE.rejected.jsonl alone."""


@dataclass(frozen=True, slots=True)
class PlaneGeometry:
    """The frame that all planes of a series share, in LPS millimetres.

    `row_direction` points along increasing column index, `column_direction` along increasing row index (DICOM's
    ImageOrientationPatient, first and second triple); `spacing_mm` is (between rows, between columns).
    """

    row_direction: tuple[float, float, float]
    column_direction: tuple[float, float, float]
    spacing_mm: tuple[float, float]
    shape: tuple[int, int]

    @property
    def normal(self) -> NDArray[np.float64]:
        """Unit normal float64 [3]: row direction x column direction."""
        return np.cross(np.asarray(self.row_direction, float), np.asarray(self.column_direction, float))


@dataclass(frozen=True, slots=True)
class Series:
    """One series as read from headers. Picklable: worker processes decode its planes.

    The `raw_*` fields are what the export says. They are for pseudonyms, joining and labels, and never reach a store.
    """

    kind: SourceKind
    raw_patient: str | None
    """PatientID as in the export; None where the source knows no patient (the store's unit is then `image`)."""
    raw_series: str
    """SeriesInstanceUID, or the path relative to the export."""
    relative_paths: tuple[str, ...]
    """The files this series was read from, relative to the export."""
    planes: tuple[PlaneRef, ...]
    """Ordered by position_mm, ascending."""
    geometry: PlaneGeometry | None
    """None for pictures, which have no spacing."""
    acquisition: str = ""
    """Equal for kernel twins: series made from one acquisition (same study, frame of reference, positions)."""
    manufacturer: str = ""
    kernel: str = ""
    kvp: float | None = None
    thickness_mm: float | None = None
    spacing_between_mm: float | None = None
    gaps: tuple[tuple[float, float], ...] = ()
    """(position_mm, gap_mm) where slices are missing."""
    irregular: bool = False
    tilt_degrees: float = 0.0
    notes: tuple[str, ...] = field(default=())
