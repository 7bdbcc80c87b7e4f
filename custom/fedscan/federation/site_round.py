"""A site's part of a round without NVFlare: hand the model to the trainer child, watch it, count what leaves."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from fedscan.federation import kept_answer
from fedscan.federation.answer_form import form_of
from fedscan.federation.messages import Answer, Task
from fedscan.federation.revocation import RevocationError, Revocations
from fedscan.federation.site_setup import SiteSetup
from fedscan.federation.wall import WallLog
from fedscan.plan import Plan, Submission
from fedscan.privacy import charging
from fedscan.privacy.facts import Submitter
from fedscan.privacy.ledger import Entry, Head
from fedscan.privacy.site_file import Site
from fedscan.training import tensor_file
from fedscan.training.site_store import store_facts
from fedscan.training.trainer_client import Trainer
from fedscan.training.trainer_replies import TrainerDied
from fedscan.training.update_codec import ErrorFeedback
from fedscan.training.weights import Weights, check_update, digest


class RefusedError(RuntimeError):
    """The site does not train this task. The text holds nothing about data."""


class SiteTraining:
    """Trains rounds of one run at one site, in a child process that is kept warm over rounds."""

    def __init__(
        self,
        setup: SiteSetup,
        plan: Plan,
        submission: Submission,
        name: str,
        submitter: Submitter | None = None,
        revocations: Revocations | None = None,
    ) -> None:
        """`name` is the site's in the federation; `submitter` signed the app folder; `revocations` are those that the
        site knows of."""
        self.setup = setup
        self.plan = plan
        self.submission = submission
        self.name = name
        self._submitter = submitter
        self._revocations = revocations
        self.folder = setup.state / submission.run_id
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.codec = ErrorFeedback(plan.update_precision, self.folder / "rests", plan.digest, submission.run_id)
        self.wall = WallLog(setup.state / "wall.jsonl")
        self._trainer = Trainer(
            store=setup.store,
            state_folder=self.folder,
            plan=plan,
            site=name,
            run_id=submission.run_id,
            threads=setup.threads,
            reproducible_noise_seed=setup.reproducible_noise_seed,
            memory_gib=None if setup.site is None else setup.site.limits.memory_gib,
            gpu=setup.site is None or setup.site.limits.gpu,
        )

    def warm_up(self) -> None:
        """Starts the child now, so that its libraries load while the server still prepares the first round."""
        self._trainer.start()

    def train(self, task: Task, weights: Weights, abort: Callable[[], bool]) -> tuple[Answer, Weights]:
        """One round without privacy: the answer and its update (local minus global), as it travels.

        A child that dies is started again once and the round redone from the received model. Raises RefusedError
        for a task of another plan or run or a damaged model, charging.Refused, SiteError, and what Trainer.train
        raises.
        """
        self.wall.flush_messages()
        self._check(task, weights)
        if self.setup.site is not None:
            self.charge(task, self.site_now())
        received = self.folder / "received.safetensors"
        sent = self.folder / "sent.safetensors"
        tensor_file.drop_leftovers(self.folder, received.name)
        tensor_file.save_tensors(received, weights, {}, durable=False)
        self.wall.tensors("in", task.round_number, shapes(weights), received.stat().st_size)
        try:
            result = self._once(task, received, sent, abort)
        except TrainerDied:
            result = self._once(task, received, sent, abort)
        update, _ = tensor_file.load_tensors(sent)
        wire = self.codec.encode(task.round_number, update)
        if self.plan.update_precision != "fp32":
            tensor_file.save_tensors(sent, wire, {}, durable=False)
        self.wall.tensors("out", task.round_number, shapes(wire), sent.stat().st_size)
        return result, wire

    def site_now(self) -> Site:
        """The site's files as they are now: policy and ledger may have changed since the job began, its places may
        not. Raises SiteError, RefusedError."""
        before = self.setup.site
        if before is None:
            raise RefusedError("this site has no policy and no ledger")
        now = Site.open(before.path)
        if (now.store, now.state, now.name) != (before.store, before.state, before.name):
            raise RefusedError("site.json names another store, state or name since the job began: submit the job anew")
        return now

    def charge(self, task: Task, site: Site, ask_only: bool = False) -> Entry | None:
        """The judgement before a round, and (unless it is only asked) the entry that pays. Raises charging.Refused."""
        recorded = task.ledger
        return charging.charge(
            site,
            self.plan,
            task,
            submission=self.submission,
            submitter=self._submitter,
            store=store_facts(site.store),
            recorded=None if recorded is None else Head(count=recorded.count, mac=recorded.mac),
            reproducible_noise=self.setup.reproducible_noise_seed is not None,
            ask_only=ask_only,
        )

    def _check(self, task: Task, weights: Weights) -> None:
        self._check_revocations(task)
        if task.plan_digest != self.plan.digest or task.run_id != self.submission.run_id:
            raise RefusedError("the task belongs to another plan or run than the job that was deployed here")
        if task.round_number >= self.plan.rounds:
            raise RefusedError(f"round {task.round_number} lies beyond the plan's {self.plan.rounds} rounds")
        if reasons := check_update(weights, form_of(self.plan)):
            raise RefusedError(f"the received model is not one of the plan's: {'; '.join(reasons)}")
        if digest(weights) != task.model_digest:
            raise RefusedError("the received model is not the one that the task names")

    def _check_revocations(self, task: Task) -> None:
        """Raises charging.Refused where the submitter is revoked, or nobody can tell."""
        if self._revocations is None:
            return
        if self._submitter is None:
            raise charging.Refused(("submitter: nobody is known to have signed this job",))
        try:
            if task.revocations is not None:
                self._revocations.lay(task.revocations)
            reason = self._revocations.reason(self._submitter.name, self._submitter.issued)
        except RevocationError as error:
            raise charging.Refused((f"revocations: {error}",)) from None
        if reason is not None:
            raise charging.Refused((f"submitter: {reason}",))

    def _once(self, task: Task, received: Path, sent: Path, abort: Callable[[], bool]) -> Answer:
        trained = self._trainer.train(task.round_number, received, sent, task.deadline_s, abort)
        return Answer(
            plan_digest=task.plan_digest,
            run_id=task.run_id,
            round_number=task.round_number,
            model_digest=task.model_digest,
            examples=trained.examples,
            patients=trained.patients,
            steps=trained.steps,
            loss=trained.loss,
            seconds=round(trained.seconds, 3),
            unit=trained.unit,
            values=trained.values,
            field_mm=trained.field_mm,
        )

    def complete(self) -> None:
        """The server said that the run is complete: its last answer is not asked for again."""
        kept_answer.drop(self.folder)

    def stop(self) -> None:
        """Ends the child and writes the message totals."""
        self._trainer.stop()
        self.wall.flush_messages()


def shapes(weights: Weights) -> dict[str, tuple[int, ...]]:
    """Name and shape of each tensor, as the wall's log has them."""
    return {name: tuple(tensor.shape) for name, tensor in weights.items()}
