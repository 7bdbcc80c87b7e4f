"""What a demo's report tells, gathered from the files that the demo left; nothing is remembered from the run itself."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from fedscan.cli.demo_steps import PICTURES

if TYPE_CHECKING:
    from ctslices.store import SliceStore
    from fedscan.cli.demo_privacy import PrivateFacts
    from fedscan.evaluation.frechet import FdLite112
    from fedscan.evaluation.lungs import ChestCheck
    from fedscan.federation.records import RoundRecord
    from fedscan.plan import Plan

Hu = NDArray[np.int16]

KEYS = ("start", "private", "plain")
"""Of the three results, in the order of PICTURES."""

BLUR_PIXELS = 2.0
TILE_PIXELS = 16


@dataclass(frozen=True)
class Hospital:
    """One hospital: its export and what became of it."""

    name: str
    scanner: str
    export_files: int
    export_bytes: int
    patients: int
    series: int
    slices: int
    train_slices: int
    labels: dict[str, int]
    rejected: dict[str, int]
    dropped_by_region: dict[str, int]


@dataclass(frozen=True)
class Crossing:
    """Tensors that crossed one hospital's wall in one direction."""

    messages: int
    size_bytes: int
    tensors: int
    """In all messages together."""
    kinds: tuple[tuple[str, tuple[int, ...]], ...]
    """Each different (name, shape) that occurred, sorted."""


@dataclass(frozen=True)
class Wall:
    """What one hospital's own wall.jsonl says."""

    site: str
    received: Crossing
    sent: Crossing
    channels: dict[str, tuple[int, int]]
    """channel and topic: (messages, payload bytes) of everything that the site's job process sent."""

    @property
    def all_sent_bytes(self) -> int:
        """Payload bytes of everything that was sent, tensors or not."""
        return sum(size for _, size in self.channels.values())


@dataclass(frozen=True)
class Facts:
    """All of it."""

    hospitals: tuple[Hospital, ...]
    plan: Plan
    parameters: dict[str, tuple[int, ...]]
    """Names and shapes of the model file's tensors."""
    rounds: tuple[RoundRecord, ...]
    walls: tuple[Wall, ...]
    real: Hu
    """int16 [64, s, s], drawn evenly from the hospitals."""
    synthetic: Hu
    chest: ChestCheck
    controls: dict[str, tuple[Hu, ChestCheck]]
    """The synthetic slices spoilt in a way that the chest check must see, and its verdict on them."""
    distance: FdLite112
    private: PrivateFacts
    seconds: dict[str, float]

    @property
    def every_wall(self) -> tuple[Wall, ...]:
        """Of both runs."""
        return (*self.walls, *self.private.walls)

    @property
    def tensors_crossed(self) -> int:
        """Over all walls, in both directions, of both runs."""
        return sum(wall.received.tensors + wall.sent.tensors for wall in self.every_wall)

    @property
    def strange_tensors(self) -> list[str]:
        """Names of what crossed a wall without being, by name and shape, a parameter of the network: wanted none."""
        crossed = {kind for wall in self.every_wall for kind in (*wall.received.kinds, *wall.sent.kinds)}
        return sorted(name for name, shape in crossed if self.parameters.get(name) != shape)


def gather(out: Path, hospitals: Sequence[str], seconds: Mapping[str, float], count: int = 64) -> Facts:
    """Read a finished demo in `out`. Raises OSError or ValueError where a part of it is missing or damaged."""
    from ctslices.store import SliceStore
    from fedscan.cli.demo_privacy import gather_private, read_slices
    from fedscan.evaluation.lungs import chest_check
    from fedscan.federation import records
    from fedscan.training.model_file import load_model

    stores = {name: SliceStore.open(out / "stores" / name) for name in hospitals}
    drawn = {key: read_slices(out / folder) for key, folder in zip(KEYS, PICTURES, strict=True)}
    synthetic = drawn["plain"]
    model = load_model(out / "run" / "model.safetensors")
    real_all = np.concatenate([store.hu[:] for store in stores.values()])
    distances = _distances(drawn, list(stores.values()), model.plan.window)
    return Facts(
        hospitals=tuple(_hospital(out / "exports" / name, name, store) for name, store in stores.items()),
        plan=model.plan,
        parameters={name: tuple(tensor.shape) for name, tensor in sorted(model.weights.items())},
        rounds=tuple(records.effective_rounds(out / "run" / "rounds.jsonl")),
        walls=tuple(read_wall(out / "run" / "sites" / name / "wall.jsonl", name) for name in hospitals),
        real=_evenly([store.hu[:] for store in stores.values()], count),
        synthetic=synthetic,
        chest=chest_check(synthetic, real_all),
        controls={name: (hu, chest_check(hu, real_all)) for name, hu in controls(synthetic).items()},
        distance=distances["plain"],
        private=gather_private(out, hospitals, real_all, drawn, distances, model.plan),
        seconds=dict(seconds),
    )


def controls(hu: Hu) -> dict[str, Hu]:
    """Spoilt copies of slices int16 [n, s, s]: blurred, and cut into tiles that change places."""
    sigma = (0.0, BLUR_PIXELS, BLUR_PIXELS)
    blurred = np.rint(ndimage.gaussian_filter(hu.astype(np.float32), sigma)).astype(np.int16)
    n, size, _ = hu.shape
    side = size // TILE_PIXELS
    tiles = hu.reshape(n, side, TILE_PIXELS, side, TILE_PIXELS).swapaxes(2, 3).reshape(n, side**2, TILE_PIXELS**2)
    mixed = np.random.default_rng(0).permuted(np.arange(side**2)[None].repeat(n, 0), axis=1)
    moved = np.take_along_axis(tiles, mixed[:, :, None], axis=1).reshape(n, side, side, TILE_PIXELS, TILE_PIXELS)
    return {"blurred": blurred, "shuffled": moved.swapaxes(2, 3).reshape(n, size, size)}


def read_wall(path: Path, site: str) -> Wall:
    """The totals of a site's wall.jsonl. Raises ValueError where the site noted nothing."""
    from fedscan.federation import wall

    entries = wall.read(path)
    if not entries:
        raise ValueError(f"site {site} has no {path.name}, or it is empty: what crossed its wall is not known")
    channels: dict[str, list[int]] = defaultdict(lambda: [0, 0])
    for entry in entries:
        for channel, total in entry.get("channels", {}).items():
            channels[channel][0] += int(total["messages"])
            channels[channel][1] += int(total["bytes"])
    tensors = [entry for entry in entries if entry.get("kind") == "tensors"]
    return Wall(
        site=site,
        received=_crossing(entry for entry in tensors if entry["direction"] == "in"),
        sent=_crossing(entry for entry in tensors if entry["direction"] == "out"),
        channels={name: (count, size) for name, (count, size) in sorted(channels.items())},
    )


def _crossing(entries: Any) -> Crossing:
    messages = size = tensors = 0
    kinds: set[tuple[str, tuple[int, ...]]] = set()
    for entry in entries:
        messages += 1
        size += int(entry["bytes"])
        tensors += len(entry["tensors"])
        kinds |= {(name, tuple(shape)) for name, shape in entry["tensors"].items()}
    return Crossing(messages, size, tensors, tuple(sorted(kinds)))


def _hospital(export: Path, name: str, store: SliceStore) -> Hospital:
    from ctslices.phantom import PROFILES

    files = [path for path in export.rglob("*") if path.is_file()]
    manifest = store.manifest
    labels = {label: int((store.label == index).sum()) for index, label in enumerate(manifest.labels)}
    profile = {profile.name: profile for profile in PROFILES}[name]
    return Hospital(
        name=name,
        scanner=f"{profile.manufacturer} {profile.scanner}, {profile.kvp:.0f} kV, kernel {profile.kernel}",
        export_files=len(files),
        export_bytes=sum(path.stat().st_size for path in files),
        patients=len(manifest.patients),
        series=len(manifest.series),
        slices=manifest.slices,
        train_slices=len(store.indices("train")),
        labels=labels,
        rejected=dict(manifest.rejected),
        dropped_by_region={region: n for region, n in manifest.dropped_by_region.items() if n},
    )


def _evenly(parts: Sequence[Hu], count: int) -> Hu:
    """`count` slices, in turn from each part, evenly over its length."""
    shares = [count // len(parts) + (index < count % len(parts)) for index in range(len(parts))]
    picked = [
        part[np.linspace(0, len(part) - 1, share).round().astype(int)]
        for part, share in zip(parts, shares, strict=True)
    ]
    mixed = np.random.default_rng(1).permutation(count)
    return np.concatenate(picked)[mixed]


def _distances(drawn: Mapping[str, Hu], stores: Sequence[SliceStore], window: str) -> dict[str, FdLite112]:
    """FD-lite112 of each with its floor; patients of all stores are kept apart in the floor's divisions.

    One seed: each is compared with the same real slices.
    """
    import torch

    from ctslices.window import to_unit
    from fedscan.evaluation.features import FeatureExtractor, extract
    from fedscan.evaluation.frechet import fd_lite112

    extractor = FeatureExtractor()
    owners, seen = [], 0
    for store in stores:
        owners += [int(patient) + seen for patient in store.patient]
        seen += len(store.manifest.patients)

    def features(hu: Hu) -> torch.Tensor:
        return extract(extractor, torch.from_numpy(to_unit(hu, window)[:, None]))

    real = features(np.concatenate([store.hu[:] for store in stores]))
    return {key: fd_lite112(features(hu), real, seed=0, groups=owners) for key, hu in drawn.items()}
