"""A site's part of a private round without NVFlare: charge, train, note the answer, keep it."""

from __future__ import annotations

import contextlib
import hashlib
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from ctslices.files import write_whole
from ctslices.store import MANIFEST
from fedscan.federation import kept_answer
from fedscan.federation.kept_answer import Kept
from fedscan.federation.messages import LedgerHead, PrivateAnswer, Task
from fedscan.federation.site_round import RefusedError, SiteTraining, shapes
from fedscan.privacy.ledger import Entry, Head, LedgerError
from fedscan.privacy.ledger_witness import RECEIVED_HEAD, received_head
from fedscan.privacy.site_file import Site
from fedscan.training import tensor_file
from fedscan.training.trainer_replies import TrainerAborted, TrainerDied
from fedscan.training.weights import Weights, check_update, public_weight

MARGIN_S = 0.5
"""Before the answer's time: what noting and keeping an answer may take, and ending a child that was too slow."""
LOCK_WAIT_S = 10.0
LOOK_EVERY_S = 0.2


class PaidTraining(SiteTraining):
    """Trains rounds of one private run. Nothing is trained that was not charged before, and nothing is charged for an
    answer that is kept whole."""

    def train_until(
        self, task: Task, weights: Weights, abort: Callable[[], bool], due: float, note_at: float = 0.0
    ) -> tuple[PrivateAnswer, Weights]:
        """One round; the answer is ready before `due` (time.monotonic), its time to leave.

        What was trained becomes the round's answer at `note_at` (also time.monotonic), however soon it was ready, and
        the run's folder is locked until then: by an abort, another task, or the word that the run is complete, a server
        would else learn how long training took, and so how many patients were drawn.

        Raises RefusedError, charging.Refused, LedgerError, SiteError, OSError and what Trainer.train_private raises:
        whatever it is, the server may learn one constant.
        """
        self.wall.flush_messages()
        self._check(task, weights)
        site = self.site_now()
        with self._alone():
            kept = self._kept(task, site) or self._train_and_keep(task, weights, site, abort, due, note_at)
            size = (self.folder / kept_answer.NAME).stat().st_size
        _in_time(due)
        self.wall.tensors("out", task.round_number, shapes(kept.update), size)
        return kept.answer, kept.update

    def complete(self) -> None:
        """Forgets the kept answer, unless a task is being worked on: there is none yet then, whatever lies there."""
        with contextlib.suppress(RefusedError), self._alone(wait_s=0.0):
            super().complete()

    @contextmanager
    def _alone(self, wait_s: float | None = None) -> Iterator[None]:
        """A job process that is about to end may still hold the run's folder when the run is resumed."""
        try:
            with FileLock(self.folder / ".lock", timeout=LOCK_WAIT_S if wait_s is None else wait_s, mode=0o600):
                yield
        except Timeout:
            raise RefusedError("another job process of this run is at work here") from None

    def warm_up(self) -> None:
        """Starts the child now, on the store as it lies there now."""
        self._trained_on = self._store_mark()
        super().warm_up()

    def _kept(self, task: Task, site: Site) -> Kept | None:
        """The answer that was given to this very task, if it is whole and the ledger says that it was paid for."""
        kept = kept_answer.find(self.folder)
        if kept is None or not kept.is_for(task):
            kept_answer.drop(self.folder)
            return None
        ledger = site.open_ledger()
        if task.ledger is not None and not ledger.contains(_head(task.ledger)):
            raise RefusedError("the server recorded an entry that this site's ledger does not contain")
        paid = ledger.paid_for(kept.entry)
        return kept if paid is not None and paid.answer_sha256 == kept.sha256 else None

    def _train_and_keep(
        self, task: Task, weights: Weights, site: Site, abort: Callable[[], bool], due: float, note_at: float
    ) -> Kept:
        received, trained = self.folder / "received.safetensors", self.folder / "trained.safetensors"
        trained.unlink(missing_ok=True)
        tensor_file.drop_leftovers(self.folder, received.name)
        tensor_file.save_tensors(received, weights, {})
        self.wall.tensors("in", task.round_number, shapes(weights), received.stat().st_size)
        self.charge(task, site, ask_only=True)  # what is refused anyway needs no child
        mark = self._same_store()
        entry, loss = self._paid_training(task, site, received, trained, abort, due)
        if self._store_mark() != mark:
            raise RefusedError("the store changed while it was trained on: the round is charged and not answered")
        update, _ = tensor_file.load_tensors(trained)
        trained.unlink()
        if reasons := check_update(update, weights):
            raise RefusedError("; ".join(reasons))
        wire = self.codec.encode(task.round_number, update)
        kept = Kept(self._answer(task, entry, loss), entry.number, wire)
        kept_answer.keep(self.folder, kept, self.submission.expires)
        if not wait_until(note_at, abort):
            raise TrainerAborted("the round was aborted before its answer was noted")
        ledger = site.open_ledger()
        with ledger.lock():
            ledger.note_answer(entry.number, kept.sha256)
        return kept

    def _paid_training(
        self, task: Task, site: Site, received: Path, trained: Path, abort: Callable[[], bool], due: float
    ) -> tuple[Entry, float | None]:
        """The entry that paid, and the loss where the plan asks for one.

        A child that dies is started again once: what it had trained may not be trained again on the old charge.
        """
        for again in (True, False):
            try:
                if not self._trainer.ready(_left(due), abort):  # a start costs no budget
                    raise RefusedError("the trainer child is still loading: let privacy.answer_after_s be longer")
                _in_time(due - MARGIN_S)
                entry = self._pay(task, site)
                answer = self._trainer.train_private(
                    task.round_number, received, trained, _left(due), abort, charge=entry.number
                )
            except TrainerDied:
                if not again:
                    raise
            else:
                return entry, answer.loss
        raise AssertionError("the second try returns or raises")

    def _pay(self, task: Task, site: Site) -> Entry:
        entry = self.charge(task, site)
        if entry is None:
            raise RefusedError("no ledger entry pays for this round")
        return entry

    def _answer(self, task: Task, entry: Entry, loss: float | None) -> PrivateAnswer:
        return PrivateAnswer(
            plan_digest=task.plan_digest,
            run_id=task.run_id,
            round_number=task.round_number,
            model_digest=task.model_digest,
            weight=public_weight(self.plan, self.name),
            ledger=LedgerHead(count=entry.head.count, mac=entry.head.mac),
            loss=loss,
        )

    def _same_store(self) -> str:
        """The store's mark; a child that began on another state of the store is ended first."""
        mark = self._store_mark()
        if mark != self._trained_on:
            self._trainer.stop()
            self._trained_on = mark
        return mark

    def _store_mark(self) -> str:
        return hashlib.sha256((self.setup.store / MANIFEST).read_bytes()).hexdigest()

    _trained_on = ""


def wait_until(moment: float, abort: Callable[[], bool]) -> bool:
    """Waits until `moment` (time.monotonic); False when aborted before."""
    while (left := moment - time.monotonic()) > 0.0:
        if abort():
            return False
        time.sleep(min(LOOK_EVERY_S, left))
    return True


def note_received_head(state: Path, task: Task) -> None:
    """STATE/received_head.json: the newest head of this site's ledger that a server sent back, for `site check`."""
    try:
        known = received_head(state)
    except LedgerError:
        known = None
    if task.ledger is not None and (known is None or task.ledger.count >= known.count):
        text = task.ledger.model_dump_json(indent=2) + "\n"
        write_whole(state / RECEIVED_HEAD, text.encode(), mode=0o600)


def _left(due: float) -> float:
    return due - MARGIN_S - time.monotonic()


def _in_time(due: float) -> None:
    if time.monotonic() > due:
        raise RefusedError("the answer is not ready at its time: let the plan's privacy.answer_after_s be longer")


def _head(head: LedgerHead) -> Head:
    return Head(count=head.count, mac=head.mac)
