"""fedscan.evaluation.frechet: sums over sites, distances against torchmetrics and closed forms, the floor."""

import csv
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.ndimage import gaussian_filter
from torch import Tensor
from torchmetrics.image.fid import FrechetInceptionDistance
from torchmetrics.image.kid import KernelInceptionDistance

from fedscan.evaluation.features import FeatureExtractor, extract
from fedscan.evaluation.frechet import (
    FeatureSums,
    fd_lite112,
    floor,
    frechet_distance,
    kernel_distance,
)


def features(n: int, d: int = 112, seed: int = 0, shift: float = 0.0) -> Tensor:
    g = torch.Generator().manual_seed(seed)
    return torch.randn(n, d, generator=g) @ torch.randn(d, d, generator=torch.Generator().manual_seed(99)) / 10 + shift


def distance(a: Tensor, b: Tensor) -> float:
    return frechet_distance(FeatureSums.of(a), FeatureSums.of(b))


class OnBytes(torch.nn.Module):
    """The extractor as torchmetrics wants it: uint8 in."""

    def __init__(self) -> None:
        super().__init__()
        self.extractor = FeatureExtractor()

    def forward(self, x: Tensor) -> Tensor:
        return self.extractor(x.float() / 255 * 2 - 1)


def test_the_same_value_as_torchmetrics() -> None:
    g = torch.Generator().manual_seed(0)
    real = torch.randint(0, 256, (150, 1, 64, 64), generator=g, dtype=torch.uint8)
    other = (real.float() * 0.9).to(torch.uint8)[torch.randperm(150, generator=g)[:140]]
    module = OnBytes()
    metric = FrechetInceptionDistance(feature=module, input_img_size=(1, 64, 64))
    with pytest.warns(UserWarning, match="will save all extracted features"):
        kernel = KernelInceptionDistance(feature=module, subsets=1, subset_size=140)
    for judge in (metric, kernel):
        judge.update(real[:140], real=True)
        judge.update(other, real=False)
    a, b = (extract(module.extractor, x.float() / 255 * 2 - 1) for x in (real[:140], other))
    assert distance(a, b) == pytest.approx(float(metric.compute()), rel=1e-3)
    assert kernel_distance(a, b) == pytest.approx(float(kernel.compute()[0]), rel=1e-3)


def test_closed_forms() -> None:
    """Diagonal Gaussians: |mu_a - mu_b|^2 + sum (s_a - s_b)^2."""

    def exact(mean: float, deviations: list[float]) -> FeatureSums:
        n, d = 1000, len(deviations)
        mu, c = torch.full((d,), mean, dtype=torch.float64), torch.tensor(deviations, dtype=torch.float64) ** 2
        return FeatureSums(n, n * mu, torch.diag(c) * (n - 1) + n * torch.outer(mu, mu))

    a, b = exact(0.0, [1.0, 2.0, 0.0]), exact(3.0, [0.5, 5.0, 0.0])
    assert frechet_distance(a, b) == pytest.approx(3 * 9 + 0.25 + 9)
    assert frechet_distance(b, a) == pytest.approx(frechet_distance(a, b))
    assert frechet_distance(a, a) == pytest.approx(0.0, abs=1e-9)


def test_fewer_slices_than_features() -> None:
    a, b = features(20, seed=1), features(25, seed=2)
    assert np.isfinite(distance(a, b))
    assert distance(a, b) == pytest.approx(distance(b, a), rel=1e-6)
    assert distance(a, a) == pytest.approx(0.0, abs=1e-4)


def test_sums_of_sites_are_the_sums_of_all() -> None:
    x, y = features(300), features(280, seed=5, shift=0.1)
    parts = [FeatureSums.of(part) for part in (x[:10], x[10:200], x[200:])]
    whole = FeatureSums.of(x)
    added = parts[2] + parts[0] + parts[1]
    assert added.n == whole.n == 300
    torch.testing.assert_close(added.outer, whole.outer)
    assert frechet_distance(added, FeatureSums.of(y)) == pytest.approx(distance(x, y), rel=1e-9)
    covariance = np.cov(x.double().numpy().T)
    np.testing.assert_allclose(whole.covariance().numpy(), covariance, atol=1e-9)


def test_sums_travel_whole_or_are_refused() -> None:
    sums = FeatureSums.of(features(50, d=7))
    back = FeatureSums.from_bytes(sums.to_bytes())
    assert back.n == 50
    assert torch.equal(back.total, sums.total)
    assert torch.equal(back.outer, sums.outer)
    with pytest.raises(ValueError, match="not safetensors"):
        FeatureSums.from_bytes(b"pickle")
    with pytest.raises(ValueError, match="not symmetric"):
        FeatureSums.from_bytes(FeatureSums(50, sums.total, sums.outer.triu() + 1).to_bytes())
    with pytest.raises(ValueError, match="finite"):
        FeatureSums(50, sums.total * float("nan"), sums.outer)
    with pytest.raises(ValueError, match="float64"):
        FeatureSums(50, sums.total.float(), sums.outer)
    with pytest.raises(ValueError, match="n must lie"):
        FeatureSums(-1, sums.total, sums.outer)
    with pytest.raises(ValueError, match="do not add"):
        sums + FeatureSums.of(features(5, d=8))
    with pytest.raises(ValueError, match="at least 2 slices, got 1"):
        FeatureSums.of(features(1)).covariance()


def test_kernel_distance_has_no_bias_by_n() -> None:
    near = [kernel_distance(features(40, seed=2 * i), features(40, seed=2 * i + 1)) for i in range(40)]
    assert abs(np.mean(near)) < 3 * np.std(near) / np.sqrt(40)
    assert min(near) < 0
    assert kernel_distance(features(40), features(40, seed=1, shift=0.5)) > 10 * max(near)


def test_floor_keeps_groups_apart() -> None:
    g = torch.Generator().manual_seed(0)
    patients = [i // 20 for i in range(800)]
    own = torch.randn(40, 8, generator=g).repeat_interleave(20, 0)
    real = own + 0.2 * torch.randn(800, 8, generator=g)
    alone, apart = floor(real, 200, 0), floor(real, 200, 0, patients)
    assert apart.value > 3 * alone.value  # neighbours on both sides make the random floor too low
    assert alone.low <= alone.value <= alone.high
    assert (apart.n, apart.by_group, alone.by_group) == (200, True, False)
    assert floor(real, 200, 0) == alone
    with pytest.raises(ValueError, match=r"floor at n=401.*got 400 and 400.*smaller n"):
        floor(real, 401, 0)
    with pytest.raises(ValueError, match="one entry a slice: got 3, wanted 800"):
        floor(real, 10, 0, [1, 2, 3])


def test_a_figure_carries_counts_and_floor() -> None:
    real = features(500)
    figure = fd_lite112(features(230, seed=7, shift=0.3), real, seed=0)
    assert (figure.n_a, figure.n_b, figure.floor.n) == (230, 230, 230)
    assert figure.value > 1.3 * figure.floor.high
    assert str(figure).startswith(f"FD-lite112 {figure.value:.1f} (n=230 and 230; floor {figure.floor.value:.1f} (")
    assert "n=230, random halves" in str(figure)
    like = fd_lite112(features(230, seed=8), real, seed=0)
    assert like.value < 1.5 * like.floor.high
    with pytest.raises(ValueError, match=r"\[n, 112\]"):
        fd_lite112(features(10, d=8), real, seed=0)


def pictures(root: Path, every: int) -> np.ndarray:
    with (root / "sars_cov_2_ct" / "index.csv").open() as file:
        rows = list(csv.DictReader(file))[::every]
    images = []
    for row in rows:
        image = Image.open(root / row["file"]).convert("L")
        side = max(image.size)
        square = Image.new("L", (side, side), 0)
        square.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
        images.append(np.asarray(square.resize((64, 64), Image.Resampling.LANCZOS), np.float32) / 127.5 - 1)
    return np.stack(images)


def test_what_it_sees_on_real_ct(fedscan_data: Path) -> None:
    """Blur, noise, copies and another class, at n = 620, in multiples of the real-real distance."""
    x = pictures(fedscan_data, 2)
    g = np.random.default_rng(0)
    order = g.permutation(len(x))
    a, b = x[order[:620]], x[order[620:1240]]
    extractor = FeatureExtractor()

    def seen(images: np.ndarray) -> FeatureSums:
        unit = torch.from_numpy(np.clip(images, -1, 1).astype(np.float32))[:, None]
        return FeatureSums.of(extract(extractor, unit))

    base = seen(a)
    real = frechet_distance(base, seen(b))
    ratio = {
        "blur": frechet_distance(base, seen(gaussian_filter(b, (0, 0.5, 0.5)))) / real,
        "blur more": frechet_distance(base, seen(gaussian_filter(b, (0, 1, 1)))) / real,
        "noise": frechet_distance(base, seen(b + 0.04 * g.standard_normal(b.shape))) / real,
        "copies": frechet_distance(base, seen(b[np.arange(len(b)) % 100])) / real,
    }
    assert 5 < real < 20
    assert 4 < ratio["blur"] < 20
    assert ratio["blur more"] > 3 * ratio["blur"]
    assert 10 < ratio["noise"] < 60
    assert ratio["copies"] > 3
