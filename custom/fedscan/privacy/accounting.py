"""What events cost together: epsilon from the ledger's events by privacy loss distributions (dp-accounting)."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache

import numpy as np
from dp_accounting.pld.privacy_loss_distribution import PrivacyLossDistribution, from_gaussian_mechanism, identity
from pydantic import ValidationError
from scipy.optimize import brentq
from scipy.special import log_ndtr, ndtr

from fedscan.privacy.event import Event

Segment = tuple[float, float, int]
"""noise_multiplier, sample_rate, steps."""

LEAST_NOISE = 0.05
MOST_NOISE = 1e6
MOST_ROUNDS = 1_000_000
MOST_STEPS = 10**15
_LEAST_LOG_NOISE, _MOST_LOG_NOISE = math.log(LEAST_NOISE), math.log(MOST_NOISE)
_LEAST_EPSILON = 1e-9
_NO_PRIVACY = 30.0
"""Stands for log(infinity / target_epsilon) in the search."""

_INTERVAL = 2e-3
_MAX_POINTS = 2e5
_MAX_POINTS_A_STEP = 2e4
_MAX_SPAN = 1e5
_STEPS_AT_ONCE = 1024
_TRUNCATED = 1e-18
"""Mass that a truncation may put to an infinite loss."""
_ROUNDING = 1e-14
_ROUNDING_A_STEP = 1e-15
"""What float64 may lose of delta; ways of composing differ by a fifth of it a step (docs/results/accounting.md)."""


class AccountingError(Exception):
    """Events that cannot be accounted for: nothing may be spent on them."""


class NoFiniteEpsilonError(AccountingError):
    """The noise is too little for any epsilon at this delta."""


def epsilon(events: Iterable[Event], delta: float) -> float:
    """Epsilon of all `events` together at `delta`, from above: the grid and float64's rounding are allowed for.

    0.0 for no events. Raises AccountingError for an unknown event, for events of different units, for a delta that is
    none or too small for float64, and where no finite epsilon comes out.
    """
    if not 0.0 < delta < 1.0:
        raise AccountingError(f"delta must lie between 0 and 1, got {delta!r}")
    segments = _segments(events)
    return _epsilon(segments, (), delta) if segments else 0.0


def noise_multiplier_for(target_epsilon: float, delta: float, sample_rate: float, steps: int) -> float:
    """The smallest noise multiplier of 4 significant digits that keeps epsilon at or below target_epsilon.

    Raises AccountingError where there is none, or where every noise would do.
    """
    if not (math.isfinite(target_epsilon) and target_epsilon > 0.0):
        raise AccountingError(f"target epsilon must be a number above 0, got {target_epsilon!r}")

    def excess(log_noise: float) -> float:
        """log(epsilon / target_epsilon), falling in the noise."""
        event = Event.model_construct(
            noise_multiplier=math.exp(log_noise), sample_rate=sample_rate, steps=steps, unit="patient"
        )
        try:
            return math.log(max(epsilon([event], delta), _LEAST_EPSILON) / target_epsilon)
        except NoFiniteEpsilonError:
            return _NO_PRIVACY

    low, high = _bracket(excess, math.log(_gaussian_guess(target_epsilon, delta, sample_rate, steps)))
    found: float = brentq(excess, low, high, xtol=2e-5)
    noise = rounded_up(math.exp(found - 4e-5))
    while excess(math.log(noise)) > 0.0:
        noise = rounded_up(noise * 1.00005)
    return noise


def _bracket(excess: Callable[[float], float], guess: float) -> tuple[float, float]:
    """Logarithms of two noise multipliers with `excess` above and not above 0, found from a first guess."""
    low = high = min(max(guess, _LEAST_LOG_NOISE), _MOST_LOG_NOISE)
    step = 0.05
    while excess(high) > 0.0:
        if high >= _MOST_LOG_NOISE:
            raise AccountingError(f"no noise multiplier up to {MOST_NOISE:g} keeps epsilon so low: take fewer steps")
        low, high, step = high, min(high + step, _MOST_LOG_NOISE), 2.0 * step
    while excess(low) <= 0.0:
        if low <= _LEAST_LOG_NOISE:
            raise AccountingError(
                f"a noise multiplier of {LEAST_NOISE:g} is enough: delta is so large against sample_rate and steps "
                "that it excuses a patient's whole exposure; lower delta, or target_epsilon"
            )
        low, high, step = max(low - step, _LEAST_LOG_NOISE), low, 2.0 * step
    return low, high


def _gaussian_guess(target_epsilon: float, delta: float, sample_rate: float, steps: int) -> float:
    """Noise multiplier by the central limit (Dong, Roth, Su 2022, cor. 3.1 and thm. 5.1): a first guess only."""

    def excess(log_mu: float) -> float:
        mu = math.exp(log_mu)
        upper, lower = ndtr(mu / 2.0 - target_epsilon / mu), log_ndtr(-mu / 2.0 - target_epsilon / mu)
        return float(upper - math.exp(target_epsilon + lower) - delta)

    try:
        mu = math.exp(brentq(excess, -16.0, 10.0, xtol=1e-3))
        return 1.0 / math.sqrt(math.log1p((mu / sample_rate) ** 2 / steps))
    except (ValueError, ArithmeticError):
        return 1.0


def rounds_that_fit(spent: Sequence[Event], one_round: Event, delta: float, max_epsilon: float) -> int:
    """How many further rounds like `one_round` keep epsilon at or below max_epsilon, at most MOST_ROUNDS.

    Raises AccountingError when what was spent cannot be accounted for.
    """

    def after(rounds: int) -> list[Event]:
        more = one_round.model_copy(update={"steps": one_round.steps * rounds})
        return [*spent, more] if rounds else [*spent]

    def fits(rounds: int) -> bool:
        try:
            return _epsilon(*_with_last(_segments(after(rounds)), one_round), delta) <= max_epsilon
        except NoFiniteEpsilonError:
            return False

    if not epsilon(spent, delta) <= max_epsilon:
        return 0
    low, high = 0, 1
    while fits(high):
        if high >= MOST_ROUNDS:
            return MOST_ROUNDS
        low, high = high, min(2 * high, MOST_ROUNDS)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    # Composed in another order, epsilon differs in its last digits: the answer is what `epsilon` will say.
    while low and epsilon(after(low), delta) > max_epsilon:
        low -= 1
    return low


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
        return Event.model_validate(vars(event))
    except ValidationError as error:
        fields = sorted({".".join(str(part) for part in item["loc"]) for item in error.errors()})
        raise AccountingError(f"an event with an unknown {', '.join(fields)}") from None


def _with_last(segments: tuple[Segment, ...], event: Event) -> tuple[tuple[Segment, ...], tuple[Segment, ...]]:
    """The segments unlike `event`, and those like it."""
    like = tuple(s for s in segments if s[:2] == (event.noise_multiplier, event.sample_rate))
    return tuple(s for s in segments if s not in like), like


@lru_cache(maxsize=1024)
def _epsilon(settled: tuple[Segment, ...], last: tuple[Segment, ...], delta: float) -> float:
    """Of both together; `settled` is composed once for any `last`."""
    segments = settled + last
    rounding = _rounding(segments)
    if not 10.0 * rounding <= delta:
        raise AccountingError(f"delta {delta:g} is too small for so many steps in float64: take {10 * rounding:.1e}")
    try:
        with np.errstate(all="ignore"):
            interval = _interval(segments)
            loss = _composed(settled, interval).compose(_composed(last, interval), _TRUNCATED)
            value = float(loss.get_epsilon_for_delta(delta - rounding))
    except (ArithmeticError, ValueError, MemoryError) as error:
        raise AccountingError(f"the privacy loss does not converge ({type(error).__name__})") from None
    if value == math.inf:
        raise NoFiniteEpsilonError(f"no finite epsilon at delta {delta:g}: the noise is too little")
    if not value >= 0.0:
        raise AccountingError(f"the privacy loss does not converge (epsilon {value})")
    return value


def _rounding(segments: tuple[Segment, ...]) -> float:
    """What float64 may lose of delta over all segments."""
    steps = sum(steps for _, _, steps in segments)
    return _ROUNDING * len(segments) + _ROUNDING_A_STEP * steps if steps < MOST_STEPS else math.inf


def _interval(segments: tuple[Segment, ...]) -> float:
    """Width of the loss grid: fine against one step's loss, coarse enough that the whole fits into memory."""
    square = root = reach = 0.0
    for sigma, q, steps in segments:
        second = _second_moment(sigma, q)
        square += steps * second
        root += steps * math.sqrt(second)
        reach = max(reach, 10.0 / sigma + 0.5 / sigma**2)
    span = square + 20.0 * math.sqrt(square) + reach
    if not span <= _MAX_SPAN:
        raise NoFiniteEpsilonError("epsilon would be in the thousands: the noise is too little")
    wanted = max(min(_INTERVAL, square / root / 8.0), span / _MAX_POINTS, reach / _MAX_POINTS_A_STEP)
    return float(_INTERVAL * 2.0 ** math.floor(math.log2(wanted / _INTERVAL)))


def _second_moment(sigma: float, q: float) -> float:
    """About E[loss^2] of a step, from above: chi-square where noise is large, the unsampled Gaussian's otherwise."""
    inverse = 1.0 / sigma**2
    gaussian = q * (inverse + inverse**2 / 4.0)
    return min(gaussian, q**2 * math.expm1(inverse)) if inverse < 50.0 else gaussian


@lru_cache(maxsize=8)
def _composed(segments: tuple[Segment, ...], interval: float) -> PrivacyLossDistribution:
    """Privacy loss of all segments, for adding and for removing one, rounded pessimistically to a grid of `interval`.

    Composed in pairs: one after the other, each would be convolved with the widest.
    """
    losses = [_segment_loss(segment, interval) for segment in segments]
    while len(losses) > 1:
        paired = [a.compose(b, _TRUNCATED) for a, b in zip(losses[::2], losses[1::2], strict=False)]
        losses = paired + losses[len(losses) - len(losses) % 2 :]
    return losses[0] if losses else identity(value_discretization_interval=interval)


@lru_cache(maxsize=64)
def _segment_loss(segment: Segment, interval: float) -> PrivacyLossDistribution:
    sigma, q, steps = segment
    return _repeated(_step_loss(sigma, q, interval), steps)


@lru_cache(maxsize=64)
def _step_loss(sigma: float, q: float, interval: float) -> PrivacyLossDistribution:
    return from_gaussian_mechanism(sigma, sampling_prob=q, value_discretization_interval=interval)


def _repeated(one: PrivacyLossDistribution, steps: int) -> PrivacyLossDistribution:
    """`steps` of one, in powers of _STEPS_AT_ONCE: the library's bounds on tails are loose for many narrow steps."""
    if steps <= _STEPS_AT_ONCE:
        return one.self_compose(steps, _TRUNCATED)
    many, rest = divmod(steps, _STEPS_AT_ONCE)
    whole = _repeated(one.self_compose(_STEPS_AT_ONCE, _TRUNCATED), many)
    return whole.compose(one.self_compose(rest, _TRUNCATED), _TRUNCATED) if rest else whole


def rounded_up(value: float) -> float:
    """To 4 significant digits, never down."""
    unit = 10.0 ** (math.floor(math.log10(value)) - 3)
    return float(f"{math.ceil(value / unit) * unit:.4g}")
