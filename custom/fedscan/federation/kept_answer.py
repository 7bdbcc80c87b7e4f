"""The answer of a private round, kept at the site: it may go out again byte for byte, and nothing else is free."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from fedscan.federation.messages import MessageError, PrivateAnswer, Task, parse_private_answer
from fedscan.training import tensor_file
from fedscan.training.weights import Weights, digest

NAME = "answer.safetensors"


@dataclass(frozen=True)
class Kept:
    """An answer with the number of the ledger entry that paid for it."""

    answer: PrivateAnswer
    entry: int
    update: Weights

    def is_for(self, task: Task) -> bool:
        """Whether it answers this task: same plan, run, round and received model."""
        fields = ("plan_digest", "run_id", "round_number", "model_digest")
        return all(getattr(self.answer, name) == getattr(task, name) for name in fields)

    @property
    def sha256(self) -> str:
        """The name under which the ledger notes it."""
        return answer_sha256(self.answer, self.update)


def answer_sha256(answer: PrivateAnswer, update: Weights) -> str:
    """SHA-256 (hex) over the whole answer: its record, then names, shapes, dtypes and values of its tensors."""
    return hashlib.sha256(f"{answer.model_dump_json()}\n{digest(update)}".encode()).hexdigest()


def keep(folder: Path, kept: Kept, expires: str) -> None:
    """Writes it whole or not at all, mode 0600; `expires` is the submission's."""
    metadata = {"answer": kept.answer.model_dump_json(), "entry": str(kept.entry), "expires": expires}
    tensor_file.drop_leftovers(folder, NAME)
    tensor_file.save_tensors(folder / NAME, kept.update, metadata)


def find(folder: Path) -> Kept | None:
    """The kept answer; None: there is none, or it is not whole."""
    try:
        update, metadata = tensor_file.load_tensors(folder / NAME)
        answer = parse_private_answer(PrivateAnswer.model_validate_json(metadata["answer"]).model_dump())
        return Kept(answer, int(metadata["entry"]), update)
    except (OSError, ValueError, KeyError, MessageError):
        return None


def drop(folder: Path) -> None:
    """Forgets the answer."""
    (folder / NAME).unlink(missing_ok=True)


def drop_expired(state: Path, now: datetime | None = None) -> None:
    """Forgets the answers of all runs below `state` whose submission has expired, or which are not whole."""
    for path in state.glob(f"*/{NAME}"):
        if has_expired(path, now or datetime.now(UTC)):
            path.unlink(missing_ok=True)


def has_expired(path: Path, now: datetime) -> bool:
    """Whether the submission of a kept answer has expired; so has one that is not whole."""
    try:
        _, metadata = tensor_file.load_tensors(path)
        return now > datetime.fromisoformat(metadata["expires"])
    except (OSError, ValueError, KeyError, TypeError):
        return True
