"""Manufacturer and convolution kernel in known words only: both are free text, in which a header can carry a name."""

from __future__ import annotations

import re

OTHER = "other"

_MANUFACTURERS = {
    "GE": ("GE ", "GE_", "GENERAL ELECTRIC", "IMATRON"),
    "Siemens": ("SIEMENS",),
    "Philips": ("PHILIPS", "MARCONI", "PICKER", "ELSCINT"),
    "Canon": ("TOSHIBA", "CANON"),
    "Hitachi": ("HITACHI", "FUJIFILM"),
    "United Imaging": ("UIH", "UNITED IMAGING"),
    "Neusoft": ("NEUSOFT", "NMS"),
    "Neurologica": ("NEUROLOGICA", "SAMSUNG"),
    "Shimadzu": ("SHIMADZU",),
    "Varian": ("VARIAN",),
    "Accuray": ("ACCURAY", "TOMOTHERAPY"),
    "Planmed": ("PLANMED",),
    "Carestream": ("CARESTREAM",),
    "Curve Beam": ("CURVEBEAM",),
}

# (pattern of the whole kernel, sharpness 0 smooth .. 100 sharp; None: the pattern's number is the sharpness)
_KERNELS: tuple[tuple[re.Pattern[str], float | None], ...] = tuple(
    (re.compile(pattern, re.IGNORECASE), sharpness)
    for pattern, sharpness in (
        (r"[ABCDHIJQSTU][a-z]?(?P<number>[0-9]{2})[a-z]?", None),  # Siemens: B30f, Br38f, I50f, Qr40d
        (r"SMOOTH|SMOOTHER", 15),
        (r"SOFT|SOFT[+ ]PLUS|SOFTPLUS", 20),
        (r"STANDARD|STND|STANDARD[+ ]PLUS|STANDARDPLUS|STD[+]?", 35),
        (r"CHEST|CHST", 45),
        (r"DETAIL|DETL", 55),
        (r"(HD)?(LUNG|BONE|EDGE|ULTRA|(BONE|EDGE) ?PLUS)|HD(STANDARD|STND|SOFT|DETAIL)", 80),
        (r"FC0?[0-9](-[A-Z])?", 30),  # Canon: FC01 .. FC09 body with, FC11 .. FC19 without hardening correction
        (r"FC1[0-9](-[A-Z])?", 32),
        (r"FC2[0-9](-[A-Z])?", 35),  # head
        (r"FC[3-8][0-9](-[A-Z])?", 75),  # bone, lung, high resolution
        (r"EA|EB|A|UA|XA|SB|YA", 20),  # Philips: from A smooth to L lung
        (r"B|UB|XB|YB|EC", 35),
        (r"C|UC|XC|YC|SC", 50),
        (r"D|E|F|L|YD|YE|YF|YL|LC|UD", 75),
        (r"BODY_(?P<word>SOFT|SHARP|STANDARD)(_[A-Z])?(_[0-9]{2,3})?", 40),  # United Imaging
    )
)
UNKNOWN_SHARPNESS = 50.0


def manufacturer_word(raw: str) -> str:
    """The maker's name from a closed list, "other" for any text that is not on it, "" where there is none."""
    upper = raw.upper() + " "
    for name, beginnings in _MANUFACTURERS.items():
        if upper.startswith(beginnings):
            return name
    return OTHER if raw else ""


def kernel_word(raw: str) -> str:
    """The (first) kernel where it has the form of a known maker's, "other" where not, "" where there is none."""
    first = _first(raw)
    if not first:
        return ""
    return first if any(pattern.fullmatch(first) for pattern, _ in _KERNELS) else OTHER


def sharpness(raw: str) -> float:
    """How sharp a kernel is, 0 to 100, roughly and for comparing alone; 50 where unknown."""
    first = _first(raw)
    for pattern, value in _KERNELS:
        found = pattern.fullmatch(first)
        if found:
            return float(found["number"]) if value is None else value
    return UNKNOWN_SHARPNESS


def _first(raw: str) -> str:
    return raw.split("\\", maxsplit=1)[0].strip()
