"""Folders of PNG and JPEG pictures: grey values that were windowed long ago. No HU, no spacing, no patients."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from ctslices.options import PICTURES_PER_BLOCK
from ctslices.quiet import quiet
from ctslices.reject import Reason, Rejected
from ctslices.series import PlaneRef, Series, SourceKind

_MOST_PIXELS = 64 * 10**6
_LONGEST_EDGE = 2**13
_NUMBER = re.compile(r"^(.*?)(\d+)(\D*)$", re.DOTALL)
_BROKEN = (OSError, UnidentifiedImageError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError)


def looks_like(head: bytes) -> bool:
    """Whether a file's first bytes are those of a PNG or a JPEG."""
    return head.startswith((b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff"))


def read(files: Sequence[tuple[Path, str]]) -> tuple[list[Series], list[Rejected]]:
    """One series for each block of 25 consecutive running numbers in a class folder, from (path, relative path).

    The blocks stand in for patients, whom nobody knows: numbers run along patients, so a split by single pictures
    would put slices of one patient on both sides.
    """
    good: list[tuple[Path, str]] = []
    rejected: list[Rejected] = []
    for path, relative in files:
        refused = _judge(path, relative)
        if refused is None:
            good.append((path, relative))
        else:
            rejected.append(refused)
    blocks: dict[tuple[str, str, int], list[PlaneRef]] = defaultdict(list)
    for (folder, prefix), members in _numbered(good).items():
        for number, path, relative in members:
            plane = PlaneRef(str(path), 0, float(number), relative_path=relative)
            blocks[folder, prefix, (number - 1) // PICTURES_PER_BLOCK].append(plane)
    return [_series(key, planes) for key, planes in sorted(blocks.items())], rejected


def label_of(relative: str) -> str:
    """The class of a picture: the name of its folder; "" for one that lies directly in the export."""
    return relative.rpartition("/")[0].rpartition("/")[2]


def read_planes(series: Series, indices: Sequence[int]) -> Iterator[NDArray[np.float32] | Rejected]:
    """float32 [rows, columns], grey 0..255 (no HU), of the pictures at `indices` of `series.planes`, or why not."""
    for index in indices:
        plane = series.planes[index]
        try:
            yield _grey(Path(plane.path))
        except _BROKEN:
            yield Rejected(plane.relative_path, Reason.UNDECODABLE, "the picture cannot be decoded")


def _grey(path: Path) -> NDArray[np.float32]:
    """RGB first, so that palettes and alpha fall away alike; then Pillow's L, which is ITU-R 601-2 luma."""
    with quiet(), Image.open(path) as image:
        if image.mode.startswith(("I", "F")):
            deep = np.asarray(image, np.float32)
            return deep * np.float32(255 / 65535)
        return np.asarray(image.convert("RGB").convert("L"), np.float32)


def _judge(path: Path, relative: str) -> Rejected | None:
    try:
        with quiet(), Image.open(path) as image:
            width, height = image.size
            if getattr(image, "n_frames", 1) != 1:
                return Rejected(relative, Reason.NOT_AN_IMAGE, "the picture is animated")
            if image.mode == "F" or width * height > _MOST_PIXELS or max(width, height) > _LONGEST_EDGE:
                return Rejected(relative, Reason.NOT_AN_IMAGE, "the picture is not one of a slice")
    except _BROKEN:
        return Rejected(relative, Reason.UNREADABLE, "the picture's header cannot be read")
    return None


def _numbered(files: Sequence[tuple[Path, str]]) -> dict[tuple[str, str], list[tuple[int, Path, str]]]:
    """(folder, name without its number): pictures by running number, the last number in the name.

    Where a name has none, or two names have the same, the order of names counts them from 1.
    """
    groups: dict[tuple[str, str], list[tuple[int | None, Path, str]]] = defaultdict(list)
    for path, relative in files:
        folder = relative.rpartition("/")[0]
        found = _NUMBER.match(Path(relative).stem)
        prefix, number = (found[1], int(found[2])) if found else ("", None)
        groups[folder, prefix].append((number, path, relative))
    numbered: dict[tuple[str, str], list[tuple[int, Path, str]]] = {}
    for key, members in groups.items():
        numbers = [number for number, _, _ in members]
        if None in numbers or len(set(numbers)) != len(numbers) or max(n or 0 for n in numbers) >= 2**24:
            ordered = sorted(members, key=lambda member: (member[0] is not None, member[0] or 0, member[2]))
            numbered[key] = [(k, path, relative) for k, (_, path, relative) in enumerate(ordered, start=1)]
        else:
            numbered[key] = [(number or 0, path, relative) for number, path, relative in members]
    return numbered


def _series(key: tuple[str, str, int], planes: list[PlaneRef]) -> Series:
    folder, prefix, block = key
    ordered = tuple(sorted(planes, key=lambda plane: (plane.position_mm, plane.relative_path)))
    return Series(
        kind=SourceKind.PICTURES,
        raw_patient=None,
        raw_series=f"{folder}/{prefix}#{block}",
        relative_paths=tuple(plane.relative_path for plane in ordered),
        planes=ordered,
        geometry=None,
    )
