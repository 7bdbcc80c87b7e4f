"""A private round at a site with the real trainer child and a real ledger: what is charged, kept, refused, and when."""

from __future__ import annotations

import functools
import json
import os
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from nvflare.apis.dxo import DXO, DataKind, from_shareable

from fedscan.federation import kept_answer, paid_round
from fedscan.federation.guard import fresh_reply
from fedscan.federation.messages import META_KEY, REFUSED_BY_POLICY, LedgerHead, PrivateAnswer, Task
from fedscan.federation.paid_round import PaidTraining
from fedscan.federation.site_job import Ready, SiteJob
from fedscan.federation.versions import PROTOCOL, REFUSED_BY_VERSION
from fedscan.plan import Submission
from fedscan.privacy.event import round_event
from fedscan.privacy.ledger import Head
from fedscan.privacy.ledger_witness import received_head
from fedscan.training.weights import check_update, digest

NEVER: Callable[[], bool] = lambda: False  # noqa: E731 - a plain constant of the tests


ANSWER_AFTER_S = 8.0
ANSWER_SOON_S = 1.0


class Site:
    """A hospital with a warm job."""

    def __init__(self, hospital: Any, submitter: Any) -> None:
        self.hospital = hospital
        self.job = self.open(hospital, submitter)

    @staticmethod
    def open(hospital: Any, submitter: Any) -> SiteJob:
        training = PaidTraining(hospital.setup, hospital.plan, hospital.submission, "hosp-a", submitter)
        training.warm_up()
        return SiteJob(hospital.plan, hospital.submission, hospital.setup, training)

    def steps_charged(self) -> int:
        return sum(event.steps for event in self.hospital.site.open_ledger().events())

    def train(self, abort: Callable[[], bool] = NEVER, within_s: float = 60.0, **changes: Any) -> Any:
        """As the executor does but for the wait."""
        training = self.job.training
        assert isinstance(training, PaidTraining)
        task = self.hospital.task(**changes)
        return training.train_until(task, self.hospital.weights, abort, time.monotonic() + within_s)

    def reasons(self) -> list[str]:
        lines = (self.hospital.setup.state / "refusals.jsonl").read_text().splitlines()
        return [reason for line in lines for reason in json.loads(line)["reasons"]]


@pytest.fixture(scope="module")
def soon(private_plan: Callable[..., Any]) -> Any:
    return private_plan(answer_after_s=ANSWER_SOON_S)


@pytest.fixture(scope="module")
def site(
    tmp_path_factory: pytest.TempPathFactory,
    make_hospital: Callable[..., Any],
    private_plan: Callable[..., Any],
    submitter: Any,
) -> Iterator[Site]:
    folder = tmp_path_factory.mktemp("site") / "site"
    one = Site(make_hospital(folder, "max_epsilon=10000", plan=private_plan(answer_after_s=ANSWER_AFTER_S)), submitter)
    yield one
    one.job.training.stop()


def test_a_round_is_charged_once_answered_with_constants_and_noted(site: Site) -> None:
    answer, update = site.train()
    ledger = site.hospital.site.open_ledger()
    assert ledger.events() == [round_event(site.hospital.plan, "hosp-a")]
    paid = ledger.paid_for(answer.ledger.count)
    assert paid is not None
    assert paid.answer_sha256 == kept_answer.answer_sha256(answer, update)
    assert ledger.contains(Head(answer.ledger.count, answer.ledger.mac))
    assert set(answer.model_dump()) == {
        "protocol",
        "plan_digest",
        "run_id",
        "round_number",
        "model_digest",
        "weight",
        "ledger",
        "loss",
    }
    assert answer.loss is None, "the plan asks for none"
    assert answer.weight == 1.0
    assert check_update(update, site.hospital.weights) == []
    assert any(bool(tensor.any()) for tensor in update.values())


def test_the_same_task_again_gets_the_same_bytes_and_no_charge(site: Site) -> None:
    before = site.steps_charged()
    answer, update = site.train()
    again, same = site.train(ledger=answer.ledger.model_dump())
    assert again == answer
    assert digest(same) == digest(update)
    assert site.steps_charged() == before


def test_without_a_whole_kept_answer_the_round_is_charged_and_trained_anew(site: Site) -> None:
    answer, update = site.train()
    path = site.job.training.folder / kept_answer.NAME
    path.write_bytes(path.read_bytes()[:-8])
    before = site.steps_charged()
    anew, other = site.train()
    assert site.steps_charged() == before + 2
    assert anew.ledger.count > answer.ledger.count
    assert digest(other) != digest(update), "the noise is new"


def test_a_kept_answer_that_the_ledger_did_not_note_is_none(site: Site) -> None:
    answer, update = site.train()
    kept = kept_answer.find(site.job.training.folder)
    assert kept is not None
    name = min(update)
    forged = replace(kept, update=update | {name: update[name] + 1.0})
    kept_answer.keep(site.job.training.folder, forged, site.hospital.submission.expires)
    before = site.steps_charged()
    anew, _ = site.train()
    assert anew.ledger.count > answer.ledger.count
    assert site.steps_charged() == before + 2


def test_a_child_killed_in_a_round_is_charged_again_before_it_trains_again(site: Site) -> None:
    killed: list[int] = []

    def kill_once() -> bool:
        pid = site.job.training._trainer.pid
        if pid is not None and not killed:
            killed.append(pid)
            os.kill(pid, signal.SIGKILL)
        return False

    before = site.steps_charged()
    answer, _ = site.train(kill_once, round_number=1)
    assert killed
    assert site.steps_charged() == before + 4
    paid = site.hospital.site.open_ledger().paid_for(answer.ledger.count)
    assert paid is not None
    assert paid.answer_sha256 is not None


def test_the_next_rounds_model_ends_the_life_of_a_kept_answer(site: Site) -> None:
    site.train()
    site.train(round_number=1)
    before = site.steps_charged()
    site.train()
    assert site.steps_charged() == before + 2


def test_a_task_of_another_job_is_refused_uncharged_and_drops_nothing(site: Site) -> None:
    site.train()
    before = site.steps_charged()
    for change in (
        {"plan_digest": "0" * 64},
        {"run_id": "0" * 32},
        {"model_digest": "0" * 64},
        {"round_number": 3},
        {"round_number": 10**9},
    ):
        with pytest.raises(Exception, match=r"another plan or run|not the one|beyond the plan"):
            site.train(**change)
    assert site.steps_charged() == before
    site.train()
    assert site.steps_charged() == before


def test_a_model_that_is_not_of_the_plans_network_is_refused_uncharged(site: Site) -> None:
    before, whole = site.steps_charged(), site.hospital.weights
    name = next(iter(whole))
    for received in (
        {n: t for n, t in whole.items() if n != name},
        whole | {"another": whole[name]},
        whole | {name: whole[name][:1]},
        whole | {name: whole[name] * float("nan")},
    ):
        task = site.hospital.task(model_digest=digest(received), round_number=1)
        training = site.job.training
        assert isinstance(training, PaidTraining)
        with pytest.raises(Exception, match=r"not one of the plan's"):
            training.train_until(task, received, NEVER, time.monotonic() + 60.0)
    assert site.steps_charged() == before


def test_a_head_that_the_ledger_does_not_contain_is_refused_before_charging(site: Site) -> None:
    site.train()
    before = site.steps_charged()
    for head in ({"count": 10**6, "mac": "0" * 64}, {"count": 1, "mac": "0" * 64}):
        for round_number in (0, 2):  # with a kept answer, and without
            with pytest.raises(Exception, match="server recorded an entry"):
                site.train(round_number=round_number, ledger=LedgerHead.model_validate(head).model_dump())
        site.train()
    assert site.steps_charged() == before + 4, "round 2's model dropped the kept answer: round 0 was paid for again"


@pytest.mark.slow
def test_a_server_cannot_make_the_site_forget_a_newer_head(tmp_path: Path) -> None:
    """One that was put back, or another federation's, knows older ones; `site check` is told by the newest."""

    def note(count: int, mac: str) -> Head | None:
        fields = {"plan_digest": "1" * 64, "run_id": "2" * 32, "round_number": 0, "model_digest": "3" * 64}
        ledger = LedgerHead(count=count, mac=mac * 64)
        paid_round.note_received_head(tmp_path, Task(**fields, deadline_s=1.0, ledger=ledger))
        return received_head(tmp_path)

    assert note(7, "a") == note(3, "b") == Head(7, "a" * 64)
    assert note(7, "c") == Head(7, "c" * 64)
    (tmp_path / "received_head.json").write_text("{")
    assert note(3, "b") == Head(3, "b" * 64)


def test_a_store_that_changed_is_loaded_anew(site: Site, tmp_path: Path) -> None:
    pid = site.job.training._trainer.pid
    manifest = site.hospital.setup.store / "manifest.json"
    was = manifest.read_bytes()
    try:
        manifest.write_bytes(was + b"\n")
        site.train(round_number=1)
        assert site.job.training._trainer.pid != pid
    finally:
        manifest.write_bytes(was)


def test_a_noised_loss_leaves_with_the_answer_where_plan_and_policy_say_so(
    new_hospital: Callable[..., Any], private_plan: Callable[..., Any], submitter: Any
) -> None:
    plan = private_plan(loss={"noise_multiplier": 20.0, "max_loss": 1.0})
    one = Site(new_hospital('answers=["update", "loss"]', "max_epsilon=10000", plan=plan), submitter)
    try:
        answer, update = one.train()
        assert isinstance(answer.loss, float)
        reply = DXO(DataKind.WEIGHT_DIFF, data=update, meta={META_KEY: answer.model_dump(mode="json")}).to_shareable()
        went = fresh_reply(reply, plan, one.hospital.submission, one.hospital.setup)
        assert from_shareable(went).meta[META_KEY]["loss"] == answer.loss
        assert one.train()[0] == answer, "the same task again gets the same loss"
        (event,) = one.hospital.site.open_ledger().events()
        assert event.noise_multiplier == plan.privacy.charged_noise_multiplier < plan.privacy.noise_multiplier
    finally:
        one.job.training.stop()


def test_an_answer_leaves_at_the_plans_public_time_however_soon_it_was_ready(site: Site) -> None:
    site.train()
    came = time.monotonic()
    result = site.job.answer(site.hospital.task().model_dump(mode="json"), site.hospital.weights, NEVER, came)
    assert ANSWER_AFTER_S <= time.monotonic() - came < ANSWER_AFTER_S + 0.2
    assert isinstance(result, Ready)
    assert isinstance(result.record, PrivateAnswer)


@pytest.mark.parametrize(
    "what", ["spent", "malformed", "no policy", "no site.json", "never admitted", "no place", "no room"]
)
def test_a_refusal_is_one_constant_at_the_same_time_and_its_reason_stays(
    tmp_path: Path, make_hospital: Callable[..., Any], submitter: Any, soon: Any, what: str
) -> None:
    limit = "max_epsilon=0.01" if what == "spent" else "max_epsilon=100"
    hospital = make_hospital(tmp_path / "site", limit, plan=soon, admit=False)
    if what not in ("spent", "never admitted"):
        hospital = hospital.admit()
    training = PaidTraining(hospital.setup, hospital.plan, hospital.submission, "hosp-a", submitter)
    job = SiteJob(hospital.plan, hospital.submission, hospital.setup, training)
    record = hospital.task().model_dump(mode="json") | ({"extra": 1} if what == "malformed" else {})
    if what == "no policy":
        hospital.site.file.policy.unlink()
    elif what == "no site.json":
        hospital.site.path.unlink()
    elif what == "no place":  # stands for any error that nobody foresaw
        (training.folder / "received.safetensors").mkdir()
    elif what == "no room":  # for the reasons
        (hospital.setup.state / "refusals.jsonl").mkdir()
        hospital.site.file.policy.unlink()
    came = time.monotonic()
    assert job.answer(record, hospital.weights, NEVER, came) == REFUSED_BY_POLICY
    assert ANSWER_SOON_S <= time.monotonic() - came < ANSWER_SOON_S + 0.2
    if what != "no room":
        assert json.loads((hospital.setup.state / "refusals.jsonl").read_text())["reasons"]
    if what == "spent":
        assert "max_epsilon" in (hospital.setup.state / "refusals.jsonl").read_text()
    assert training._trainer.pid is None, "no child was started"
    assert not hospital.site.open_ledger().events(), "nothing was charged"
    assert not (training.folder / "trained.safetensors").exists(), "nothing was trained"
    training.stop()


@pytest.mark.parametrize("protocol", [PROTOCOL - 1, PROTOCOL + 1, True, "1", None])
def test_a_task_of_another_protocol_is_refused_at_the_public_time_and_costs_nothing(
    tmp_path: Path, make_hospital: Callable[..., Any], submitter: Any, soon: Any, protocol: object
) -> None:
    hospital = make_hospital(tmp_path / "site", "max_epsilon=100", plan=soon, admit=False).admit()
    training = PaidTraining(hospital.setup, hospital.plan, hospital.submission, "hosp-a", submitter)
    job = SiteJob(hospital.plan, hospital.submission, hospital.setup, training)
    # What a later protocol says beside it is not read.
    record = hospital.task().model_dump(mode="json") | {"protocol": protocol, "later": "field"}
    came = time.monotonic()
    assert job.answer(record, hospital.weights, NEVER, came) == REFUSED_BY_VERSION
    assert time.monotonic() - came >= ANSWER_SOON_S
    assert "speaks Fedscan protocol" in (hospital.setup.state / "refusals.jsonl").read_text()
    assert not hospital.site.open_ledger().events(), "nothing was charged"
    training.stop()


def test_an_abort_ends_the_wait(site: Site) -> None:
    came = time.monotonic()
    result = site.job.answer(site.hospital.task().model_dump(mode="json"), site.hospital.weights, lambda: True, came)
    assert result == "TASK_ABORTED"
    assert time.monotonic() - came < ANSWER_AFTER_S


class Finished:
    """Sees when the trainer has written the answer to a round: long before the plan's public time."""

    def __init__(self, site: Site) -> None:
        self._path = site.job.training.folder / kept_answer.NAME

    def __call__(self) -> bool:
        return self._path.exists()


def count_after(site: Site, round_number: int, interfere: Callable[[], bool]) -> int:
    """The counter that the server reads in the answer to a task which it asks twice; `interfere` is called all along
    the first asking, as the signal to abort."""
    record = site.hospital.task(round_number=round_number).model_dump(mode="json")
    before = site.hospital.site.open_ledger().head.count
    site.job.answer(record, site.hospital.weights, interfere, time.monotonic())
    second, _ = site.train(round_number=round_number)
    return second.ledger.count - before


@pytest.mark.slow
def test_an_abort_does_not_tell_whether_training_had_finished(site: Site) -> None:
    """How long it takes follows from how many patients were drawn. A server that aborts a round at a moment of its
    choice and asks it again reads in the second answer's counter whether the first was paid for again."""
    site.train(round_number=1)  # from here on the job is the ledger's running one
    counts = []
    for when in (lambda charged: site.steps_charged() > charged, lambda _: Finished(site)()):
        kept_answer.drop(site.job.training.folder)
        assert site.job.training._trainer.ready(60.0, NEVER)
        counts.append(count_after(site, 0, functools.partial(when, site.steps_charged())))
    assert counts[0] == counts[1]


@pytest.mark.slow
def test_the_word_that_the_run_is_complete_does_not_tell_whether_training_had_finished(site: Site) -> None:
    """As an abort: a server can say so at any time, and ask again."""
    site.train(round_number=1)
    finished = Finished(site)

    def say_complete(when: Callable[[], bool]) -> Callable[[], bool]:
        said: list[bool] = []

        def abort() -> bool:
            if not said and when():
                said.append(True)
                site.job.complete()
            return False

        return abort

    counts = []
    for when in (lambda: True, finished):
        kept_answer.drop(site.job.training.folder)
        assert site.job.training._trainer.ready(60.0, NEVER)
        counts.append(count_after(site, 0, say_complete(when)))
    assert counts[0] == counts[1]


@pytest.mark.slow
def test_a_second_task_at_once_does_not_tell_when_the_first_had_finished(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """NVFlare runs a task that comes as an auxiliary message beside the one in flight."""
    monkeypatch.setattr(paid_round, "LOCK_WAIT_S", 1.0)
    kept_answer.drop(site.job.training.folder)
    assert site.job.training._trainer.ready(60.0, NEVER)
    finished, second = Finished(site), []

    def ask() -> None:
        record = site.hospital.task(round_number=1).model_dump(mode="json")
        second.append(site.job.answer(record, site.hospital.weights, NEVER, time.monotonic()))

    threads: list[threading.Thread] = []

    def abort() -> bool:
        if finished() and not threads:
            threads.append(threading.Thread(target=ask))
            threads[0].start()
        return False

    record = site.hospital.task().model_dump(mode="json")
    assert isinstance(site.job.answer(record, site.hospital.weights, abort, time.monotonic()), Ready)
    threads[0].join()
    assert second == [REFUSED_BY_POLICY], "as if the first were still training"


def test_answers_of_expired_submissions_and_damaged_ones_are_swept(tmp_path: Path, site: Site) -> None:
    site.train()
    kept = kept_answer.find(site.job.training.folder)
    assert kept is not None
    state = tmp_path / "state"
    for name, expires in (("a" * 32, "2020-01-01T00:00:00+00:00"), ("b" * 32, Submission.new().expires)):
        (state / name).mkdir(parents=True)
        kept_answer.keep(state / name, kept, expires)
    shutil.copytree(state / ("b" * 32), state / ("c" * 32))
    (state / ("c" * 32) / kept_answer.NAME).write_bytes(b"torn")
    kept_answer.drop_expired(state)
    assert [p.parent.name for p in state.glob(f"*/{kept_answer.NAME}")] == ["b" * 32]
    site.job.complete()
    assert kept_answer.find(site.job.training.folder) is None


def test_what_is_not_ready_at_its_time_is_refused_and_stays_charged(site: Site) -> None:
    kept_answer.drop(site.job.training.folder)
    before = site.steps_charged()
    with pytest.raises(Exception, match="answer_after_s"):
        site.train(within_s=0.2)
    assert site.steps_charged() == before, "too late to begin: not charged"
    trainer = site.job.training._trainer
    assert trainer.ready(60.0, NEVER)
    assert trainer.pid is not None
    os.kill(trainer.pid, signal.SIGSTOP)  # a child that never comes to an end, however fast the machine
    with pytest.raises(Exception, match=r"answer_after_s|not trained within its deadline"):
        site.train(within_s=2.0)
    assert site.steps_charged() == before + 2
