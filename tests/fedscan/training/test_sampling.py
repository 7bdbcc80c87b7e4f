from collections import Counter

import pytest

from fedscan.training.sampling import sample_sites

SITES = [f"site-{letter}" for letter in "abcdef"]


def test_the_draw_depends_on_seed_and_round_and_not_on_the_order_of_names() -> None:
    draws = [tuple(sample_sites(SITES, 2, 1, number)) for number in range(60)]
    assert draws == [tuple(sample_sites(SITES[::-1], 2, 1, number)) for number in range(60)]
    assert draws != [tuple(sample_sites(SITES, 2, 2, number)) for number in range(60)]
    assert len(set(draws)) > 10
    assert all(list(draw) == sorted(set(draw)) and len(draw) == 2 for draw in draws)


def test_each_site_is_as_likely_as_the_others() -> None:
    counts = Counter(site for number in range(3000) for site in sample_sites(SITES, 2, 0, number))
    assert set(counts) == set(SITES)
    assert all(abs(count - 1000) < 5 * (3000 * (1 / 3) * (2 / 3)) ** 0.5 for count in counts.values())


def test_a_site_that_is_away_leaves_the_others_as_drawn() -> None:
    for number in range(20):
        drawn = sample_sites(SITES, 3, 0, number)
        assert set(drawn[1:]) <= set(sample_sites([s for s in SITES if s != drawn[0]], 3, 0, number))


def test_all_sites_where_no_number_or_too_many_are_asked() -> None:
    assert sample_sites(["b", "a", "b"], None, 0, 0) == ["a", "b"]
    assert sample_sites(["b", "a"], 5, 0, 0) == ["a", "b"]
    assert sample_sites([], 2, 0, 0) == []
    with pytest.raises(ValueError, match="at least 1"):
        sample_sites(SITES, 0, 0, 0)
