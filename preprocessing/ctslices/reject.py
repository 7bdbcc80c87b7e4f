"""Why a file or a series did not get into a store: a closed list of reasons, and the record of one rejection."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Reason(StrEnum):
    """One reason for each way in which an export's content is refused. The values are what reports count by."""

    NOT_AN_IMAGE = "not-an-image"
    UNREADABLE = "unreadable"
    TRUNCATED = "truncated"
    UNDECODABLE = "undecodable"
    DECODER_CRASHED = "decoder-crashed"
    DECODER_TIMEOUT = "decoder-timeout"
    OTHER_MODALITY = "other-modality"
    NO_PIXEL_DATA = "no-pixel-data"
    LOCALIZER = "localizer"
    NOT_AXIAL = "not-axial"
    NO_GEOMETRY = "no-geometry"
    NO_PATIENT_ID = "no-patient-id"
    NOT_HU = "not-hu"
    DUPLICATE_INSTANCE = "duplicate-instance"
    DUPLICATE_SERIES = "duplicate-series"
    OTHER_KERNEL = "other-kernel"
    TOO_FEW_SLICES = "too-few-slices"
    BURNED_IN_MARKED = "burned-in-marked"
    BURNED_IN_SUSPECTED = "burned-in-suspected"
    SYNTHETIC = "synthetic"
    EXCLUDED = "excluded"
    OTHER_REGION = "other-region"


@dataclass(frozen=True, slots=True)
class Rejected:
    """One refused file or series.

    `path` is relative to the export and goes to STORE.rejected.jsonl beside the store, for the site alone; it never
    enters a store, a log or an error text. `detail` is written for people and holds no identifier, date, UID or path.
    """

    path: str
    reason: Reason
    detail: str = ""
