"""What events cost together: epsilon from the ledger's events by privacy loss distributions (dp-accounting)."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from functools import lru_cache

import numpy as np
from dp_accounting.pld.privacy_loss_distribution import PrivacyLossDistribution, from_gaussian_mechanism, identity
from pydantic import ValidationError

from fedscan.privacy.event import Event

Segment = tuple[float, float, int]
"""noise_multiplier, sample_rate, steps."""

_INTERVAL = 1e-3
_MAX_POINTS = 1e6
_SMALLEST_DELTA = 1e-12
"""Below, the rounding of double precision would decide."""


class AccountingError(Exception):
    """Events that cannot be accounted for: nothing may be spent on them."""


def epsilon(events: Iterable[Event], delta: float) -> float:
    """Epsilon of all `events` together at `delta`: never below the true one but for float64's rounding.

    0.0 for no events. Raises AccountingError for an unknown event, for events of different units, for a delta outside
    of 1e-12..1, and where no finite epsilon comes out.
    """
    _check_delta(delta)
    segments = _segments(events)
    if not segments:
        return 0.0
    return _epsilon_of(_compose(segments, _interval(segments)), delta)


def noise_multiplier_for(target_epsilon: float, delta: float, sample_rate: float, steps: int) -> float:
    """The smallest noise multiplier of 4 significant digits with epsilon <= target_epsilon. Raises AccountingError."""
    _check_delta(delta)

    def fits(noise_multiplier: float) -> bool:
        try:
            segments = ((noise_multiplier, sample_rate, steps),)
            return _epsilon_of(_compose(segments, _interval(segments)), delta) <= target_epsilon
        except AccountingError:
            return False

    low, high = 1e-2, 1.0
    while not fits(high):
        low, high = high, high * 2.0
        if high > 1e6:
            raise AccountingError(f"no noise multiplier up to 1e6 gives epsilon {target_epsilon:g} at delta {delta:g}")
    while high / low > 1.00005:
        middle = math.sqrt(low * high)
        low, high = (low, middle) if fits(middle) else (middle, high)
    rounded = _rounded_up(high)
    return rounded if fits(rounded) else _rounded_up(rounded * 1.0005)


def rounds_that_fit(spent: Sequence[Event], one_round: Event, delta: float, max_epsilon: float) -> int:
    """How many further rounds keep epsilon at or below max_epsilon. Raises AccountingError."""

    def fits(rounds: int) -> bool:
        more = [one_round.model_copy(update={"steps": one_round.steps * rounds})] if rounds else []
        return epsilon([*spent, *more], delta) <= max_epsilon

    if not fits(1):
        return 0
    low, high = 1, 2
    while high < 1_000_000 and fits(high):
        low, high = high, high * 2
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


def _check_delta(delta: float) -> None:
    if not _SMALLEST_DELTA <= delta < 1.0:
        raise AccountingError(f"delta must lie in {_SMALLEST_DELTA:g}..1, got {delta!r}")


def _segments(events: Iterable[Event]) -> tuple[Segment, ...]:
    """Equal events added up, in one order."""
    steps: dict[tuple[float, float], int] = {}
    units: set[str] = set()
    for event in events:
        known = _known(event)
        units.add(known.unit)
        key = (known.noise_multiplier, known.sample_rate)
        steps[key] = steps.get(key, 0) + known.steps
    if len(units) > 1:
        raise AccountingError(f"events of different units do not compose: {', '.join(sorted(units))}")
    return tuple((sigma, q, count) for (sigma, q), count in sorted(steps.items()))


def _known(event: object) -> Event:
    """The event checked anew: `model_copy` and unpickling check nothing."""
    if type(event) is not Event:
        raise AccountingError(f"an event of type {type(event).__name__} is unknown")
    try:
        return Event.model_validate(event.model_dump())
    except ValidationError as error:
        fields = sorted({".".join(str(part) for part in item["loc"]) for item in error.errors()})
        raise AccountingError(f"an event with an unknown {', '.join(fields)}") from None


def _interval(segments: tuple[Segment, ...]) -> float:
    """Width of the loss grid: fine against one step's loss, coarse enough that the whole fits into memory."""
    total = square = root = reach = 0.0
    for sigma, q, steps in segments:
        second = _second_moment(sigma, q)
        total += steps * second
        square += steps * second
        root += steps * math.sqrt(second)
        reach = max(reach, 10.0 / sigma + 1.0 / (2.0 * sigma**2))
    fine = min(_INTERVAL, 0.5 * square / root)
    span = total + 20.0 * math.sqrt(square) + reach
    return max(fine, span / _MAX_POINTS)


def _second_moment(sigma: float, q: float) -> float:
    """About E[loss^2] of a step, from above: chi-square where noise is large, the unsampled Gaussian's otherwise."""
    inverse = 1.0 / sigma**2
    gaussian = q * (inverse + inverse**2 / 4.0)
    return min(gaussian, q**2 * math.expm1(inverse)) if inverse < 50.0 else gaussian


@lru_cache(maxsize=256)
def _one(sigma: float, q: float, interval: float) -> PrivacyLossDistribution:
    return from_gaussian_mechanism(sigma, sampling_prob=q, value_discretization_interval=interval)


def _compose(segments: tuple[Segment, ...], interval: float) -> PrivacyLossDistribution:
    try:
        with np.errstate(all="ignore"):
            whole = identity(value_discretization_interval=interval)
            for sigma, q, steps in segments:
                whole = whole.compose(_one(sigma, q, interval).self_compose(steps))
            return whole
    except (ArithmeticError, ValueError, MemoryError) as error:
        raise AccountingError(f"the privacy loss does not converge ({type(error).__name__}): {segments}") from None


def _epsilon_of(loss: PrivacyLossDistribution, delta: float) -> float:
    try:
        with np.errstate(all="ignore"):
            value = float(loss.get_epsilon_for_delta(delta))
    except (ArithmeticError, ValueError, MemoryError) as error:
        raise AccountingError(f"epsilon does not converge ({type(error).__name__})") from None
    if not (math.isfinite(value) and value >= 0.0):
        raise AccountingError(f"no finite epsilon at delta {delta:g}: got {value}")
    return value


def _rounded_up(value: float) -> float:
    """To 4 significant digits, never down."""
    unit = 10.0 ** (math.floor(math.log10(value)) - 3)
    return float(f"{math.ceil(value / unit) * unit:.4g}")
