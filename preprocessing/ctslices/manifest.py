"""`manifest.json` of a slice store: everything that is not a pixel. docs/store-format.md describes it for readers."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

FORMAT: Literal["ctslices-store"] = "ctslices-store"
FORMAT_VERSION: Literal[1] = 1
SHARD_SLICES = 8192
"""Most slices in one shard."""

Split = Literal["train", "holdout"]
Unit = Literal["patient", "image"]
Values = Literal["hu", "grey"]
Point = tuple[float, float, float]
Pseudonym = Annotated[str, Field(pattern=r"^[0-9a-f]{32}$")]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, strict=True, extra="forbid", allow_inf_nan=False)


class PatientRecord(_Record):
    """One patient (unit `patient`), or one block of pictures or one volume without a patient (unit `image`)."""

    id: Pseudonym = Field(description="HMAC-SHA256 under the site's key, first 16 bytes, hexadecimal")
    split: Split
    series: int = Field(ge=1)
    slices: int = Field(ge=1)


class SeriesRecord(_Record):
    """One series. Geometry is None for pictures, which have none."""

    id: Pseudonym
    patient: int = Field(ge=0, description="index into `patients`")
    kind: Literal["dicom", "nifti", "nrrd", "pictures"]
    slices: int = Field(ge=1)
    centre_mm: Point | None = Field(default=None, description="centre of the field on the first slice, source LPS mm")
    corners_mm: tuple[Point, ...] = Field(
        default=(),
        description="outer corners of the field on the first slice, clockwise from row 0 column 0",
    )
    spacing_mm: tuple[float, float] | None = Field(default=None, description="source pixels: between rows, columns")
    spacing_between_mm: float | None = Field(default=None, description="source slices, along the normal")
    thickness_mm: float | None = None
    manufacturer: str = ""
    kernel: str = ""
    kvp: float | None = None
    tilt_degrees: float = 0.0
    notes: tuple[str, ...] = ()


class ShardRecord(_Record):
    """One safetensors file."""

    file: str = Field(pattern=r"^slices-\d{5}\.safetensors$")
    slices: int = Field(ge=1, le=SHARD_SLICES)
    sha256: Sha256


class Manifest(_Record):
    """All of a store but its pixels. `patient`, `series` and `label` of a slice are indices into the lists here."""

    format: Literal["ctslices-store"] = FORMAT
    format_version: Literal[1] = FORMAT_VERSION
    ctslices_version: str
    size: int = Field(ge=8, le=1024, description="side of a slice in pixels")
    field_mm: float | None = Field(default=None, gt=0, description="side of a slice in mm; None for pictures")
    every_mm: float | None = Field(default=None, gt=0, description="wanted step between slices; None: all slices")
    region: str = Field(default="any", description="what slices had to show to be kept")
    unit: Unit
    values: Values = Field(default="hu", description="what `hu` holds: Hounsfield units, or grey values 0..255")
    kinds: tuple[str, ...] = Field(description="source kinds, sorted")
    slices: int = Field(ge=0)
    value_range: tuple[int, int] = Field(description="smallest and largest value of `hu`; (0, 0) of an empty store")
    labels: tuple[str, ...] = ()
    patients: tuple[PatientRecord, ...]
    series: tuple[SeriesRecord, ...]
    shards: tuple[ShardRecord, ...]
    holdout: float = Field(ge=0, lt=1, description="fraction of patients that the split holds out")
    split_seed: int = 0
    key_fingerprint: Sha256 = Field(description="of the site's key: a store refuses another key")
    dropped_by_region: dict[str, int] = Field(default_factory=dict, description="slices not kept, by what they show")
    rejected: dict[str, int] = Field(default_factory=dict, description="files or series refused, by reason")
    options: dict[str, str | int | float | bool | None] = Field(default_factory=dict)
    notes: tuple[str, ...] = ()
