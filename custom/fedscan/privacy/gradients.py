"""Per-patient gradients: `PatientGradients` wraps a module so that backward brings one gradient a patient."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from types import MethodType
from typing import Any, Literal

import torch
from opacus.grad_sample import AbstractGradSampleModule
from torch import Tensor, nn

from fedscan.privacy.gradient_layers import LAYER_KINDS, LayerKind, refusals
from fedscan.privacy.gradient_loop import looped
from fedscan.privacy.gradient_rows import EvenRows, GradientError, PatientBatch, Rows, UnevenRows

Engine = Literal["kernels", "loop"]


class PatientGradients(AbstractGradSampleModule):
    """Wraps `module`; after a backward each trainable parameter's `grad_sample` is [patients, *shape], its `grad` None.

    `wrapped(*args, patients=P)` takes slice-major rows (row j * P + p is row j of patient p, equally many for each);
    `wrapped(*args, groups=(3, 1, 2))` patient-major rows, patient by patient. The loss of the batch must be the sum
    over patients: with m rows a patient, `(loss_by_row.sum() / m).backward()` gives the gradient of each patient's
    mean. A mean over the batch would shrink every patient's gradient by the number of patients.

    Under autocast a `grad_sample` may be as imprecise as its product. `trainable` names the parameters that
    train (None: all that require gradients); the others stop requiring gradients until `remove`.

    engine "kernels" computes within the one backward (gradient_functions); "loop" runs patient by patient. They agree.
    Raises GradientError for a module with layers that no rule is known for, or in which rows are not apart.
    """

    def __init__(
        self, module: nn.Module, trainable: Collection[str] | None = None, *, engine: Engine = "kernels"
    ) -> None:
        if reasons := refusals(module):
            raise GradientError("per-patient gradients are refused for this module: " + "; ".join(reasons))
        before = {name: p.requires_grad for name, p in module.named_parameters()}
        _set_trainable(module, trainable)
        super().__init__(module, batch_first=True, loss_reduction="sum")
        self._required_before = before
        self._engine = engine
        self._batch = _Current()
        self._trainable = {name: p for name, p in module.named_parameters() if p.requires_grad}
        self._patched = _patch(module, self._batch) if engine == "kernels" else []

    def forward(
        self,
        *args: Any,
        patients: int | None = None,
        groups: Sequence[int] | None = None,
        kept: int | None = None,
        **kwargs: Any,
    ) -> Any:
        """The module's own output. Exactly one of `patients` and `groups` says whose the rows are; of `kept` (None:
        all) patients, the first, there will be gradients."""
        rows = _rows((*args, *kwargs.values()), patients, groups)
        if kept is not None and not 1 <= kept <= rows.patients:
            raise GradientError("kept must be some of the patients, and at least one")
        batch = PatientBatch(rows, kept)
        if self._engine == "loop":
            return looped(self._module, list(self._trainable.values()), batch, args, kwargs)
        self._batch.batch = batch
        try:
            return self._module(*args, **kwargs)
        finally:
            self._batch.batch = None

    @property
    def trainable_parameters(self) -> dict[str, nn.Parameter]:
        """By the name in the wrapped module."""
        return dict(self._trainable)

    def set_grad_sample_to_none(self) -> None:
        for parameter in self._trainable.values():
            parameter.grad_sample = None  # type: ignore[attr-defined]

    def remove(self) -> nn.Module:
        """The module as it was before; the wrapper is of no use afterwards."""
        self.cleanup()
        module: nn.Module = self._module
        return module

    def remove_hooks(self) -> None:
        """What Opacus' `cleanup` calls."""
        for layer in self._patched:
            del layer.__dict__["forward"]
        self._patched = []
        for name, parameter in self._module.named_parameters():
            parameter.requires_grad_(self._required_before[name])


class _Current:
    """The batch that is under way, for the layers."""

    batch: PatientBatch | None = None


def _patch(module: nn.Module, current: _Current) -> list[nn.Module]:
    """Gives each layer that trains a `forward` of its own (an attribute of the instance: names stay as they were)."""
    patched = []
    for layer in module.modules():
        if any(p.requires_grad for p in layer.parameters(recurse=False)):
            layer.__dict__["forward"] = MethodType(_forward(LAYER_KINDS[type(layer)], current), layer)
            patched.append(layer)
    return patched


def _forward(kind: LayerKind, current: _Current) -> Callable[[Any, Tensor], Tensor]:
    """A method, not a closure over the layer: a copied module calls its own copy."""

    def forward(layer: Any, x: Tensor) -> Tensor:
        batch = current.batch
        if batch is None:
            if torch.is_grad_enabled():
                raise GradientError("a wrapped module was called past its wrapper: call the PatientGradients instead")
            output: Tensor = type(layer).forward(layer, x)
            return output
        if x.ndim == 0 or len(x) != batch.rows.total:
            raise GradientError(
                f"a {type(layer).__name__} got another number of rows than the batch has: the first axis must be the "
                "batch's rows in every layer"
            )
        result: Tensor = kind.function.apply(x, layer.weight, getattr(layer, "bias", None), layer, batch)  # type: ignore[no-untyped-call]
        return result

    return forward


def _rows(values: Sequence[Any], patients: int | None, groups: Sequence[int] | None) -> Rows:
    total = next((len(v) for v in values if isinstance(v, Tensor) and v.ndim), 0)
    if (patients is None) == (groups is None):
        raise GradientError("say whose the rows are: patients=P (slice-major) or groups=[rows of each patient]")
    if patients is not None:
        if patients < 1 or total < 1 or total % patients:
            raise GradientError(
                "the rows cannot be shared evenly by the patients: pass groups, or equally many of each"
            )
        return EvenRows(patients, total // patients)
    assert groups is not None
    rows = UnevenRows(tuple(groups))
    if not rows.groups or min(rows.groups) < 1 or rows.total != total:
        raise GradientError("groups must be positive and sum to the number of rows, which is that of the first tensor")
    return rows


def _set_trainable(module: nn.Module, trainable: Collection[str] | None) -> None:
    parameters = dict(module.named_parameters())
    if trainable is None:
        trainable = {name for name, parameter in parameters.items() if parameter.requires_grad}
    if unknown := sorted(set(trainable) - set(parameters)):
        raise GradientError(f"the module has no parameters {unknown[:5]}: take names from named_parameters()")
    if not trainable:
        raise GradientError("no parameter is trainable: name at least one")
    for name, parameter in parameters.items():
        parameter.requires_grad_(name in trainable)
