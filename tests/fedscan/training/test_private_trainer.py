"""The trainer child under DP: takes no step uncharged, keeps its reasons, tells nothing that follows from data."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ctslices.store import SliceStore
from fedscan.plan import Plan
from fedscan.privacy.noise import ReproducibleNoise
from fedscan.training import trainer, trainer_replies
from fedscan.training import trainer_protocol as protocol
from fedscan.training.data import TrainingSet
from fedscan.training.private_round import PrivateTrainer
from fedscan.training.seeds import derived_seed
from fedscan.training.site_state import SiteStates
from fedscan.training.tensor_file import load_tensors, save_tensors
from fedscan.training.trainer import PRIVATE_REASON
from fedscan.training.trainer_client import LOG_NAME, Trainer
from fedscan.training.trainer_protocol import Done, PrivateDone, PrivateProgress, Progress, Refused, Start, Train
from fedscan.training.trainer_replies import PrivateAnswer, TrainerDied, TrainerRefused
from fedscan.training.weights import apply_update, digest, initial_weights

RUN = "0" * 32
SECONDS = 120.0


def _never() -> bool:
    return False


def _unheard(_: protocol.Said) -> None:
    pass


class Here:
    """The child's own answers without its process (a start costs seconds): what `serve` calls, on files."""

    def __init__(self, plan: Plan, store: Path, folder: Path, state: str = "state") -> None:
        self.weights, self.out = folder / "weights", folder / "update"
        save_tensors(self.weights, initial_weights(plan), {})
        start = Start(
            parent=os.getpid(), store=store, state_folder=folder / state, plan=plan, site="a", run_id=RUN, threads=1
        )
        self._private = plan.privacy is not None
        self._child = trainer._begin(start)

    def train(self, charge: int | None, **changes: Any) -> protocol.Finished | Refused:
        order = Train(**{"round_number": 0, "weights": self.weights, "out": self.out, "charge": charge, **changes})
        return trainer._answer(self._child, order, _unheard, self._private)


@pytest.fixture
def here(make_private: Callable[..., Plan], make_store: Callable[..., Path], tmp_path: Path) -> Callable[..., Here]:
    def make(plan: Plan | None = None, store: Path | None = None, state: str = "state") -> Here:
        return Here(plan or make_private(noise_multiplier=1.0), store or make_store(), tmp_path, state)

    return make


def test_the_child_trains_what_the_process_itself_would_and_one_charge_trains_once(
    make_private: Callable[..., Plan], make_store: Callable[..., Path], tmp_path: Path
) -> None:
    plan, store = make_private(noise_multiplier=1.0, rounds=5), make_store()
    data = TrainingSet.from_store(SliceStore.open(store), plan)
    inside = PrivateTrainer(plan, data, "a", allow_reproducible=True)
    child = Trainer(store, tmp_path / "state", plan, "a", RUN, reproducible_noise_seed=7)
    weights_path, out, log = tmp_path / "weights", tmp_path / "update", tmp_path / "state" / LOG_NAME
    weights, state = initial_weights(plan), None
    for number in range(2):
        noise = ReproducibleNoise(derived_seed("reproducible noise", 7, "a", number))
        result = inside.round(weights, number, state, noise)
        save_tensors(weights_path, weights, {})
        answer = child.train_private(number, weights_path, out, SECONDS, _never, 10 + number)
        update, metadata = load_tensors(answer.update_path)
        assert digest(update) == digest(result.update)
        assert metadata == {"round": str(number)}
        before = number - 1 if number else None
        assert answer == PrivateAnswer(out, charge=10 + number, unit="patient", steps=2, from_round=before)
        weights, state = apply_update(weights, update), result.state
    out.unlink()
    for train in (
        lambda: child.train_private(1, weights_path, out, SECONDS, _never, 11),
        lambda: child.train(1, weights_path, out, SECONDS, _never),
    ):
        with pytest.raises(TrainerRefused) as refused:
            train()
        assert str(refused.value) == PRIVATE_REASON
        assert not out.exists()
    said = log.read_text()
    assert "round 1, charge 11: 5 patients; 0 gradients were not finite" in said
    assert "no step is taken uncharged: got charge 11" in said
    assert "no step is taken uncharged: got charge None" in said
    child.stop()


def test_what_was_begun_is_paid_for_whatever_came_of_it(here: Callable[..., Here], tmp_path: Path) -> None:
    child = here()
    assert isinstance(child.train(None), Refused)
    assert isinstance(child.train(3), PrivateDone)
    child.out.unlink()
    for charge in (3, 2, 0):
        assert isinstance(child.train(charge), Refused)
    assert isinstance(child.train(4, weights=tmp_path / "missing"), Refused)
    assert isinstance(child.train(4), Refused)
    assert not child.out.exists()
    assert isinstance(child.train(5), PrivateDone)


def test_two_children_of_one_plan_never_make_the_same_noise(here: Callable[..., Here]) -> None:
    digests = set()
    for state in ("one", "other"):
        child = here(state=state)
        for charge in range(2):
            assert isinstance(child.train(charge), PrivateDone)
            digests.add(digest(load_tensors(child.out)[0]))
    assert len(digests) == 4


def test_reasons_stay_in_the_log(
    here: Callable[..., Here],
    make_private: Callable[..., Plan],
    make_store: Callable[..., Path],
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A reason could depend on one patient: here on a label that nobody else has."""
    store = make_store("other", 4, label=[0, 0, 0, 0], labels=("rare disease",))
    assert here(make_private(classes=("x",)), store).train(0) == Refused(reason=PRIVATE_REASON)
    assert "rare disease" in capsys.readouterr().err


def test_a_plan_without_privacy_takes_no_charge(here: Callable[..., Here], make_plan: Callable[..., Plan]) -> None:
    child = here(make_plan())
    refused = child.train(0)
    assert isinstance(refused, Refused)
    assert "a charge for a plan without privacy" in refused.reason
    assert isinstance(child.train(None), Done)


def test_where_the_update_cannot_be_written_the_site_does_not_go_on_as_if_it_had_answered(
    here: Callable[..., Here], make_private: Callable[..., Plan], tmp_path: Path
) -> None:
    plan = make_private(noise_multiplier=1.0)
    states = SiteStates(tmp_path / "state", plan.digest, RUN, "a")
    child = here(plan)
    assert isinstance(child.train(0, out=tmp_path / "no folder" / "update"), Refused)
    assert states.rounds() == []
    assert isinstance(child.train(1), PrivateDone)
    assert states.rounds() == [0]


def test_under_dp_no_word_of_the_child_has_a_field_that_follows_from_data() -> None:
    """Whoever adds a field weighs it against docs/privacy.md first."""
    assert set(PrivateProgress.model_fields) == {"kind", "step", "steps"}
    assert set(PrivateDone.model_fields) == {"kind", "round_number", "charge", "unit", "steps", "from_round", "loss"}


def test_a_child_that_speaks_as_if_there_were_no_privacy_is_ended(make_private: Callable[..., Plan]) -> None:
    done = Done(
        round_number=0, loss=0.1, epoch_losses=(), examples=1, patients=1, unit="patient", values="hu", field_mm=None,
        steps=1, seconds=0.0, from_round=None,
    )  # fmt: skip
    private = PrivateDone(round_number=0, charge=3, unit="patient", steps=1, from_round=None)
    dp = make_private().privacy
    order = Train(round_number=0, weights=Path("w"), out=Path("o"), charge=3)
    for line in (done, Progress(step=1, steps=2, loss=0.1)):
        with pytest.raises(TrainerDied, match="as if the plan's privacy were another"):
            trainer_replies.judge(protocol.encode(line), order, dp)
    for line in (private, PrivateProgress(step=1, steps=2)):
        assert trainer_replies.judge(protocol.encode(line), order, dp) == line
        with pytest.raises(TrainerDied, match="as if the plan's privacy were another"):
            trainer_replies.judge(protocol.encode(line), order, None)
    other = order.model_copy(update={"charge": 4})
    with pytest.raises(TrainerDied, match="answered for another charge"):
        trainer_replies.judge(protocol.encode(private), other, dp)
    asking = make_private(loss={"noise_multiplier": 9.0}).privacy
    with_loss = private.model_copy(update={"loss": 0.1})
    assert trainer_replies.judge(protocol.encode(with_loss), order, asking) == with_loss
    for line, plan in ((private, asking), (with_loss, dp)):
        with pytest.raises(TrainerDied, match="loss"):
            trainer_replies.judge(protocol.encode(line), order, plan)
