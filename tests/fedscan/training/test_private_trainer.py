"""The trainer child under DP, with real processes: pays before each step, keeps its reasons, tells nothing of data."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ctslices.store import SliceStore
from fedscan.plan import Plan
from fedscan.privacy.noise import ReproducibleNoise
from fedscan.training import trainer_client
from fedscan.training import trainer_protocol as protocol
from fedscan.training.data import TrainingSet
from fedscan.training.private_round import PrivateTrainer
from fedscan.training.seeds import derived_seed
from fedscan.training.site_state import SiteStates
from fedscan.training.tensor_file import load_tensors, save_tensors
from fedscan.training.trainer import PRIVATE_REASON
from fedscan.training.trainer_client import LOG_NAME, PrivateAnswer, Trainer, TrainerDied, TrainerRefused
from fedscan.training.trainer_protocol import Done, PrivateDone, PrivateProgress, Progress, Train
from fedscan.training.weights import apply_update, digest, initial_weights

RUN = "0" * 32
SECONDS = 120.0


def _never() -> bool:
    return False


@pytest.fixture
def start(
    make_private: Callable[..., Plan], make_store: Callable[..., Path], tmp_path: Path
) -> Iterator[Callable[..., Trainer]]:
    started: list[Trainer] = []

    def make(
        plan: Plan | None = None, store: Path | None = None, seed: int | None = None, state: str = "state"
    ) -> Trainer:
        plan = plan or make_private(noise_multiplier=1.0)
        save_tensors(tmp_path / "weights", initial_weights(plan), {})
        started.append(Trainer(store or make_store(), tmp_path / state, plan, "a", RUN, 1, seed))
        return started[-1]

    yield make
    for trainer in started:
        trainer.stop()


def test_the_child_trains_what_the_process_itself_would(
    start: Callable[..., Trainer], make_private: Callable[..., Plan], make_store: Callable[..., Path], tmp_path: Path
) -> None:
    plan, store = make_private(noise_multiplier=1.0, rounds=5), make_store()
    here = PrivateTrainer(plan, TrainingSet.from_store(SliceStore.open(store), plan), "a")
    there = start(plan, store, seed=7)
    weights, state = initial_weights(plan), None
    for number in range(2):
        noise = ReproducibleNoise(derived_seed("reproducible noise", 7, "a", number))
        result = here.round(weights, number, state, noise)
        save_tensors(tmp_path / "weights", weights, {})
        answer = there.train_private(number, tmp_path / "weights", tmp_path / "update", SECONDS, _never, 10 + number)
        update, metadata = load_tensors(answer.update_path)
        assert digest(update) == digest(result.update)
        assert metadata == {"round": str(number)}
        assert answer == PrivateAnswer(
            update_path=tmp_path / "update",
            charge=10 + number,
            unit="patient",
            steps=2,
            from_round=number - 1 if number else None,
        )
        weights, state = apply_update(weights, update), result.state
    assert "round 1, charge 11: 5 patients; 0 gradients were not finite" in (tmp_path / "state" / LOG_NAME).read_text()


def test_no_step_is_taken_uncharged_and_one_charge_trains_once(start: Callable[..., Trainer], tmp_path: Path) -> None:
    trainer = start()
    weights, out = tmp_path / "weights", tmp_path / "update"
    with pytest.raises(TrainerRefused):
        trainer.train(0, weights, out, SECONDS, _never)
    assert not out.exists()
    assert "no step is taken uncharged: got charge None" in (tmp_path / "state" / LOG_NAME).read_text()
    trainer.train_private(0, weights, out, SECONDS, _never, 3)
    out.unlink()
    pid = trainer.pid
    for again in (3, 2):
        with pytest.raises(TrainerRefused):
            trainer.train_private(0, weights, out, SECONDS, _never, again)
        assert not out.exists()
    with pytest.raises(TrainerRefused):  # a failed training is paid for as well
        trainer.train_private(0, tmp_path / "missing", out, SECONDS, _never, 4)
    with pytest.raises(TrainerRefused):
        trainer.train_private(0, weights, out, SECONDS, _never, 4)
    trainer.train_private(0, weights, out, SECONDS, _never, 5)
    assert out.exists()
    assert trainer.pid == pid


def test_two_children_of_one_plan_never_make_the_same_noise(start: Callable[..., Trainer], tmp_path: Path) -> None:
    digests = []
    for name in ("one", "other"):
        trainer = start(state=name)
        answer = trainer.train_private(0, tmp_path / "weights", tmp_path / f"{name}.out", SECONDS, _never, 0)
        digests.append(digest(load_tensors(answer.update_path)[0]))
    assert digests[0] != digests[1]


def test_reasons_stay_in_the_log(
    start: Callable[..., Trainer], make_private: Callable[..., Plan], make_store: Callable[..., Path], tmp_path: Path
) -> None:
    """A reason could depend on one patient: here on a label that nobody else has."""
    trainer = start(make_private(classes=("x",)), make_store("other", 4, label=[0, 0, 0, 0], labels=("rare disease",)))
    with pytest.raises(TrainerRefused) as refused:
        trainer.train_private(0, tmp_path / "weights", tmp_path / "update", SECONDS, _never, 0)
    assert str(refused.value) == PRIVATE_REASON
    assert "rare disease" in (tmp_path / "state" / LOG_NAME).read_text()


def test_a_plan_without_privacy_takes_no_charge(
    start: Callable[..., Trainer], make_plan: Callable[..., Plan], tmp_path: Path
) -> None:
    with pytest.raises(TrainerRefused, match="a charge for a plan without privacy"):
        start(make_plan()).train_private(0, tmp_path / "weights", tmp_path / "update", SECONDS, _never, 0)


def test_a_killed_writer_leaves_no_state_without_its_update(
    start: Callable[..., Trainer], make_private: Callable[..., Plan], tmp_path: Path
) -> None:
    """Update first, then state: where the update cannot be written, the site does not go on as if it had answered."""
    plan = make_private(noise_multiplier=1.0)
    trainer = start(plan)
    with pytest.raises(TrainerRefused):
        trainer.train_private(0, tmp_path / "weights", tmp_path / "no folder" / "update", SECONDS, _never, 0)
    assert SiteStates(tmp_path / "state", plan.digest, RUN, "a").rounds() == []


def test_under_dp_no_word_of_the_child_has_a_field_that_follows_from_data() -> None:
    """Whoever adds a field weighs it against docs/privacy.md first."""
    assert set(PrivateProgress.model_fields) == {"kind", "step", "steps"}
    assert set(PrivateDone.model_fields) == {"kind", "round_number", "charge", "unit", "steps", "from_round"}


def test_a_child_that_speaks_as_if_there_were_no_privacy_is_ended() -> None:
    done = Done(
        round_number=0, loss=0.1, epoch_losses=(), examples=1, patients=1, unit="patient", values="hu", field_mm=None,
        steps=1, seconds=0.0, from_round=None,
    )  # fmt: skip
    private = PrivateDone(round_number=0, charge=3, unit="patient", steps=1, from_round=None)
    order = Train(round_number=0, weights=Path("w"), out=Path("o"), charge=3)
    for line in (done, Progress(step=1, steps=2, loss=0.1)):
        with pytest.raises(TrainerDied, match="as if the plan's privacy were another"):
            trainer_client._judge(protocol.encode(line), order, private=True)
    for line in (private, PrivateProgress(step=1, steps=2)):
        assert trainer_client._judge(protocol.encode(line), order, private=True) == line
        with pytest.raises(TrainerDied, match="as if the plan's privacy were another"):
            trainer_client._judge(protocol.encode(line), order, private=False)
    other = order.model_copy(update={"charge": 4})
    with pytest.raises(TrainerDied, match="answered for another charge"):
        trainer_client._judge(protocol.encode(private), other, private=True)
