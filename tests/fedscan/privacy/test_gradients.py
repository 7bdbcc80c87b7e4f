"""Per-patient gradients against explicit autograd, one call a patient."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import pytest
import torch
from torch import Tensor, nn

from fedscan.diffusion.network import DiffusionNetwork, autocast, build_network
from fedscan.plan import ModelPlan, Preset
from fedscan.privacy.gradient_rows import EvenRows, Rows, UnevenRows
from fedscan.privacy.gradients import Engine, PatientGradients

RELATIVE = 1e-6
"""Of the issue: float64 against explicit per-patient autograd."""
ENGINES: tuple[Engine, ...] = ("kernels", "loop")
ROWS = (EvenRows(3, 2), EvenRows(3, 1), EvenRows(1, 3), UnevenRows((3, 1, 2)))

Gradients = dict[str, Tensor]


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def rows_of(rows: Rows, patient: int) -> list[int]:
    """As `PatientGradients` defines them, written out anew."""
    if isinstance(rows, EvenRows):
        return [j * rows.patients + patient for j in range(rows.per_patient)]
    start = sum(rows.groups[:patient])
    return list(range(start, start + rows.groups[patient]))


def perturbed(module: nn.Module) -> nn.Module:
    """A fresh network outputs exactly 0 and has almost no gradients: tests on it would say nothing."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter += 0.05 * torch.randn(parameter.shape, generator=generator).to(parameter)
    return module


def network(preset: Preset, fold: Literal[1, 2], classes: int = 0) -> DiffusionNetwork:
    plan = ModelPlan(preset=preset, fold=fold, size=16, classes=tuple(f"class{i}" for i in range(classes)))
    built = perturbed(build_network(plan, torch.Generator().manual_seed(1)))
    assert isinstance(built, DiffusionNetwork)
    return built


def inputs(rows: int, classes: int = 0) -> tuple[Tensor, ...]:
    """x, t and, with classes, labels; the last rows' x is a hundred times the others'."""
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(rows, 1, 16, 16, generator=generator)
    x[-2:] *= 100.0
    t = torch.randint(1000, (rows,), generator=generator)
    labels = torch.randint(classes + 1, (rows,), generator=generator)
    return (x, t, labels) if classes else (x, t)


def row_losses(output: Tensor) -> Tensor:
    """[rows]: a mean squared error, as in training."""
    output = output.float() if output.dtype == torch.bfloat16 else output
    return (output - 1.0).square().flatten(1).mean(1)


def oracle(module: nn.Module, args: Sequence[Tensor], rows: Rows) -> Gradients:
    """One forward and one `torch.autograd.grad` a patient, on its rows alone, without the code under test."""
    parameters = dict(module.named_parameters())
    by_patient = []
    for patient in range(rows.patients):
        loss = row_losses(module(*(a[rows_of(rows, patient)] for a in args))).mean()
        by_patient.append(torch.autograd.grad(loss, list(parameters.values())))
    return {name: torch.stack(parts) for name, parts in zip(parameters, zip(*by_patient, strict=True), strict=True)}


def whose(rows: Rows) -> dict[str, Any]:
    return {"groups": rows.groups} if isinstance(rows, UnevenRows) else {"patients": rows.patients}


def patients_losses(output: Tensor, rows: Rows) -> Tensor:
    """The sum over patients of the mean over each one's rows."""
    of_rows = row_losses(output)
    return torch.stack([of_rows[rows_of(rows, patient)].mean() for patient in range(rows.patients)]).sum()


def gradients_of(wrapped: PatientGradients) -> Gradients:
    assert all(p.grad is None for p in wrapped.parameters()), "a summed gradient was computed too"
    return {name: p.grad_sample for name, p in wrapped.trainable_parameters.items()}  # type: ignore[attr-defined]


def ours(wrapped: PatientGradients, args: Sequence[Tensor], rows: Rows) -> Gradients:
    patients_losses(wrapped(*args, **whose(rows)), rows).backward()  # type: ignore[no-untyped-call]
    return gradients_of(wrapped)


def worst(got: Gradients, wanted: Gradients) -> float:
    """Largest error of any patient's gradient of any parameter, relative to that gradient's norm, or to 1e-9 of the
    patient's whole norm: a key's bias has exactly no gradient."""
    assert got.keys() == wanted.keys()
    whole = _norms(wanted).norm(dim=0)
    errors = [(got[n].to(w.dtype) - w).flatten(1).norm(dim=1) for n, w in wanted.items()]
    return float((torch.stack(errors) / torch.maximum(_norms(wanted), 1e-9 * whole)).max())


def whole_error(got: Gradients, wanted: Gradients) -> float:
    """Largest error of a patient's whole gradient, relative to its norm."""
    error = _norms({n: got[n].float() - w.float() for n, w in wanted.items()}).norm(dim=0)
    return float((error / _norms(wanted).norm(dim=0)).max())


def _norms(gradients: Gradients) -> Tensor:
    return torch.stack([g.flatten(1).norm(dim=1) for g in gradients.values()])


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("rows", ROWS, ids=str)
@pytest.mark.parametrize("fold", [1, 2])
def test_network_with_classes(engine: Engine, rows: Rows, fold: Literal[1, 2]) -> None:
    net = network("tiny", fold, classes=3).double()
    x, t, labels = inputs(rows.total, classes=3)
    args = (x.double(), t, labels)
    wanted = oracle(net, args, rows)
    got = ours(PatientGradients(net, engine=engine), args, rows)
    assert worst(got, wanted) < RELATIVE
    assert float((_norms(wanted) > 1e-6).float().mean()) > 0.9  # it says something


@pytest.mark.parametrize(("preset", "rows"), [("small", EvenRows(2, 2)), ("small", UnevenRows((1, 2))),
                                              ("medium", EvenRows(2, 2))], ids=str)  # fmt: skip
def test_every_layer_kind_of_the_larger_presets(preset: Preset, rows: Rows) -> None:
    """In the network, so that shapes and neighbours are those of training; `tiny` is above."""
    net = network(preset, 2, classes=2).double()
    kinds = {type(m) for m in net.modules() if any(True for _ in m.parameters(recurse=False))}
    assert kinds == {nn.Conv2d, nn.Linear, nn.GroupNorm, nn.Embedding}
    x, t, labels = inputs(rows.total, classes=2)
    args = (x.double(), t, labels)
    wanted = oracle(net, args, rows)
    assert worst(ours(PatientGradients(net), args, rows), wanted) < RELATIVE


class OnOnePicture(nn.Module):
    """A layer behind another, so that the gradient of its input counts as well."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.first = nn.Conv2d(16, 16, 3, padding=1)
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.layer(self.first(x))
        return result


class OnTokens(OnOnePicture):
    def forward(self, x: Tensor) -> Tensor:
        return self.layer(self.first(x).flatten(2).transpose(1, 2)).flatten(1)  # type: ignore[no-any-return]


class OnMeans(OnOnePicture):
    def forward(self, x: Tensor) -> Tensor:
        return self.layer(self.first(x).mean((2, 3)))  # type: ignore[no-any-return]


class OnIndices(nn.Module):
    def __init__(self, layer: nn.Embedding) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        return self.layer((x[:, :3, 0, 0] * 1000).long() % 7).flatten(1)  # type: ignore[no-any-return]


LAYERS: dict[str, Callable[[], nn.Module]] = {
    "grouped 3x3": lambda: OnOnePicture(nn.Conv2d(16, 32, 3, padding=1)),
    "grouped, no bias": lambda: OnOnePicture(nn.Conv2d(16, 32, 3, padding=1, bias=False)),
    "stride 2": lambda: OnOnePicture(nn.Conv2d(16, 16, 3, stride=2, padding=1)),
    "few channels": lambda: OnOnePicture(nn.Conv2d(16, 3, 3, padding=1)),
    "few channels, no bias": lambda: OnOnePicture(nn.Conv2d(16, 3, 3, padding=1, bias=False)),
    "dilated": lambda: OnOnePicture(nn.Conv2d(16, 16, (3, 1), padding=(2, 0), dilation=2)),
    "conv groups": lambda: OnOnePicture(nn.Conv2d(16, 32, 3, groups=2)),
    "1x1": lambda: OnOnePicture(nn.Conv2d(16, 5, 1)),
    "1x1, no bias": lambda: OnOnePicture(nn.Conv2d(16, 32, 1, bias=False)),
    "1x1, stride 2": lambda: OnOnePicture(nn.Conv2d(16, 32, 1, stride=2)),
    "linear on tokens": lambda: OnTokens(nn.Linear(16, 6)),
    "linear on tokens, no bias": lambda: OnTokens(nn.Linear(16, 6, bias=False)),
    "linear on vectors": lambda: OnMeans(nn.Linear(16, 6)),
    "linear on pictures": lambda: OnOnePicture(nn.Linear(5, 6)),
    "group norm": lambda: OnOnePicture(nn.GroupNorm(4, 16)),
    "group norm on vectors": lambda: OnMeans(nn.GroupNorm(4, 16)),
    "layer norm": lambda: OnTokens(nn.LayerNorm(16)),
    "layer norm over pictures": lambda: OnOnePicture(nn.LayerNorm((16, 5, 5))),
    "embedding": lambda: OnIndices(nn.Embedding(7, 4)),
}


def layer_case(name: str) -> tuple[nn.Module, Callable[[int], Tensor]]:
    torch.manual_seed(3)
    return perturbed(LAYERS[name]()), lambda rows: torch.randn(rows, 16, 5, 5)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("name", LAYERS)
def test_layer(name: str, engine: Engine) -> None:
    module, draw = layer_case(name)
    wrapped = PatientGradients(module.double(), engine=engine)
    for rows in ROWS:
        args = (draw(rows.total).double(),)
        wrapped.remove()
        wanted = oracle(module, args, rows)
        wrapped = PatientGradients(module, engine=engine)
        assert worst(ours(wrapped, args, rows), wanted) < RELATIVE


@pytest.mark.parametrize("name", LAYERS)
def test_layer_in_bf16(name: str) -> None:
    """A layer's own rounding, of products of 16 to 144 terms, is far below bf16's 2^-8."""
    module, draw = layer_case(name)
    for rows in ROWS:
        args = (draw(rows.total),)
        with autocast("bf16"):
            wanted = oracle(module, args, rows)
        wrapped = PatientGradients(module)
        with autocast("bf16"):
            got = ours(wrapped, args, rows)
        wrapped.remove()
        assert whole_error(got, wanted) < 1e-2


@pytest.mark.parametrize("case", [("tiny", EvenRows(3, 2)), ("tiny", UnevenRows((3, 1, 2))), ("small", EvenRows(2, 3)),
                                  ("small", EvenRows(3, 1)), ("medium", EvenRows(2, 2))], ids=str)  # fmt: skip
def test_bf16(case: tuple[Preset, Rows]) -> None:
    """As accurate as explicit bf16 autograd; most of the values take half the memory of float32."""
    preset, rows = case
    net = network(preset, 2, classes=2)
    args = inputs(rows.total, classes=2)
    args[0][-2:] /= 100.0
    exact = oracle(net, args, rows)
    with autocast("bf16"):
        plain = oracle(net, args, rows)
    wrapped = PatientGradients(net)
    with autocast("bf16"):
        output = wrapped(*args, **whose(rows))
    patients_losses(output, rows).backward()
    got = gradients_of(wrapped)
    narrow = sum(g.numel() for g in got.values() if g.dtype == torch.bfloat16)
    assert narrow > 0.9 * sum(g.numel() for g in got.values())
    assert whole_error(got, plain) < 1e-2
    assert whole_error(got, exact) < 2e-2
    wrapped.zero_grad()
    with autocast("bf16"):  # with the backward inside, too
        again = ours(wrapped, args, rows)
    assert all(torch.equal(got[name], again[name]) for name in got)


def test_uses_of_one_parameter_add_up_in_float32() -> None:
    """Under bf16, where one rounding more a use would show."""
    shared = nn.Linear(16, 16)
    module, rows = OnMeans(nn.Sequential(*[shared] * 4)), EvenRows(3, 2)
    wrapped = PatientGradients(perturbed(module))
    with autocast("bf16"):
        got = ours(wrapped, (torch.randn(rows.total, 16, 5, 5),), rows)
    assert got["layer.0.weight"].dtype == torch.float32


def test_a_backward_under_autocast_keeps_the_forwards_precision() -> None:
    module, rows = OnMeans(nn.Linear(16, 6)), EvenRows(3, 2)
    wrapped = PatientGradients(perturbed(module))
    x = torch.randn(rows.total, 16, 5, 5)
    right = ours(wrapped, (x,), rows)
    wrapped.zero_grad()
    output = wrapped(x, patients=3)
    with autocast("bf16"):
        patients_losses(output, rows).backward()
    assert all(torch.equal(right[name], g) for name, g in gradients_of(wrapped).items())


@pytest.mark.parametrize("rows", ROWS, ids=str)
def test_a_subset_that_trains(rows: Rows) -> None:
    """Biases, norms and attention, as a plan may ask; the other gradients are not computed at all."""
    net = network("small", 2).double()
    x, t = inputs(rows.total)
    wanted = oracle(net, (x.double(), t), rows)
    names = {n for n in wanted if n.endswith(".bias") or ".attn" in n or ".norm" in n}
    assert 50 < len(names) < len(wanted)
    wrapped = PatientGradients(net, names)
    got = ours(wrapped, (x.double(), t), rows)
    assert worst(got, {n: g for n, g in wanted.items() if n in names}) < RELATIVE
    for name, parameter in net.named_parameters():
        assert parameter.requires_grad == (name in names)
        assert hasattr(parameter, "grad_sample") == (name in names)
    wrapped.zero_grad()
    assert not any(hasattr(p, "grad_sample") for n, p in net.named_parameters() if n not in names)


class Shared(nn.Module):
    """One layer twice in a forward, and one weight in two layers."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(16, 16, 3, padding=1)
        self.one, self.other = nn.Linear(16, 16), nn.Linear(16, 16)
        self.other.weight = self.one.weight

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(self.conv(x).sin()).mean((2, 3))
        result: Tensor = self.other(self.one(x).sin())
        return result


@pytest.mark.parametrize("engine", ENGINES)
def test_shared_layers_and_weights_add_up(engine: Engine) -> None:
    module, rows = perturbed(Shared()).double(), EvenRows(3, 2)
    args = (torch.randn(rows.total, 16, 5, 5, dtype=torch.float64),)
    wanted = oracle(module, args, rows)
    assert worst(ours(PatientGradients(module, engine=engine), args, rows), wanted) < RELATIVE


@pytest.mark.parametrize("rows", [EvenRows(3, 2), UnevenRows((2, 3, 1))], ids=str)
def test_a_patients_gradient_does_not_hang_on_the_others(rows: Rows) -> None:
    """The others' rows become a hundred times as large, and other ones."""
    net = network("tiny", 2, classes=2).double()
    wrapped = PatientGradients(net)
    found = []
    for scale in (1.0, 100.0):
        x, t, labels = (a.clone() for a in inputs(rows.total, classes=2))
        others = [r for r in range(rows.total) if r not in rows_of(rows, 1)]
        x[others] *= scale
        t[others] = (t[others] + int(scale)) % 1000
        found.append({n: g[1:2].clone() for n, g in ours(wrapped, (x.double(), t, labels), rows).items()})
        wrapped.zero_grad()
    assert worst(found[1], found[0]) < RELATIVE


@pytest.mark.parametrize("slip", ["embedding", "sum", "grouped"])
def test_a_patient_major_slip_is_seen(slip: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Planted: the slice-major rules read with the other order's indices. What the tests above compare sees it."""
    rows = EvenRows(3, 2)
    net = network("tiny", 2, classes=3).double()
    x, t, labels = inputs(rows.total, classes=3)
    args = (x.double(), t, labels)
    wanted = oracle(net, args, rows)
    if slip == "embedding":
        monkeypatch.setattr(EvenRows, "patient_of_row", lambda self, _: torch.arange(self.total) // self.per_patient)
    elif slip == "sum":
        monkeypatch.setattr(
            EvenRows, "sum", lambda self, a: a.view(self.patients, self.per_patient, *a.shape[1:]).sum(1)
        )
    else:
        from fedscan.privacy import gradient_convolution

        right = gradient_convolution._grouped

        def slipped(x: Tensor, gy: Tensor, *rest: Any) -> Any:
            order = torch.arange(rows.total).view(rows.patients, rows.per_patient).T.flatten()
            return right(x[order], gy[order], *rest)

        monkeypatch.setattr(gradient_convolution, "_grouped", slipped)
    assert worst(ours(PatientGradients(net), args, rows), wanted) > 0.1
