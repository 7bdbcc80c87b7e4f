"""Walks an export and sorts its files by what they hold. Headers are read, pixels are not."""

from __future__ import annotations

import gzip
import os
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ctslices.options import Options
from ctslices.reject import Reason, Rejected
from ctslices.series import Series
from ctslices.sources import dicom, nifti, nrrd, pictures
from ctslices.sources.dicom_file import looks_like_dicom

Mapper = Callable[[Callable[[Path], Any], Iterable[Path]], Iterable[Any]]

_HEAD_BYTES = 352
_DICOM_NAMES = (".dcm", ".dicom", ".ima")
_NIFTI_NAMES = (".nii", ".nii.gz")
_NRRD_NAMES = (".nrrd", ".nhdr")


@dataclass(slots=True)
class _Sorted:
    """Absolute paths by format, each in the order of the walk."""

    dicom: list[Path] = field(default_factory=list)
    nifti: list[Path] = field(default_factory=list)
    nrrd: list[Path] = field(default_factory=list)
    pictures: list[Path] = field(default_factory=list)
    other: list[Path] = field(default_factory=list)


def find(export: Path, options: Options, mapper: Mapper = map) -> tuple[list[Series], list[Rejected]]:
    """Every series below `export`, and every refused file or series with its reason, both in one fixed order.

    Links are not followed. `mapper` reads the headers of DICOM files (small picklable tasks): a process pool's ordered
    `map`, say. Who is the patient of a NIfTI or NRRD volume is not decided here: `raw_patient` is None. Nothing is
    raised on damaged files.
    """
    export = export.resolve()
    rejected: list[Rejected] = []
    files = _sort(_walk(export, rejected), options, export, rejected)
    series, refused = dicom.read(files.dicom, export, options, mapper)
    rejected += refused
    for path in files.nifti:
        _keep(nifti.read(path, _relative(path, export)), options, series, rejected)
    of_headers = set()
    for path in files.nrrd:
        _keep(nrrd.read(path, _relative(path, export), export), options, series, rejected)
        of_headers.add(nrrd.data_file(path))
    scans = bool(files.dicom or files.nifti or files.nrrd)
    found, refused = _pictures(files.pictures, export, beside_scans=scans)
    other = [path for path in files.other if path not in of_headers]
    rejected += refused + [Rejected(_relative(path, export), Reason.NOT_AN_IMAGE) for path in other]
    return (
        sorted(series + found, key=lambda one: (one.relative_paths[0], one.raw_series)),
        sorted(rejected, key=lambda one: (one.path, one.reason, one.detail)),
    )


def _keep(found: Series | Rejected, options: Options, series: list[Series], rejected: list[Rejected]) -> None:
    if isinstance(found, Rejected):
        rejected.append(found)
    elif len(found.planes) < options.min_slices:
        detail = f"got {len(found.planes)} slices, want {options.min_slices}"
        rejected.append(Rejected(found.relative_paths[0], Reason.TOO_FEW_SLICES, detail))
    else:
        series.append(found)


def _pictures(files: list[Path], export: Path, beside_scans: bool) -> tuple[list[Series], list[Rejected]]:
    """Beside real scans pictures are previews and screenshots: one store holds HU or grey values, never both."""
    if beside_scans:
        detail = "a picture beside scans has no HU; prepare pictures from a folder of their own"
        return [], [Rejected(_relative(path, export), Reason.NOT_AN_IMAGE, detail) for path in files]
    return pictures.read([(path, _relative(path, export)) for path in files])


def _relative(path: Path, export: Path) -> str:
    """With forward slashes; bytes of a name that are not UTF-8 become escapes that can be written anywhere."""
    text = path.relative_to(export).as_posix()
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def _walk(export: Path, rejected: list[Rejected]) -> Iterator[Path]:
    """Every plain file below `export`, folders and files by name; links and what cannot be listed are refused.

    Folders may lie deeper in each other than Python may call itself.
    """
    levels = [iter(_listed(export, rejected, export))]
    while levels:
        entry = next(levels[-1], None)
        if entry is None:
            levels.pop()
            continue
        path = Path(entry.path)
        if entry.is_symlink():
            detail = "a symbolic link is not followed: put the file itself into the export"
            rejected.append(Rejected(_relative(path, export), Reason.NOT_AN_IMAGE, detail))
        elif entry.is_dir(follow_symlinks=False):
            levels.append(iter(_listed(path, rejected, export)))
        elif entry.is_file(follow_symlinks=False):
            yield path
        else:
            rejected.append(Rejected(_relative(path, export), Reason.NOT_AN_IMAGE, "neither file nor folder"))


def _listed(folder: Path, rejected: list[Rejected], export: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as listing:
            return sorted(listing, key=lambda entry: os.fsencode(entry.name))
    except OSError:
        rejected.append(Rejected(_relative(folder, export), Reason.UNREADABLE, "the folder cannot be listed"))
        return []


def _sort(files: Iterable[Path], options: Options, export: Path, rejected: list[Rejected]) -> _Sorted:
    found = _Sorted()
    for path in files:
        if str(path) in options.not_scans:
            continue
        try:
            _place(path, found).append(path)
        except OSError:
            rejected.append(Rejected(_relative(path, export), Reason.UNREADABLE, "the file cannot be read"))
    return found


def _place(path: Path, found: _Sorted) -> list[Path]:
    """The list a file belongs to: by its first bytes, and by its name where damage may have taken those."""
    with path.open("rb") as file:
        head = file.read(_HEAD_BYTES)
    name = path.name.lower()
    if name == "dicomdir":
        return found.other
    if head.startswith(b"\x1f\x8b"):
        named = name.endswith(_NIFTI_NAMES) or (name.endswith(".gz") and nifti.looks_like(_unpacked_head(path)))
        return found.nifti if named else found.other
    by_content = (
        (nrrd.looks_like(head), found.nrrd),
        (pictures.looks_like(head), found.pictures),
        (nifti.looks_like(head), found.nifti),
        (looks_like_dicom(head), found.dicom),
    )
    by_name = (
        (name.endswith(_DICOM_NAMES), found.dicom),
        (name.endswith(_NIFTI_NAMES), found.nifti),
        (name.endswith(_NRRD_NAMES), found.nrrd),
    )
    return next((place for fits, place in (*by_content, *by_name) if fits), found.other)


def _unpacked_head(path: Path) -> bytes:
    try:
        with gzip.open(path) as file:
            return file.read(_HEAD_BYTES)
    except (OSError, EOFError, zlib.error):
        return b""
