"""The one form of a model, and of an update that travels: names, shapes and dtypes that follow from the plan."""

from __future__ import annotations

from functools import lru_cache

import torch

from fedscan.plan import ModelPlan, Plan
from fedscan.privacy.facts import TensorForm
from fedscan.training.update_codec import wire_form
from fedscan.training.weights import Weights, shapes_of


def form_of(plan: Plan) -> Weights:
    """The network's parameters as tensors without memory. The first call of a process loads MONAI: seconds."""
    return _form(plan.model)


def wire_form_of(plan: Plan) -> Weights:
    """An answer's tensors as they travel, without memory."""
    return wire_form(form_of(plan), plan.update_precision)


@lru_cache(maxsize=4)
def _form(model: ModelPlan) -> Weights:
    return shapes_of(model)


def tensor_forms(update: Weights) -> dict[str, TensorForm]:
    """What the judge at the door knows of an update's tensors."""
    return {
        name: TensorForm(tuple(tensor.shape), str(tensor.dtype), bool(torch.isfinite(tensor).all()))
        for name, tensor in update.items()
    }
