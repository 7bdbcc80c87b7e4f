from __future__ import annotations

import pytest

from ctslices.split import side

IDS = [f"{k:032x}" for k in range(4000)]


def test_the_fraction_holds_over_many_patients() -> None:
    share = sum(side(i, 0.2, 0) == "holdout" for i in IDS) / len(IDS)
    assert 0.18 < share < 0.22


def test_a_larger_fraction_only_adds_to_the_holdout() -> None:
    small, large = ({i for i in IDS if side(i, f, 7) == "holdout"} for f in (0.1, 0.3))
    assert small < large


def test_the_seed_decides_and_nothing_else() -> None:
    first, second = ([side(i, 0.5, seed) for i in IDS[:100]] for seed in (0, 1))
    assert first != second
    assert first == [side(i, 0.5, 0) for i in reversed(IDS[:100])][::-1]


def test_no_holdout_at_zero() -> None:
    assert {side(i, 0.0, 3) for i in IDS} == {"train"}
    with pytest.raises(ValueError, match=r"got 1\.0"):
        side(IDS[0], 1.0, 0)
