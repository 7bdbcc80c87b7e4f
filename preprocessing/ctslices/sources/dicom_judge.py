"""One DICOM file judged by its header alone: taken with a header, or refused with one reason."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from pathlib import Path

from ctslices.reject import Reason
from ctslices.sources.dicom_file import PARSE_ERRORS, Parsed, Refusal, parse
from ctslices.sources.dicom_header import Frame, Header, header_of
from ctslices.sources.dicom_pixels import stored_pixels

TILT_LIMIT_DEGREES = 30.0
SPACING_LIMITS_MM = (0.05, 10.0)

_MEDIA_DIRECTORY = "1.2.840.10008.1.3.10"
_LOCALIZER = frozenset({"LOCALIZER", "SCOUT", "TOPOGRAM"})
_REFORMATTED = frozenset(
    {"MPR", "REFORMATTED", "CPR", "MIP", "MINIP", "VRT", "SSD", "PROJECTION", "CORONAL", "SAGITTAL"}
)
_NOT_DENSITY = frozenset({"PERFUSION", "CBF", "CBV", "RCBF", "RCBV", "MTT", "TTP", "TMAX"})


def read_header(path: Path, allow_burned_in: bool = False) -> Header | Refusal:
    """A CT file's header, or why the file is refused. Reads the header only; never raises on damaged bytes."""
    parsed = parse(path)
    if isinstance(parsed, Refusal):
        return parsed
    try:
        header = header_of(str(path), parsed)
        return _judged(path, parsed, header, allow_burned_in)
    except PARSE_ERRORS:
        return Refusal(Reason.UNREADABLE, "the header is damaged")


def _judged(path: Path, parsed: Parsed, header: Header, allow_burned_in: bool) -> Header | Refusal:
    refusal = _kind(parsed, header)
    if refusal is not None:
        return refusal
    if any(frame.malformed for frame in header.frames):
        return Refusal(Reason.UNREADABLE, "the header is damaged")
    if parsed.pixels is not None and not header.frames:
        return Refusal(Reason.NO_GEOMETRY, "several frames without the geometry of each")
    stored = stored_pixels(path, parsed, max(len(header.frames), 1))
    if isinstance(stored, Refusal):
        return stored
    refusal = _bearer(header, allow_burned_in) or _geometry(header) or _rescale(header)
    return refusal or replace(header, stored=stored)


def _kind(parsed: Parsed, header: Header) -> Refusal | None:
    if header.sop_class == _MEDIA_DIRECTORY:
        return Refusal(Reason.NOT_AN_IMAGE, "a directory of a medium")
    if not header.modality:
        if parsed.cut:
            return Refusal(Reason.TRUNCATED, "the file ends within its header")
        return Refusal(Reason.OTHER_MODALITY, "no modality")
    if header.modality != "CT":
        return Refusal(Reason.OTHER_MODALITY, _safe_modality(header.modality))
    if header.synthetic:
        return Refusal(Reason.SYNTHETIC)
    if any(_words(frame) & _LOCALIZER for frame in header.frames):
        return Refusal(Reason.LOCALIZER)
    return None


def _bearer(header: Header, allow_burned_in: bool) -> Refusal | None:
    if not header.patient:
        return Refusal(Reason.NO_PATIENT_ID)
    if header.burned_in and not allow_burned_in:
        return Refusal(Reason.BURNED_IN_MARKED)
    return None


def _geometry(header: Header) -> Refusal | None:
    if not header.series or not header.sop_instance:
        return Refusal(Reason.NO_GEOMETRY, "no series or instance UID to group by")
    return next((refusal for frame in header.frames if (refusal := _frame_geometry(frame)) is not None), None)


def _frame_geometry(frame: Frame) -> Refusal | None:
    if frame.position_mm is None or frame.orientation is None or frame.spacing_mm is None:
        return Refusal(Reason.NO_GEOMETRY, "position, orientation or pixel spacing is missing or malformed")
    low, high = SPACING_LIMITS_MM
    if not all(low <= spacing <= high for spacing in frame.spacing_mm):
        return Refusal(Reason.NO_GEOMETRY, f"the pixel spacing is outside {low} to {high} mm")
    if max(abs(value) for value in frame.position_mm) > 1e5:
        return Refusal(Reason.NO_GEOMETRY, "the position is more than 100 m away")
    row, column = frame.orientation[:3], frame.orientation[3:]
    lengths_off = max(abs(math.hypot(*row) - 1), abs(math.hypot(*column) - 1))
    if lengths_off > 1e-3 or abs(sum(a * b for a, b in zip(row, column, strict=True))) > 1e-3:
        return Refusal(Reason.NO_GEOMETRY, "the orientation is not two perpendicular unit vectors")
    if _words(frame) & _REFORMATTED:
        return Refusal(Reason.NOT_AXIAL, "a reformat")
    tilt = tilt_degrees(frame)
    if tilt > TILT_LIMIT_DEGREES:
        return Refusal(Reason.NOT_AXIAL, f"tilted by {tilt:.0f} degrees, the limit is {TILT_LIMIT_DEGREES:.0f}")
    return None


def _rescale(header: Header) -> Refusal | None:
    for frame in header.frames:
        if frame.slope is None or frame.intercept is None:
            return Refusal(Reason.NOT_HU, "rescale slope or intercept is missing or malformed")
        if not 1e-6 <= abs(frame.slope) <= 1e3 or abs(frame.intercept) > 1e6:
            return Refusal(Reason.NOT_HU, "rescale slope or intercept is out of any CT's range")
        if frame.rescale_type.upper() not in {"", "HU"} or _words(frame) & _NOT_DENSITY:
            return Refusal(Reason.NOT_HU, "a rescale type other than HU, or a perfusion map")
    return None


def tilt_degrees(frame: Frame) -> float:
    """Angle between the plane's normal and the patient's long axis, 0 to 90 degrees."""
    assert frame.orientation is not None
    # Plain arithmetic: for three numbers numpy takes ten times as long, and this runs for every file.
    rx, ry, rz, cx, cy, cz = frame.orientation
    normal = (ry * cz - rz * cy, rz * cx - rx * cz, rx * cy - ry * cx)
    return math.degrees(math.acos(min(1.0, abs(normal[2]) / math.hypot(*normal))))


def _words(frame: Frame) -> set[str]:
    return {word for value in frame.image_type for word in re.split(r"[^A-Z0-9]+", value.upper())}


_MODALITIES = (
    "AR ASMT AU BI BMD CR CTPROTOCOL DMS DG DOC DX ECG EPS ES FID GM HC HD IO IOL IVOCT IVUS KER KO LEN LP LS MG MR"
    " M3D NM OAM OCT OP OPM OPT OPV OSS OT PLAN PR PT PX REG RESP RF RG RTDOSE RTIMAGE RTINTENT RTPLAN RTRAD RTRECORD"
    " RTSEGANN RTSTRUCT RWV SEG SM SMR SR SRF STAIN TEXTUREMAP TG US VA XA XAPROTOCOL XC"
)


def _safe_modality(modality: str) -> str:
    """The modality where it is one of the standard's (PS3.3 C.7.3.1.1.1), so that no free text gets into a detail."""
    return modality if modality in _MODALITIES.split() else "not a modality of the standard"
