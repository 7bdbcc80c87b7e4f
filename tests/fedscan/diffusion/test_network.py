"""fedscan.diffusion.network: built from the plan, reproducible, parameters only."""

import pytest
import torch

from fedscan.diffusion.network import autocast, build_network, resolve_precision
from fedscan.plan import ModelPlan, Preset, UNet


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def perturbed(model: ModelPlan) -> torch.nn.Module:
    """A network whose output is not 0."""
    network = build_network(model, generator())
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator(parameter.numel())))
    return network


@pytest.mark.parametrize(
    ("preset", "classes", "wanted"),
    [
        ("tiny", (), 268_180),
        ("small", (), 1_114_532),
        ("medium", (), 10_918_980),
        ("tiny", ("a", "b"), 268_180 + 3 * 64),  # one embedding of 4 x channels[0] a class, and "no label"
    ],
)
def test_parameter_counts(preset: Preset, classes: tuple[str, ...], wanted: int) -> None:
    network = build_network(ModelPlan(preset=preset, classes=classes), generator())
    assert sum(p.numel() for p in network.parameters()) == wanted


def test_state_is_float32_parameters_only() -> None:
    network = build_network(ModelPlan(preset="small", classes=("a",)), generator())
    assert not list(network.buffers())
    assert set(network.state_dict()) == {name for name, _ in network.named_parameters()}
    assert {p.dtype for p in network.parameters()} == {torch.float32}


def test_same_seed_same_bytes_and_global_state_untouched() -> None:
    model = ModelPlan(preset="tiny", classes=("a", "b"))
    torch.random.default_generator.manual_seed(5)
    before = torch.get_rng_state()
    first = build_network(model, generator(7)).state_dict()
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(3)  # whatever happens in between
    second = build_network(model, generator(7)).state_dict()
    other = build_network(model, generator(8)).state_dict()
    assert all(torch.equal(first[k], second[k]) for k in first)
    assert any(not torch.equal(first[k], other[k]) for k in first)


@pytest.mark.parametrize("fold", [1, 2, 4])
def test_fresh_network_outputs_exactly_zero(fold: int) -> None:
    network = build_network(ModelPlan(preset="tiny", fold=fold), generator())
    out = network(torch.randn(2, 1, 64, 64, generator=generator()), torch.tensor([0, 999]))
    assert out.shape == (2, 1, 64, 64)
    assert torch.count_nonzero(out) == 0


def test_labels_none_means_the_last_embedding() -> None:
    network = perturbed(ModelPlan(preset="tiny", classes=("a", "b")))
    x, t = torch.randn(2, 1, 64, 64, generator=generator()), torch.tensor([10, 500])
    none, last, first = (network(x, t, labels) for labels in (None, torch.tensor([2, 2]), torch.tensor([0, 0])))
    assert network.no_label == 2
    assert torch.equal(none, last)
    assert not torch.allclose(none, first)
    with pytest.raises(IndexError):
        network(x, t, torch.tensor([0, 3]))


def test_labels_without_classes_are_refused() -> None:
    network = build_network(ModelPlan(preset="tiny"), generator())
    with pytest.raises(ValueError, match="without classes"):
        network(torch.zeros(1, 1, 64, 64), torch.tensor([0]), torch.tensor([0]))


def test_full_arguments_and_size() -> None:
    unet = UNet(channels=(16, 32), attention_levels=(False, True), norm_num_groups=8, num_head_channels=16)
    network = build_network(ModelPlan(preset=None, unet=unet, size=32, fold=1), generator())
    assert network(torch.zeros(1, 1, 32, 32), torch.tensor([3])).shape == (1, 1, 32, 32)


def test_bf16_autocast_gives_float32_near_fp32() -> None:
    network = perturbed(ModelPlan(preset="tiny"))
    x, t = torch.randn(2, 1, 64, 64, generator=generator()), torch.tensor([10, 500])
    with torch.no_grad():
        full = network(x, t)
    with torch.no_grad(), autocast("bf16"):
        half = network(x, t)
    assert half.dtype == torch.float32
    assert not torch.equal(half, full)
    assert float((half - full).norm() / full.norm()) < 0.05
    with torch.no_grad(), autocast("fp32"):
        assert torch.equal(network(x, t), full)


def test_precision_is_what_was_asked_or_what_the_processor_has(monkeypatch: pytest.MonkeyPatch) -> None:
    assert resolve_precision("fp32") == "fp32"
    assert resolve_precision("bf16") == "bf16"
    assert resolve_precision("auto", "meta") == "fp32"
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    for has, wanted in ((True, "bf16"), (False, "fp32")):
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda has=has: has)
        assert resolve_precision("auto") == wanted
