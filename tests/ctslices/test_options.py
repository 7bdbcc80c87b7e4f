"""ctslices.options: numbers that cannot be meant are refused with what was wanted."""

from __future__ import annotations

import pickle

import pytest

from ctslices.options import Options


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"field_mm": 0}, "field_mm must lie in 10..2000 mm: got 0"),
        ({"field_mm": float("nan")}, "field_mm"),
        ({"size": 4}, "size must lie in 8..1024 pixels: got 4"),
        ({"every_mm": -1.0}, "every_mm"),
        ({"every_mm": float("inf")}, "every_mm"),
        ({"region": "head"}, "region must be 'chest' or 'any': got 'head'"),
        ({"min_slices": 0}, "min_slices"),
    ],
)
def test_what_cannot_be_meant(wrong: dict[str, object], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Options(**wrong)  # type: ignore[arg-type]


def test_options_reach_workers_whole() -> None:
    options = Options(kernel="B40f", released=frozenset({("a", 1)}))
    assert pickle.loads(pickle.dumps(options)) == options
