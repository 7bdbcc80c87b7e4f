"""A site's part of a round without NVFlare: hand the model to the trainer child, watch it, count what leaves."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from fedscan.federation.messages import Answer, Task
from fedscan.federation.places import SitePlaces
from fedscan.federation.wall import WallLog
from fedscan.plan import Plan, Submission
from fedscan.training import tensor_file
from fedscan.training.trainer_client import Trainer, TrainerDied
from fedscan.training.weights import Weights, check_update, digest


class RefusedError(RuntimeError):
    """The site does not train this task. The text holds nothing about data."""


class SiteTraining:
    """Trains rounds of one run at one site, in a child process that is kept warm over rounds."""

    def __init__(self, places: SitePlaces, plan: Plan, submission: Submission, site: str) -> None:
        self.plan = plan
        self.run_id = submission.run_id
        self._folder = places.state / submission.run_id
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.wall = WallLog(places.state / "wall.jsonl")
        self._trainer = Trainer(
            store=places.store,
            state_folder=self._folder,
            plan=plan,
            site=site,
            run_id=submission.run_id,
            threads=places.threads,
        )

    def warm_up(self) -> None:
        """Starts the child now, so that its libraries load while the server still prepares the first round."""
        self._trainer.start()

    def train(self, task: Task, weights: Weights, abort: Callable[[], bool]) -> tuple[Answer, Weights]:
        """One round: the answer and its update (float32, local minus global).

        A child that dies is started again once and the round redone from the received model. Raises RefusedError
        for a task of another plan or run or a damaged model, and what Trainer.train raises.
        """
        self.wall.flush_messages()
        self._check(task, weights)
        received = self._folder / "received.safetensors"
        sent = self._folder / "answer.safetensors"
        tensor_file.save_tensors(received, weights, {})
        self.wall.tensors("in", task.round_number, _shapes(weights), received.stat().st_size)
        try:
            result = self._once(task, received, sent, abort)
        except TrainerDied:
            result = self._once(task, received, sent, abort)
        update, _ = tensor_file.load_tensors(sent)
        self.wall.tensors("out", task.round_number, _shapes(update), sent.stat().st_size)
        return result, update

    def _check(self, task: Task, weights: Weights) -> None:
        if task.plan_digest != self.plan.digest or task.run_id != self.run_id:
            raise RefusedError("the task belongs to another plan or run than the job that was deployed here")
        if task.round_number >= self.plan.rounds:
            raise RefusedError(f"round {task.round_number} lies beyond the plan's {self.plan.rounds} rounds")
        if not all(isinstance(name, str) for name in weights) or check_update(weights, weights):
            raise RefusedError("the received model holds values that are not finite float32")
        if digest(weights) != task.model_digest:
            raise RefusedError("the received model is not the one that the task names")

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

    def stop(self) -> None:
        """Ends the child and writes the message totals."""
        self._trainer.stop()
        self.wall.flush_messages()


def _shapes(weights: Weights) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in weights.items()}
