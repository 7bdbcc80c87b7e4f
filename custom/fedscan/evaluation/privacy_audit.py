"""An attack on our own privacy: who of several hundred canary patients was trained on? In one run, with all that can be
seen at a site but the draws and the noise. What it finds is a lower bound on epsilon; ours must lie above it.

Canaries go into a copy of the training set in memory, never into a hospital's own run: nothing leaves, nothing is
charged.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ctslices.window import to_hu
from fedscan.evaluation.audit_bound import Guesses, epsilon_lower_bound, guess
from fedscan.plan import Plan
from fedscan.privacy.accounting import epsilon
from fedscan.privacy.event import run_event
from fedscan.privacy.noise import NoiseSource, SecureNoise
from fedscan.privacy_plan import SiteSampling
from fedscan.training.data import NO_LABEL, TrainingSet
from fedscan.training.optimiser import OptimiserState
from fedscan.training.private_round import PrivateTrainer
from fedscan.training.weights import Weights, initial_weights

CANARIES = 400
CONFIDENCE = 0.999
_SITE = "audit"
_BLOCK = 4
"""Pixels a side of a canary's squares: coarse enough for a network to react to."""
_AT_ONCE = 25
"""Canaries in one backward."""
_CRAFT = 100.0
_RIDGE = 1e-6


class AuditError(ValueError):
    """An audit that would say nothing: got, wanted, cure."""


@dataclass(frozen=True)
class Audit:
    """What an attack came to."""

    guesses: Guesses
    epsilon_lower_bound: float
    """At `confidence`."""
    confidence: float
    epsilon: float
    """What the accountant says for the same steps."""
    delta: float
    rounds: int

    @property
    def holds(self) -> bool:
        """Whether the attack stayed below what is claimed."""
        return self.epsilon_lower_bound <= self.epsilon

    def as_dict(self) -> dict[str, Any]:
        """For --json."""
        return {**dataclasses.asdict(self), "holds": self.holds}


def some_patients(data: TrainingSet, most: int) -> TrainingSet:
    """The first `most` patients of `data`: an audit needs no more, and takes time for each."""
    stays = np.arange(data.patients) < most
    return _only(data, most, np.zeros(max(0, data.patients - most), bool)) if not stays.all() else data


def audit(
    plan: Plan,
    data: TrainingSet,
    start: Weights,
    *,
    sampling: SiteSampling,
    canaries: int = CANARIES,
    rounds: int | None = None,
    confidence: float = CONFIDENCE,
    noise: NoiseSource | None = None,
    coins: np.random.Generator | None = None,
    say: Callable[[str], None] = lambda _: None,
) -> Audit:
    """Trains `rounds` rounds of one step under `plan.privacy` on `data` and about half of the canaries, and attacks.

    The attacker is the server and more: it makes the first model (see `_crafted`), knows each round's model and noised
    sum (which update and moments follow from), everybody's rows, and all patients that are no canaries. It does not
    know who was drawn, the noise, and which canaries are in. It takes away what the others are expected to add, and
    fits by least squares how much of each canary's clipped gradient is in the rest. A third of the canaries gets no
    guess. `coins` decide who is in (default: secret). Raises AuditError for too few canaries.
    """
    if canaries < 300:
        raise AuditError(f"canaries: got {canaries}, wanted at least 300: with fewer the bound says little")
    steps = plan.rounds * (plan.training.local_steps or 1) if rounds is None else rounds
    wanted = _audit_plan(plan, sampling, steps, canaries)
    included = (coins or np.random.default_rng()).random(canaries) < 0.5
    everybody = _with_canaries(data, wanted, canaries)
    trainer = PrivateTrainer(wanted, _only(everybody, data.patients, included), _SITE)
    attacker = _Attacker(wanted, everybody, sampling, data.patients)
    weights, state = _crafted(wanted, start), None
    source = SecureNoise() if noise is None else noise
    for number in range(steps):
        result = trainer.round(weights, number, state, source)
        assert result.state is not None
        attacker.see(weights, number, result.state)
        weights, state = {name: weights[name] + result.update[name] for name in weights}, result.state
        say(f"round {number + 1} of {steps}")
    assert wanted.privacy is not None
    guesses = guess(attacker.scores(), included, 2 * (canaries // 3))
    return Audit(
        guesses=guesses,
        epsilon_lower_bound=epsilon_lower_bound(guesses, wanted.privacy.delta, confidence),
        confidence=confidence,
        epsilon=epsilon([run_event(wanted, _SITE)], wanted.privacy.delta),
        delta=wanted.privacy.delta,
        rounds=steps,
    )


class _Attacker:
    """Holds everybody's gradients at each round's model, canaries that are out included, and the normal equations of
    what was seen so far."""

    def __init__(self, plan: Plan, everybody: TrainingSet, sampling: SiteSampling, known: int) -> None:
        assert plan.privacy is not None
        self._trainer = PrivateTrainer(plan, everybody, _SITE)
        self._sampling = sampling
        self._known = known
        self._count = everybody.patients
        self._max_grad_norm = plan.privacy.max_grad_norm
        canaries = self._count - known
        self._gram = torch.zeros(canaries, canaries, dtype=torch.float64)
        self._seen = torch.zeros(canaries, dtype=torch.float64)

    def see(self, weights: Weights, number: int, state: OptimiserState) -> None:
        """Takes in one round: the model that came, and the moments after its one step."""
        # With beta1 = 0 (see _audit_plan) the first moment is the step's noised gradient itself.
        noised = torch.cat([state.first[name].flatten() for name in self._trainer.trained]).double()
        rest = noised * self._sampling.expected_patients_per_step
        rate = self._sampling.sample_rate
        for part in _parts(0, self._known):
            rest -= rate * self._clipped(weights, number, part).sum(0, dtype=torch.float64)
        canaries = torch.cat([self._clipped(weights, number, part) for part in _parts(self._known, self._count)])
        rest -= 0.5 * rate * canaries.sum(0, dtype=torch.float64)
        self._gram += rate**2 * (canaries @ canaries.T).double()
        self._seen += rate * (canaries.double() @ rest)

    def scores(self) -> NDArray[np.float64]:
        """float64 [canaries]: above 0 where a canary seems to be in."""
        # Least squares, as if there were no noise: an attack that trusts in the noise would miss that it is lacking.
        ridge = _RIDGE * self._gram.diagonal().mean()
        regularised = self._gram + ridge * torch.eye(len(self._gram), dtype=torch.float64)
        fitted: NDArray[np.float64] = torch.linalg.solve(regularised, self._seen).numpy()
        return fitted

    def _clipped(self, weights: Weights, number: int, patients: NDArray[np.int64]) -> Tensor:
        """float32 [P, D]: the clipped gradients at `weights` in round `number`."""
        rows = self._trainer.gradients_of(weights, number, 0, patients)
        norms = torch.linalg.vector_norm(rows, dim=1, keepdim=True)
        clipped: Tensor = rows * (self._max_grad_norm / norms.clamp(min=1e-12)).clamp(max=1.0)
        return clipped


def _audit_plan(plan: Plan, sampling: SiteSampling, rounds: int, canaries: int) -> Plan:
    """The plan's mechanism, one step a round, a first moment that forgets (the step's sum can then be seen), and a
    class for each canary: a row of the class embedding that no other patient's gradient touches."""
    if plan.privacy is None:
        raise AuditError("the plan has no privacy: there is nothing to audit")
    training = plan.training.model_copy(
        update={"local_steps": 1, "local_epochs": None, "beta1": 0.0, "optimiser_state": "keep", "precision": "fp32"}
    )
    privacy = plan.privacy.model_copy(update={"sites": {_SITE: sampling}, "trainable": "all"})
    classes = tuple(f"canary {i}" for i in range(canaries))
    changed = {
        "model": plan.model.model_copy(update={"classes": classes, "class_dropout": 0.0}),
        "training": training,
        "privacy": privacy,
        "rounds": rounds,
        "clients_per_round": None,
        "min_responses": 1,
    }
    return Plan.model_validate(plan.model_copy(update=changed).model_dump())


def _crafted(plan: Plan, start: Weights) -> Weights:
    """`start` as an attacker would send it: embeddings so small, and projected so strongly, that half of the squared
    length of a canary's gradient lies in that canary's own row of the class embedding."""
    weights = {name: start.get(name, fresh).clone() for name, fresh in initial_weights(plan).items()}
    for name, tensor in weights.items():
        if "time_emb_proj.weight" in name:
            tensor *= _CRAFT
        elif "time_embed" in name or "class_embedding" in name:
            tensor /= _CRAFT
    return weights


def _with_canaries(data: TrainingSet, plan: Plan, count: int) -> TrainingSet:
    """`data` and `count` patients more, one slice each, each of a class of its own: random squares, like nobody's
    chest."""
    rng = np.random.default_rng(plan.seed)
    side = -(-plan.model.size // _BLOCK)
    squares = rng.uniform(-1.0, 1.0, (count, side, side)).repeat(_BLOCK, 1).repeat(_BLOCK, 2)
    pictures = to_hu(squares[:, : plan.model.size, : plan.model.size].astype(np.float32), data.window)
    unlabelled = torch.full((len(data),), NO_LABEL, dtype=torch.int64)
    return dataclasses.replace(
        data,
        hu=np.concatenate([data.hu, pictures]),
        label=torch.cat([unlabelled, torch.arange(count)]),
        patient=np.concatenate([data.patient, data.patients + np.arange(count, dtype=np.int32)]),
        pseudonyms=(*data.pseudonyms, *(f"canary {i}" for i in range(count))),
    )


def _only(everybody: TrainingSet, known: int, included: NDArray[np.bool_]) -> TrainingSet:
    """All known patients and the canaries that are in."""
    stays = np.concatenate([np.ones(known, bool), included])
    slices = stays[everybody.patient]
    new_number = np.cumsum(stays) - 1
    return dataclasses.replace(
        everybody,
        hu=everybody.hu[slices],
        label=None if everybody.label is None else everybody.label[torch.from_numpy(slices)],
        patient=new_number[everybody.patient[slices]].astype(np.int32),
        pseudonyms=tuple(one for one, here in zip(everybody.pseudonyms, stays, strict=True) if here),
    )


def _parts(start: int, end: int) -> list[NDArray[np.int64]]:
    return [np.arange(i, min(i + _AT_ONCE, end), dtype=np.int64) for i in range(start, end, _AT_ONCE)]
