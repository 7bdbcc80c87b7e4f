"""The slice store: open, check, look. A folder of safetensors shards and a manifest (docs/store-format.md)."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from ctslices.files import write_whole
from ctslices.manifest import (
    FORMAT_VERSION,
    SHARD_SLICES,
    Manifest,
    PatientRecord,
    SeriesRecord,
    ShardRecord,
    Split,
    Unit,
    Values,
)
from ctslices.series import AIR_HU
from ctslices.shards import Columns, ShardError, file_sha256, map_shard, shard_name, write_shard
from ctslices.split import side
from ctslices.version import VERSION
from ctslices.window import to_unit

MANIFEST = "manifest.json"
_AGAIN = "prepare the store again, or copy it again from where it is whole"


class StoreError(ValueError):
    """A folder is not a whole slice store: says what was got, what was wanted, and the cure."""


class Slices:
    """The pixels of a store over all its shards, memory-mapped: int16 [n, size, size], read-only.

    Takes an integer, a slice or an integer array, as an array's first axis does; `numpy.asarray` reads everything.
    """

    def __init__(self, shards: Sequence[NDArray[np.int16]], size: int) -> None:
        self._shards = list(shards)
        self._starts = np.cumsum([0, *(len(s) for s in shards)])
        self.shape = (int(self._starts[-1]), size, size)
        self.dtype = np.dtype(np.int16)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, index: int | slice | NDArray[Any] | Sequence[int]) -> NDArray[np.int16]:
        """int16 [size, size] for an integer, else int16 [k, size, size], a copy in memory."""
        if isinstance(index, int | np.integer):
            if not -len(self) <= index < len(self):
                raise IndexError(f"slice index must lie in {-len(self)}..{len(self) - 1}: got {index}")
            one: NDArray[np.int16] = self._take(np.array([index % len(self)]))[0]
            return one
        return self._take(np.arange(len(self))[index])

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        return self[:].astype(dtype or self.dtype, copy=False)

    def _take(self, indices: NDArray[np.int64]) -> NDArray[np.int16]:
        out = np.empty((len(indices), *self.shape[1:]), np.int16)
        where = np.searchsorted(self._starts, indices, side="right") - 1
        for number in np.unique(where):
            mine = where == number
            out[mine] = self._shards[number][indices[mine] - self._starts[number]]
        return out


@dataclass(frozen=True)
class SliceStore:
    """A checked, memory-mapped store. Get one by `SliceStore.open`."""

    path: Path
    manifest: Manifest
    hu: Slices
    """int16 [n, size, size], memory-mapped: HU, or grey values 0..255 of a store of pictures."""
    patient: NDArray[np.int32]
    """int32 [n], index into `manifest.patients`."""
    series: NDArray[np.int32]
    """int32 [n], index into `manifest.series`."""
    position_mm: NDArray[np.float32]
    """float32 [n], along the series' normal; pictures: their running number."""
    label: NDArray[np.int16]
    """int16 [n], index into `labels`, -1 where none."""

    @classmethod
    def open(cls, path: Path | str, verify: bool = True) -> SliceStore:
        """Read and check the store at `path`; StoreError when it is not whole.

        `verify` also compares every shard's SHA-256 and value range (reads all bytes once).
        """
        path = Path(path)
        manifest = read_manifest(path)
        shards = [_open_shard(path, record, manifest.size, verify) for record in manifest.shards]
        columns = {
            name: np.concatenate([np.asarray(s[name]) for s in shards]) if shards else np.empty(0, dtype)
            for name, dtype in (("patient", "<i4"), ("series", "<i4"), ("position_mm", "<f4"), ("label", "<i2"))
        }
        store = cls(path=path, manifest=manifest, hu=Slices([s["hu"] for s in shards], manifest.size), **columns)
        _check_columns(store)
        if verify:
            _check_values(manifest, [s["hu"] for s in shards])
        return store

    def __len__(self) -> int:
        return len(self.hu)

    @property
    def size(self) -> int:
        """Side of a slice in pixels."""
        return self.manifest.size

    @property
    def unit(self) -> Unit:
        """What is never on both sides of anything: a patient, or (where no patient is known) an image."""
        return self.manifest.unit

    @property
    def labels(self) -> tuple[str, ...]:
        """Names of the labels; `label` holds indices into them."""
        return self.manifest.labels

    def indices(self, split: Split | None = None) -> NDArray[np.int64]:
        """int64 [k], ascending: the slices on that side of the split; all for None."""
        if split is None:
            return np.arange(len(self), dtype=np.int64)
        if split not in ("train", "holdout"):
            raise ValueError(f"split must be 'train', 'holdout' or None: got {split!r}")
        sides = np.array([p.split == split for p in self.manifest.patients], bool)
        return np.flatnonzero(sides[self.patient]).astype(np.int64) if len(self) else np.empty(0, np.int64)

    def window(
        self, name: str, split: Split | None = None, indices: NDArray[np.int64] | None = None
    ) -> NDArray[np.float32]:
        """float32 [k, 1, size, size] in [-1, 1]: the slices of a split (or at `indices`) in one window.

        `name` is full, lung, mediastinum or bone. A store of pictures has no HU, its values were windowed before they
        were stored: it takes `full` and `grey`, which are the same there, and refuses the others.
        """
        chosen = self.indices(split) if indices is None else indices
        return to_unit(self.hu[chosen], self._window_name(name))[:, None]

    def _window_name(self, name: str) -> str:
        grey = self.manifest.values == "grey"
        if grey and name in ("full", "grey"):
            return "grey"
        if grey or name == "grey":
            has, wanted = ("grey values", "'full' or 'grey'") if grey else ("HU", "full, lung, mediastinum or bone")
            raise StoreError(f"window {name!r} does not fit a store of {has}: use {wanted}")
        return name


def read_manifest(path: Path) -> Manifest:
    """The checked manifest of the store at `path`; StoreError when it is missing, of another version or malformed."""
    try:
        text = (path / MANIFEST).read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        raise StoreError(f"not a slice store: it has no {MANIFEST}; make one with `fedscan prepare`") from None
    try:
        data = json.loads(text)
    except (ValueError, RecursionError):
        raise StoreError(f"{MANIFEST} is not JSON ({len(text)} bytes): {_AGAIN}") from None
    version = data.get("format_version") if isinstance(data, dict) else None
    if version != FORMAT_VERSION:
        raise StoreError(
            f"format_version: got {version!r}, wanted {FORMAT_VERSION}: read it with the ctslices that wrote it, "
            "or prepare it again"
        )
    try:
        return Manifest.model_validate_json(text)
    except ValidationError as error:
        where = "; ".join(".".join(map(str, e["loc"])) + ": " + e["msg"] for e in error.errors()[:3])
        raise StoreError(f"{MANIFEST} does not hold what the format says ({where}): {_AGAIN}") from None


def _open_shard(path: Path, record: ShardRecord, size: int, verify: bool) -> dict[str, NDArray[Any]]:
    file = path / record.file
    if not file.is_file():
        raise StoreError(f"{record.file} is missing: {_AGAIN}")
    if verify and (got := file_sha256(file)) != record.sha256:
        raise StoreError(f"{record.file}: SHA-256 got {got[:12]}..., wanted {record.sha256[:12]}...: {_AGAIN}")
    try:
        arrays = map_shard(file, size)
    except ShardError as error:
        raise StoreError(f"{record.file}: {error}: {_AGAIN}") from None
    if len(arrays["label"]) != record.slices:
        raise StoreError(f"{record.file}: got {len(arrays['label'])} slices, wanted {record.slices}: {_AGAIN}")
    return arrays


def _check_columns(store: SliceStore) -> None:
    manifest = store.manifest
    limits: dict[str, tuple[NDArray[Any], int, int]] = {
        "patient": (store.patient, 0, len(manifest.patients)),
        "series": (store.series, 0, len(manifest.series)),
        "label": (store.label, -1, len(manifest.labels)),
    }
    if len(store) != manifest.slices:
        raise StoreError(f"slices: got {len(store)} in the shards, wanted {manifest.slices}: {_AGAIN}")
    if any(not 0 <= s.patient < len(manifest.patients) for s in manifest.series):
        raise StoreError(f"a series names a patient that is not there: {_AGAIN}")
    for name, (values, low, high) in limits.items():
        if len(values) and not low <= values.min() <= values.max() < high:
            got = f"{values.min()}..{values.max()}"
            raise StoreError(f"{name}: got {got}, wanted {low}..{high - 1}: {_AGAIN}")
    owner = np.array([s.patient for s in manifest.series], np.int32)
    if len(store) and not np.array_equal(owner[store.series], store.patient):
        raise StoreError(f"slices and manifest differ in which patient a series belongs to: {_AGAIN}")
    counts = np.bincount(store.series, minlength=len(manifest.series))
    if counts.tolist() != [s.slices for s in manifest.series]:
        raise StoreError(f"slices and manifest differ in the number of slices of a series: {_AGAIN}")
    _check_patients(store)
    if not np.isfinite(store.position_mm).all():
        raise StoreError(f"position_mm: got a value that is not finite: {_AGAIN}")


def _check_patients(store: SliceStore) -> None:
    """What a bound for each patient stands on: nobody is there twice, and slices are counted as they are."""
    patients = store.manifest.patients
    if len({patient.id for patient in patients}) != len(patients):
        raise StoreError(f"two patients have one pseudonym: {_AGAIN}")
    if np.bincount(store.patient, minlength=len(patients)).tolist() != [patient.slices for patient in patients]:
        raise StoreError(f"slices and manifest differ in the number of slices of a patient: {_AGAIN}")


def _check_values(manifest: Manifest, shards: Sequence[NDArray[np.int16]]) -> None:
    got = value_range(shards)
    lowest, highest = (0, 255) if manifest.values == "grey" else (AIR_HU, 32767)
    if got != manifest.value_range or not lowest <= got[0] <= got[1] <= highest:
        raise StoreError(
            f"values: got {got[0]}..{got[1]}, wanted {manifest.value_range[0]}..{manifest.value_range[1]} "
            f"within {lowest}..{highest}: {_AGAIN}"
        )


def value_range(blocks: Sequence[NDArray[np.int16]]) -> tuple[int, int]:
    """Smallest and largest value over all blocks; (0, 0) when there is none."""
    filled = [b for b in blocks if b.size]
    if not filled:
        return (0, 0)
    return (min(int(b.min()) for b in filled), max(int(b.max()) for b in filled))


def write_store(
    path: Path,
    hu: NDArray[np.int16],
    patient: NDArray[np.integer[Any]],
    *,
    label: NDArray[np.integer[Any]] | None = None,
    labels: tuple[str, ...] = (),
    position_mm: NDArray[np.floating[Any]] | None = None,
    splits: Sequence[Split] | None = None,
    unit: Unit = "patient",
    values: Values = "hu",
    field_mm: float | None = 360.0,
    holdout: float = 0.2,
    split_seed: int = 0,
    shard_slices: int = SHARD_SLICES,
) -> Path:
    """A store from arrays, one series a patient, for studies and tests: scans go through `prepare`.

    `hu` int16 [n, s, s]; `patient` int [n], numbers from 0 without gaps; `splits` one side a patient (default: the
    rule of `split.side`). Pseudonyms are made from the numbers and protect nobody. Returns `path`.
    """
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    order = np.argsort(patient, kind="stable")
    owner = np.asarray(patient)[order].astype(np.int32)
    counts = np.bincount(owner)
    n, size = hu.shape[0], hu.shape[1]
    columns = Columns(
        patient=owner,
        series=owner,
        position_mm=np.asarray(np.zeros(n) if position_mm is None else position_mm, np.float32)[order],
        label=np.asarray(np.full(n, -1) if label is None else label, np.int16)[order],
    )
    kind: Literal["nifti", "pictures"] = "pictures" if values == "grey" else "nifti"
    ids = [hashlib.sha256(f"patient {k}".encode()).hexdigest()[:32] for k in range(len(counts))]
    sides = splits or [side(identity, holdout, split_seed) for identity in ids]
    shards = []
    for number, start in enumerate(range(0, n, shard_slices)):
        part = slice(start, start + shard_slices)
        cut = Columns(columns.patient[part], columns.series[part], columns.position_mm[part], columns.label[part])
        digest = write_shard(path / shard_name(number), size, cut, [hu[order[part]]])
        shards.append(ShardRecord(file=shard_name(number), slices=len(cut.patient), sha256=digest))
    manifest = Manifest(
        ctslices_version=VERSION,
        size=size,
        field_mm=field_mm if values == "hu" else None,
        unit=unit,
        values=values,
        kinds=(kind,),
        slices=n,
        value_range=value_range([hu]),
        labels=labels,
        patients=tuple(
            PatientRecord(id=i, split=s, series=1, slices=int(c)) for i, s, c in zip(ids, sides, counts, strict=True)
        ),
        series=tuple(
            SeriesRecord(id=i, patient=k, kind=kind, slices=int(c))
            for k, (i, c) in enumerate(zip(ids, counts, strict=True))
        ),
        shards=tuple(shards),
        holdout=holdout,
        split_seed=split_seed,
        key_fingerprint=hashlib.sha256(b"no key").hexdigest(),
    )
    write_whole(path / MANIFEST, manifest_bytes(manifest), mode=0o600)
    return path


def manifest_bytes(manifest: Manifest) -> bytes:
    """The one form in which a manifest is written: JSON, indented, fields in the order of the class."""
    return (json.dumps(manifest.model_dump(mode="json"), indent=1, allow_nan=False) + "\n").encode()
