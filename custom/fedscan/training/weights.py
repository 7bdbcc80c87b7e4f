"""Named weights and updates: start, difference, check, weighted mean, digest. All on the CPU, float32 by name."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Mapping
from typing import TypeAlias

import torch

from fedscan.plan import ModelPlan, Plan
from fedscan.training.seeds import derived_generator

Weights: TypeAlias = dict[str, torch.Tensor]
"""Every parameter of a network by its name (there are no buffers); an update has the same names and shapes."""

NAMED_AT_MOST = 5
"""Tensors that a reason names; more are counted."""


def initial_weights(plan: Plan) -> Weights:
    """The fresh network's weights, float32; they follow from the plan's seed and model alone."""
    from fedscan.diffusion.network import build_network  # MONAI: too heavy for those who only add and compare

    network = build_network(plan.model, derived_generator("initial weights", plan.seed))
    return {name: parameter.detach().clone() for name, parameter in network.named_parameters()}


def shapes_of(model: ModelPlan) -> Weights:
    """The network's parameters as tensors without memory (device `meta`): names, shapes and dtypes alone."""
    from fedscan.diffusion.network import DiffusionNetwork

    with torch.device("meta"):
        return {name: parameter.detach() for name, parameter in DiffusionNetwork(model).named_parameters()}


def difference(new: Weights, old: Weights) -> Weights:
    """float32 `new` - `old` by name: what a site sends."""
    return {name: (new[name].detach() - tensor).contiguous() for name, tensor in old.items()}


def apply_update(weights: Weights, update: Weights) -> Weights:
    """float32 `weights` + `update` by name."""
    return {name: tensor + update[name] for name, tensor in weights.items()}


def update_norm(update: Weights) -> float:
    """L2 norm over all tensors together, summed in float64 in the order of names."""
    return math.sqrt(math.fsum(float(update[name].double().square().sum()) for name in sorted(update)))


def digest(weights: Weights) -> str:
    """SHA-256 (hex) over names, dtypes, shapes and little-endian values, in the order of names."""
    sha256 = hashlib.sha256()
    for name in sorted(weights):
        tensor = weights[name].detach().contiguous()
        head = json.dumps([name, str(tensor.dtype), list(tensor.shape)], separators=(",", ":")).encode()
        sha256.update(len(head).to_bytes(8, "little") + head)
        sha256.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return sha256.hexdigest()


def check_update(update: Mapping[str, object], reference: Weights) -> list[str]:
    """Reasons not to take `update` where tensors like `reference` are wanted; empty: it is good.

    Names missing, extra, of no dense tensor, of another shape or dtype, or with values that are not finite. No reason
    holds a value.
    """
    reasons = _names("lacks", (name for name in reference if name not in update))
    reasons += _names("has unknown", (name for name in update if name not in reference))
    faults: dict[str, list[str]] = {}
    for name, wanted in reference.items():
        if name in update and (fault := _fault(update[name], wanted)):
            faults.setdefault(fault, []).append(name)
    for fault, names in faults.items():
        reasons += _names(fault, names)
    return reasons


def _fault(got: object, wanted: torch.Tensor) -> str | None:
    # By exact type: a subclass decides itself what any operation on it does.
    if type(got) not in (torch.Tensor, torch.nn.Parameter):
        return "is no dense CPU tensor at"
    assert isinstance(got, torch.Tensor)
    if got.layout != torch.strided or got.device.type != "cpu" or got.is_neg() or got.is_conj():
        return "is no dense CPU tensor at"
    if got.dtype != wanted.dtype:
        return f"has {got.dtype}, wanted {wanted.dtype}, at"
    if got.shape != wanted.shape:
        shape = f"{list(got.shape)}"[:60]
        return f"has shape {shape}, wanted {list(wanted.shape)}, at"
    return None if bool(torch.isfinite(got).all()) else "has values that are not finite at"


def _names(fault: str, names: Iterable[object]) -> list[str]:
    found = list(names)
    if not found:
        return []
    first = ", ".join(name[:80] if isinstance(name, str) and name.isprintable() else "(odd)" for name in found[:5])
    more = f" and {len(found) - NAMED_AT_MOST} more" if len(found) > NAMED_AT_MOST else ""
    return [f"{fault} {first}{more}"]


def contribution_weight(plan: Plan, examples: int, patients: int) -> float:
    """What the plan's `weighting` gives a site: its slices, its patients, or 1. Not yet a share."""
    return {"examples": float(examples), "patients": float(patients), "uniform": 1.0}[plan.weighting]


def public_weight(plan: Plan, site: str) -> float:
    """What a private plan's `weighting` gives a site: 1, or its declared patients. Nothing of it follows from data.

    Raises ValueError for a plan without privacy, or one that names no sampling for the site.
    """
    if plan.privacy is None or site not in plan.privacy.sites:
        raise ValueError("the plan's privacy.sites does not name this site: it has no public weight")
    return plan.privacy.sites[site].declared_patients if plan.weighting == "declared" else 1.0


def shares(raw: Mapping[str, float]) -> dict[str, float]:
    """Each site's weight over the sum of all (summed exactly), sorted by site name."""
    total = total_weight(raw)
    return {site: raw[site] / total for site in sorted(raw)}


def total_weight(raw: Mapping[str, float]) -> float:
    """The sum of sites' weights. Raises ValueError for one below 0, and for a sum that is not positive and finite."""
    if not raw:
        raise ValueError("no contributions: a mean needs at least one site's update")
    total = math.fsum(raw.values())
    if not (math.isfinite(total) and total > 0.0 and min(raw.values()) >= 0.0):
        raise ValueError(f"weights of {len(raw)} sites must be finite, at least 0 and not all 0, got the sum {total}")
    return total
