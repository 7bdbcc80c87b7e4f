"""The bound on epsilon against its own definition, by simulation and in closed forms."""

from __future__ import annotations

import math

import numpy as np
import pytest

from fedscan.evaluation.audit_bound import Guesses, epsilon_lower_bound, guess, p_value


def test_all_right_is_what_the_closed_form_says() -> None:
    bound = epsilon_lower_bound(Guesses(canaries=300, made=300, correct=300), delta=0.0)
    q = 0.001 ** (1 / 300)
    assert bound == pytest.approx(math.log(q / (1 - q)), abs=1e-3)


def test_coin_flips_prove_nothing() -> None:
    assert epsilon_lower_bound(Guesses(canaries=400, made=266, correct=140), delta=1e-5) == 0.0


def test_delta_weakens_the_bound() -> None:
    good = Guesses(canaries=400, made=266, correct=250)
    bounds = [epsilon_lower_bound(good, delta) for delta in (0.0, 1e-6, 1e-5)]
    assert bounds[0] > bounds[1] > bounds[2] > 0.5


def test_p_value_without_delta_is_the_binomial_tail() -> None:
    exact = sum(math.comb(20, k) for k in range(15, 21)) / 2**20
    assert p_value(Guesses(canaries=40, made=20, correct=15), epsilon=0.0, delta=0.0) == pytest.approx(exact)


def test_bound_of_randomised_response_stays_below_its_epsilon() -> None:
    """Randomised response is (1, 0)-private and the best attack on it guesses what was said: at 95 % confidence the
    bound may lie above 1 in at most 5 % of runs."""
    rng = np.random.default_rng(0)
    said_truly = rng.random((400, 500)) < math.e / (1 + math.e)
    bounds = [epsilon_lower_bound(Guesses(500, 500, int(row.sum())), 0.0, confidence=0.95) for row in said_truly]
    assert np.mean(np.array(bounds) > 1.0) <= 0.075
    assert np.median(bounds) > 0.7


def test_guesses_take_the_ends_and_count_both_ways() -> None:
    scores = np.array([3.0, -2.0, 0.1, 2.0, -3.0, 0.0])
    included = np.array([True, True, False, True, False, True])
    assert guess(scores, included, made=4) == Guesses(canaries=6, made=4, correct=3)
    with pytest.raises(ValueError, match="even"):
        guess(scores, included, made=3)
