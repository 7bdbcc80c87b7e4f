"""Parts to a store: the order, the columns, the manifest. Pixels are streamed; memory holds no series whole."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ctslices.files import write_whole
from ctslices.identity import Owned
from ctslices.labels import Table, label_of
from ctslices.manifest import (
    SHARD_SLICES,
    Manifest,
    PatientRecord,
    SeriesRecord,
    ShardRecord,
    Unit,
    Values,
)
from ctslices.part import Part, Suspect, read_part, read_pixels
from ctslices.reject import Rejected
from ctslices.shards import Columns, shard_name, write_shard
from ctslices.split import side
from ctslices.store import MANIFEST, manifest_bytes

STREAM_SLICES = 512
"""Slices copied at a time."""


class MixedValuesError(ValueError):
    """An export holds scans in HU and pictures without: they cannot lie in one store."""


@dataclass(slots=True)
class Gathered:
    """All of a store but its pixels, in the store's order."""

    names: list[str] = field(default_factory=list)
    """Of the parts that hold slices."""
    series: list[SeriesRecord] = field(default_factory=list)
    patients: list[str] = field(default_factory=list)
    positions: list[NDArray[np.float32]] = field(default_factory=list)
    labels: list[list[str | None]] = field(default_factory=list)
    values: set[Values] = field(default_factory=set)
    known_patients: bool = True
    range: tuple[int, int] = (0, 0)
    dropped_by_region: dict[str, int] = field(default_factory=dict)
    rejected: list[Rejected] = field(default_factory=list)
    suspects: list[Suspect] = field(default_factory=list)

    @property
    def slices(self) -> int:
        """Slices of all parts."""
        return sum(record.slices for record in self.series)

    @property
    def unit(self) -> Unit:
        """`patient` where every slice has one."""
        return "patient" if self.known_patients else "image"

    @property
    def label_names(self) -> tuple[str, ...]:
        """The names that occur, sorted."""
        return tuple(sorted({name for names in self.labels for name in names if name is not None}))


def gather(work: Path, owned: Sequence[tuple[Owned, str]], labels: Table | None) -> Gathered:
    """Read the records of all parts (pairs of owner and part name), in the order of the pseudonyms."""
    found = Gathered()
    for owner, name in sorted(owned, key=lambda pair: (pair[0].patient_id, pair[0].series_id, pair[1])):
        part = read_part(work, name)
        if part is None:
            raise FileNotFoundError(f"a finished part is gone from {work.name}: run again")
        for region, count in part.dropped_by_region.items():
            found.dropped_by_region[region] = found.dropped_by_region.get(region, 0) + count
        found.rejected += part.refusals()
        found.suspects += part.suspects
        if part.record is not None:
            _add(found, owner, name, part, part.record, labels)
    return found


def _add(found: Gathered, owner: Owned, name: str, part: Part, record: SeriesRecord, labels: Table | None) -> None:
    if not found.patients or found.patients[-1] != owner.patient_id:
        found.patients.append(owner.patient_id)
    found.range = part.value_range if not found.names else _wider(found.range, part.value_range)
    found.names.append(name)
    found.series.append(record.model_copy(update={"patient": len(found.patients) - 1}))
    found.positions.append(np.asarray(part.position_mm, np.float32))
    found.labels.append(_labels(owner, part, labels))
    found.values.add(part.values)
    found.known_patients &= owner.patient is not None


def _wider(one: tuple[int, int], other: tuple[int, int]) -> tuple[int, int]:
    return (min(one[0], other[0]), max(one[1], other[1]))


def _labels(owner: Owned, part: Part, table: Table | None) -> list[str | None]:
    of_folders: Sequence[str | None] = part.labels or [None] * len(part.files)
    if table is None:
        return list(of_folders)
    series = owner.series.raw_series
    said = [label_of(table, owner.raw_patient, series, file) for file in part.files]
    return [row if row is not None else folder for row, folder in zip(said, of_folders, strict=True)]


def write(
    folder: Path, work: Path, found: Gathered, size: int, holdout: float, split_seed: int, **manifest: object
) -> Manifest:
    """Write shards and manifest into `folder` (which is new) and return the manifest.

    `manifest` holds the fields that are not known from the parts. MixedValuesError for HU and grey values together.
    """
    if len(found.values) > 1:
        raise MixedValuesError(
            "got scans in HU and pictures without HU in one export, wanted one of them: prepare the pictures' folder "
            "and the scans' folder into two stores"
        )
    names = found.label_names
    columns = _columns(found, names)
    shards = []
    blocks = _pixels(work, found)
    for number, start in enumerate(range(0, found.slices, SHARD_SLICES)):
        end = min(start + SHARD_SLICES, found.slices)
        cut = Columns(*(getattr(columns, c)[start:end] for c in ("patient", "series", "position_mm", "label")))
        digest = write_shard(folder / shard_name(number), size, cut, blocks.take(end - start))
        shards.append(ShardRecord(file=shard_name(number), slices=end - start, sha256=digest))
    result = Manifest.model_validate(
        {
            "size": size,
            "unit": found.unit,
            "values": next(iter(found.values), "hu"),
            "kinds": tuple(sorted({record.kind for record in found.series})),
            "slices": found.slices,
            "value_range": found.range,
            "labels": names,
            "patients": _patients(found, holdout, split_seed),
            "series": tuple(found.series),
            "shards": tuple(shards),
            "holdout": holdout,
            "split_seed": split_seed,
            "dropped_by_region": dict(sorted(found.dropped_by_region.items())),
            **manifest,
        }
    )
    write_whole(folder / MANIFEST, manifest_bytes(result), mode=0o600)
    return result


def _columns(found: Gathered, names: tuple[str, ...]) -> Columns:
    counts = [record.slices for record in found.series]
    index: dict[str | None, int] = {None: -1} | {name: k for k, name in enumerate(names)}
    return Columns(
        patient=np.repeat(np.array([r.patient for r in found.series], np.int32), counts),
        series=np.repeat(np.arange(len(counts), dtype=np.int32), counts),
        position_mm=np.concatenate(found.positions) if counts else np.empty(0, np.float32),
        label=np.array([index[name] for labels in found.labels for name in labels], np.int16),
    )


def _patients(found: Gathered, holdout: float, split_seed: int) -> tuple[PatientRecord, ...]:
    series = np.bincount([r.patient for r in found.series], minlength=len(found.patients)).tolist()
    slices = np.zeros(len(found.patients), np.int64)
    for record in found.series:
        slices[record.patient] += record.slices
    return tuple(
        PatientRecord(id=identity, split=side(identity, holdout, split_seed), series=s, slices=int(n))
        for identity, s, n in zip(found.patients, series, slices, strict=True)
    )


class _Stream:
    """The pixels of all parts, one after the other, in blocks that end where a shard ends."""

    def __init__(self, blocks: Iterator[NDArray[np.int16]]) -> None:
        self._blocks = blocks
        self._rest: NDArray[np.int16] | None = None

    def take(self, slices: int) -> Iterator[NDArray[np.int16]]:
        """Blocks that add up to the next `slices`."""
        while slices:
            block = self._rest if self._rest is not None else next(self._blocks)
            head, tail = block[:slices], block[slices:]
            self._rest = tail if len(tail) else None
            slices -= len(head)
            yield head


def _pixels(work: Path, found: Gathered) -> _Stream:
    def blocks() -> Iterator[NDArray[np.int16]]:
        for name in found.names:
            pixels = read_pixels(work, name)
            for start in range(0, len(pixels), STREAM_SLICES):
                yield pixels[start : start + STREAM_SLICES]

    return _Stream(blocks())
