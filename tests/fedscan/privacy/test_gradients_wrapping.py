"""What is refused, what a wrapped module does and does not, and what it costs in memory."""

from __future__ import annotations

import copy
import subprocess
import sys
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from fedscan.diffusion.network import build_network
from fedscan.plan import ModelPlan
from fedscan.privacy.gradient_rows import GradientError
from fedscan.privacy.gradients import Engine, PatientGradients

ENGINES: tuple[Engine, ...] = ("kernels", "loop")


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


class OfMyOwn(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(3))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale


class LikeLinear(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x - x.mean(0))


class WithBuffer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("running_mean", torch.zeros(3))


def linear_with_more() -> nn.Linear:
    """Of the exact type, with a parameter more."""
    layer = nn.Linear(3, 3)
    layer.register_parameter("gain", nn.Parameter(torch.ones(3)))
    return layer


REFUSED: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "parameters of its own": (OfMyOwn, "'scale'"),
    "prelu": (nn.PReLU, "PReLU"),
    "conv1d": (lambda: nn.Conv1d(3, 3, 1), "Conv1d"),
    "transposed": (lambda: nn.ConvTranspose2d(3, 3, 2), "ConvTranspose2d"),
    "attention of torch": (lambda: nn.MultiheadAttention(4, 2), "MultiheadAttention"),
    "recurrent": (lambda: nn.LSTM(3, 3), "LSTM"),
    "a subclass": (lambda: LikeLinear(3, 3), "LikeLinear"),
    "parametrised": (lambda: parametrizations.weight_norm(nn.Linear(3, 3)), "Linear"),
    "a parameter more": (linear_with_more, "'gain'"),
    "batch norm": (lambda: nn.BatchNorm2d(3), "GroupNorm"),
    "batch norm without anything": (
        lambda: nn.BatchNorm2d(3, affine=False, track_running_stats=False),
        "it mixes rows: use GroupNorm",
    ),
    "buffers": (WithBuffer, "it has buffers"),
    "dropout": (lambda: nn.Dropout(0.1), "set p to 0"),
    "padding mode": (lambda: nn.Conv2d(3, 3, 3, padding=1, padding_mode="circular"), "in mode 'circular'"),
    "padding by word": (lambda: nn.Conv2d(3, 3, 3, padding="same"), "padding 'same'"),
    "norm without bias": (lambda: nn.LayerNorm(3, bias=False), "a norm with a weight and no bias"),
    "padding index": (lambda: nn.Embedding(3, 3, padding_idx=0), "padding_idx"),
    "renormed rows": (lambda: nn.Embedding(3, 3, max_norm=1.0), "max_norm"),
    "counted rows": (lambda: nn.Embedding(3, 3, scale_grad_by_freq=True), "scale_grad_by_freq"),
}


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("what", REFUSED)
def test_refused_at_wrapping(what: str, engine: Engine) -> None:
    """By both engines: the loop could, but what mixes rows or is unknown is nothing to train privately with."""
    build, reason = REFUSED[what]
    module = nn.Sequential(nn.Linear(3, 3), build())
    before = [p.requires_grad for p in module.parameters()]
    with pytest.raises(GradientError, match=reason):
        PatientGradients(module, engine=engine)
    assert [p.requires_grad for p in module.parameters()] == before
    assert not any("forward" in vars(layer) for layer in module.modules())


def test_unknown_layers_are_refused_even_where_they_do_not_train() -> None:
    with pytest.raises(GradientError, match="PReLU"):
        PatientGradients(nn.Sequential(nn.Linear(3, 3), nn.PReLU()), {"0.weight"})


def test_all_reasons_at_once() -> None:
    module = nn.Sequential(nn.PReLU(), nn.Dropout(0.5), nn.BatchNorm1d(3, affine=False))
    with pytest.raises(GradientError, match=r"PReLU.*Dropout.*BatchNorm1d"):
        PatientGradients(module)


def test_a_module_that_is_wrapped_or_not_in_training_is_refused() -> None:
    module = nn.Sequential(nn.Linear(3, 3))
    wrapped = PatientGradients(module)
    with pytest.raises(GradientError, match="wrapped already"):
        PatientGradients(module)
    wrapped.remove()
    with pytest.raises(GradientError, match="training mode"):
        PatientGradients(module.eval())


@pytest.mark.parametrize(
    ("names", "message"), [({"0.weights"}, "no parameters \\['0.weights'\\]"), (set(), "no parameter is trainable")]
)
def test_trainable_names(names: set[str], message: str) -> None:
    module = nn.Sequential(nn.Linear(3, 3))
    with pytest.raises(GradientError, match=message):
        PatientGradients(module, names)
    assert module[0].weight.requires_grad


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(
    ("whose", "message"),
    [
        ({}, "say whose the rows are"),
        ({"patients": 2, "groups": [3, 3]}, "say whose the rows are"),
        ({"patients": 4}, "cannot be shared evenly"),
        ({"patients": 0}, "cannot be shared evenly"),
        ({"groups": [3, 2]}, "groups must be positive and sum"),
        ({"groups": [6, 0]}, "groups must be positive and sum"),
        ({"groups": [7, -1]}, "groups must be positive and sum"),
        ({"groups": []}, "groups must be positive and sum"),
    ],
)
def test_rows_that_are_nobodys(engine: Engine, whose: dict[str, Any], message: str) -> None:
    wrapped = PatientGradients(nn.Sequential(nn.Linear(3, 3)), engine=engine)
    with pytest.raises(GradientError, match=message) as refusal:
        wrapped(torch.zeros(6, 3), **whose)
    assert not any(digit in str(refusal.value) for digit in "0123456789")  # a count of the drawn is data


class Folds(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.layer(x.reshape(-1, 3)).view_as(x)
        return result


def test_a_layer_whose_first_axis_is_not_the_rows_is_refused() -> None:
    """Its rows would be given to the wrong patients."""
    with pytest.raises(GradientError, match="Linear got another number of rows"):
        PatientGradients(Folds())(torch.zeros(6, 2, 3), patients=3)


@pytest.mark.parametrize(
    "args",
    [(torch.zeros(6, 3), torch.ones(())), (torch.zeros(6, 3), torch.ones(5)), (torch.ones(6, 3, requires_grad=True),)],
)
def test_tensors_that_the_loop_cannot_share_out(args: Sequence[Tensor]) -> None:
    with pytest.raises(GradientError, match="one entry a row"):
        PatientGradients(nn.Sequential(nn.Linear(3, 3)), engine="loop")(*args, patients=2)


@pytest.mark.parametrize("engine", ENGINES)
def test_batches_are_not_mixed(engine: Engine) -> None:
    """Kept together they would pass for the patients of one step, and Opacus would divide by the number of both."""
    wrapped = PatientGradients(nn.Sequential(nn.Linear(3, 3)), engine=engine)
    wrapped(torch.ones(4, 3), patients=2).sum().backward()
    with pytest.raises(GradientError, match="zero_grad between batches"):
        wrapped(torch.ones(4, 3), patients=2).sum().backward()
    wrapped.zero_grad()
    wrapped(torch.ones(4, 3), patients=4).sum().backward()
    assert wrapped.trainable_parameters["0.weight"].grad_sample.shape == (4, 3, 3)  # type: ignore[attr-defined]


def test_past_the_wrapper_there_is_no_gradient_at_all() -> None:
    """A summed gradient of all patients, clipped by nobody, must not come about by a call in the wrong place."""
    module = nn.Sequential(nn.Linear(3, 3))
    wrapped = PatientGradients(module)
    with pytest.raises(GradientError, match="past its wrapper"):
        module(torch.ones(4, 3))
    with torch.no_grad():
        assert torch.equal(module(torch.ones(4, 3)), wrapped(torch.ones(4, 3), patients=2))
    with pytest.raises(GradientError, match="past its wrapper"):
        copy.deepcopy(module)(torch.ones(4, 3))


def test_a_copy_of_a_wrapped_module_computes_with_its_own_weights() -> None:
    module = nn.Sequential(nn.Linear(3, 3))
    PatientGradients(module)
    twin = copy.deepcopy(module)
    with torch.no_grad():
        twin[0].weight.zero_()
        assert torch.equal(twin(torch.ones(1, 3))[0], module[0].bias)


@pytest.mark.parametrize("engine", ENGINES)
def test_remove_leaves_no_trace(engine: Engine) -> None:
    net = build_network(ModelPlan(preset="tiny", size=16), torch.Generator())
    net.net.conv_in.conv.bias.requires_grad_(False)
    names, required = list(net.state_dict()), [p.requires_grad for p in net.parameters()]
    attributes = [set(vars(m)) for m in net.modules()], [set(vars(p)) for p in net.parameters()]
    wrapped = PatientGradients(net, {"net.conv_in.conv.weight"}, engine=engine)
    assert list(net.state_dict()) == names
    wrapped(torch.zeros(2, 1, 16, 16), torch.zeros(2, dtype=torch.int64), patients=2).sum().backward()
    assert [p.requires_grad for p in net.parameters()].count(True) == 1
    assert wrapped.remove() is net
    assert [p.requires_grad for p in net.parameters()] == required
    assert ([set(vars(m)) for m in net.modules()], [set(vars(p)) for p in net.parameters()]) == attributes
    net(torch.zeros(2, 1, 16, 16), torch.zeros(2, dtype=torch.int64)).sum().backward()
    assert net.net.out[2].conv.bias.grad is not None


@pytest.mark.parametrize("autocast_to_bf16", [False, True])
def test_forward_keeps_no_more_than_the_plain_one(autocast_to_bf16: bool) -> None:
    """Gradients by patient are all that is added: [patients, *shape] float32."""
    net = build_network(ModelPlan(preset="small", size=32), torch.Generator())
    x, t = torch.randn(8, 1, 32, 32), torch.zeros(8, dtype=torch.int64)

    def kept(forward: Callable[[], Tensor]) -> int:
        storages: dict[int, Tensor] = {}

        def pack(tensor: Tensor) -> Tensor:
            storages[tensor.untyped_storage().data_ptr()] = tensor
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast_to_bf16):
                output = forward()
            assert output.requires_grad
            return sum(tensor.untyped_storage().nbytes() for tensor in storages.values())

    plain = kept(lambda: net(x, t))
    wrapped = PatientGradients(net)
    assert kept(lambda: wrapped(x, t, patients=4)) <= plain
    wrapped(x, t, patients=4).sum().backward()
    for parameter in net.parameters():
        sample = parameter.grad_sample  # type: ignore[attr-defined]
        assert (sample.dtype, sample.shape) == (torch.float32, (4, *parameter.shape))
        assert sample.untyped_storage().nbytes() == 4 * sample.numel()
        assert parameter.grad is None


PEAK = """
import sys, torch
from fedscan.diffusion.network import build_network
from fedscan.plan import ModelPlan
from fedscan.privacy.gradients import PatientGradients
torch.set_num_threads(1)
net = build_network(ModelPlan(preset="medium", size=32), torch.Generator())
wrapped = PatientGradients(net)
for _ in range(2):
    x = torch.randn(16, 1, 32, 32)
    wrapped(x, torch.zeros(16, dtype=torch.int64), patients=int(sys.argv[1])).sum().backward()
    wrapped.zero_grad()
# not getrusage: its peak begins with that of the process that started this one
peak = next(line for line in open("/proc/self/status") if line.startswith("VmHWM"))
print(sum(p.numel() for p in net.parameters()), int(peak.split()[1]) * 1024)
"""


@pytest.mark.slow
def test_peak_memory_grows_with_patients_times_parameters() -> None:
    def peak(patients: int) -> tuple[int, int]:
        done = subprocess.run([sys.executable, "-c", PEAK, str(patients)], check=True, capture_output=True, text=True)
        parameters, byte_count = done.stdout.split()
        return int(parameters), int(byte_count)

    (parameters, one), (_, sixteen) = peak(1), peak(16)
    assert 0.8 < (sixteen - one) / (15 * parameters * 4) < 1.2
