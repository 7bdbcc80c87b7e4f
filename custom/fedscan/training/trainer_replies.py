"""What a trainer child's words come to: answers, and the errors of a round. No torch here."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from fedscan.privacy_plan import PrivacyPlan
from fedscan.training import trainer_protocol as protocol
from fedscan.training.trainer_protocol import (
    Finished,
    PrivateDone,
    PrivateProgress,
    ProtocolError,
    Ready,
    Refused,
    Said,
    Train,
)


class TrainerError(RuntimeError):
    """A round without an answer. Texts hold nothing about data."""


class TrainerDied(TrainerError):
    """The child ended in the round, or spoke nonsense and was ended."""


class TrainerTimeout(TrainerError):
    """The deadline passed; the child was ended."""


class TrainerAborted(TrainerError):
    """The caller's abort was seen; the child was ended."""


class TrainerRefused(TrainerError):
    """The child is well and does not train this: its reason is the text."""


@dataclass(frozen=True)
class Answer:
    """What a round came to."""

    update_path: Path
    """safetensors, mode 0600: float32, local minus global."""
    loss: float
    epoch_losses: tuple[float, ...]
    examples: int
    patients: int
    unit: Literal["patient", "image"]
    values: Literal["hu", "grey"]
    field_mm: float | None
    steps: int
    seconds: float
    """Of the round in the child."""
    from_round: int | None
    """Round whose optimiser state this one went on from; None: a fresh optimiser."""


@dataclass(frozen=True)
class PrivateAnswer:
    """What a round under DP came to. Beside the update nothing follows from data but a noised loss."""

    update_path: Path
    """safetensors, mode 0600: float32, local minus global, noise and all."""
    charge: int
    """The ledger's entry that paid for it."""
    unit: Literal["patient", "image"]
    steps: int
    from_round: int | None
    """Round whose optimiser state this one went on from; None: a fresh optimiser."""
    loss: float | None = None
    """Noised and charged; None where the plan asks for none."""


def parse(line: bytes) -> Finished | Said | Ready:
    """What the child said. Raises TrainerDied for nonsense, TrainerRefused."""
    try:
        reply = protocol.reply(line)
    except ProtocolError as error:
        raise TrainerDied(f"the trainer child spoke {error} and was ended") from None
    if isinstance(reply, Refused):
        raise TrainerRefused(reply.reason)
    return reply


def judge(line: bytes, order: Train, privacy: PrivacyPlan | None) -> Finished | Said | Ready:
    """`parse`, and TrainerDied for a word that does not belong to the order and the plan's privacy."""
    reply = parse(line)
    if isinstance(reply, Ready):
        return reply
    if isinstance(reply, PrivateDone | PrivateProgress) is (privacy is None):
        raise TrainerDied("the trainer child spoke as if the plan's privacy were another, and was ended")
    if isinstance(reply, Finished) and reply.round_number != order.round_number:
        raise TrainerDied(f"the trainer child answered round {reply.round_number}, not {order.round_number}")
    if isinstance(reply, PrivateDone) and (reply.loss is None) is not (privacy is None or privacy.loss is None):
        raise TrainerDied("the trainer child answered with a loss that the plan does not ask for, or without one")
    if isinstance(reply, PrivateDone) and reply.charge != order.charge:
        raise TrainerDied("the trainer child answered for another charge, and was ended")
    return reply
