from __future__ import annotations

import stat
from pathlib import Path

import pytest
import torch

from fedscan.training.optimiser import OptimiserState
from fedscan.training.site_state import SiteStates

WEIGHTS = {"a": torch.zeros(3), "b": torch.zeros(2, 2)}


def _state(steps: int) -> OptimiserState:
    return OptimiserState(
        steps,
        {name: torch.full_like(t, steps) for name, t in WEIGHTS.items()},
        {name: torch.full_like(t, steps / 2) for name, t in WEIGHTS.items()},
    )


@pytest.fixture
def states(tmp_path: Path) -> SiteStates:
    return SiteStates(tmp_path / "state", plan_digest="p" * 64, run_id="r" * 32, site="a")


def _steps(found: tuple[int, OptimiserState] | None) -> tuple[int, int] | None:
    return None if found is None else (found[0], found[1].steps)


def test_the_last_two_are_kept_so_that_a_site_can_go_back_one_round(states: SiteStates) -> None:
    assert states.before(0, WEIGHTS) is None
    for number in range(4):
        states.save(number, _state(10 * number))
    assert states.rounds() == [2, 3]
    assert _steps(states.before(4, WEIGHTS)) == (3, 30)
    assert _steps(states.before(9, WEIGHTS)) == (3, 30)  # rounds that did not ask this site
    assert _steps(states.before(3, WEIGHTS)) == (2, 20)
    assert states.before(2, WEIGHTS) is None


def test_a_round_done_again_drops_what_came_after_it(states: SiteStates) -> None:
    for number in (4, 5, 6):
        states.save(number, _state(number))
    states.save(5, _state(50))
    assert states.rounds() == [5]
    states.save(6, _state(60))
    assert _steps(states.before(7, WEIGHTS)) == (6, 60)
    assert _steps(states.before(6, WEIGHTS)) == (5, 50)


def test_values_come_back_to_the_bit_in_files_for_the_site_alone(states: SiteStates) -> None:
    first = {name: torch.randn_like(t) for name, t in WEIGHTS.items()}
    second = {name: torch.rand_like(t) for name, t in WEIGHTS.items()}
    states.save(0, OptimiserState(7, first, second))
    found = states.before(1, WEIGHTS)
    assert found is not None
    assert all(torch.equal(found[1].first[n], first[n]) and torch.equal(found[1].second[n], second[n]) for n in WEIGHTS)
    assert stat.S_IMODE((states.folder / "round-00000.safetensors").stat().st_mode) == 0o600
    assert stat.S_IMODE(states.folder.stat().st_mode) == 0o700


@pytest.mark.parametrize("field", ["plan_digest", "run_id", "site"])
def test_states_of_another_run_plan_or_site_are_passed_over(states: SiteStates, field: str) -> None:
    states.save(0, _state(1))
    of = {"plan_digest": states.plan_digest, "run_id": states.run_id, "site": states.site, field: "other"}
    assert SiteStates(states.folder, **of).before(1, WEIGHTS) is None


def test_damaged_and_misfitting_states_are_passed_over(states: SiteStates) -> None:
    states.save(0, _state(10))
    states.save(1, _state(20))
    assert states.before(2, {**WEIGHTS, "c": torch.zeros(1)}) is None
    newest = states.folder / "round-00001.safetensors"
    newest.write_bytes(newest.read_bytes()[:-5])
    assert _steps(states.before(2, WEIGHTS)) == (0, 10)


def test_a_killed_writers_temporary_file_is_cleared(states: SiteStates) -> None:
    states.save(0, _state(1))
    (states.folder / ".round-00001.safetensors.123.part").touch()
    states.save(1, _state(2))
    assert sorted(p.name for p in states.folder.iterdir()) == ["round-00000.safetensors", "round-00001.safetensors"]
