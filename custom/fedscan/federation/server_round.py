"""The server's part of a round without NVFlare: judge each answer, keep the good ones, make the new global model."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime

from fedscan.federation.kept_updates import KeptUpdates
from fedscan.federation.messages import (
    Answer,
    MessageError,
    PrivateAnswer,
    Task,
    parse_answer,
    parse_private_answer,
)
from fedscan.federation.records import Event, RoundRecord, SiteEntry
from fedscan.federation.site_heads import SiteHeads
from fedscan.plan import Plan
from fedscan.training import aggregation
from fedscan.training import weights as w
from fedscan.training.checkpoints import Checkpoint
from fedscan.training.ema import Ema
from fedscan.training.update_codec import decode, wire_form

NO_ANSWER = "no answer in time"


class RunStoppedError(RuntimeError):
    """The run cannot go on; its last good model stays."""


class ServerRound:
    """One try of one round: who is asked, which answers are good, and what they come to.

    Answers are kept in files until the round ends and summed in the order of site names, so that a run does not depend
    on who answers first.
    """

    def __init__(
        self,
        plan: Plan,
        run_id: str,
        state: Checkpoint,
        asked: Sequence[str],
        attempt: int = 1,
        heads: SiteHeads | None = None,
        updates: KeptUpdates | None = None,
    ) -> None:
        """`heads` is wanted for a private plan; `updates` belongs to this try alone."""
        self.plan = plan
        self.run_id = run_id
        self.state = state
        self.round_number = state.rounds_done
        self.asked = tuple(sorted(asked))
        self.attempt = attempt
        self.model_digest = w.digest(state.weights)
        self._started = time.monotonic()
        self._entries: dict[str, SiteEntry] = {}
        self._heads = heads
        self._good: dict[str, Answer | PrivateAnswer] = {}
        self._updates = updates or KeptUpdates()
        self._broken: str | None = None
        self._settled = False

    def task(self, site: str) -> Task:
        """What goes to an asked site beside the weights."""
        return Task(
            plan_digest=self.plan.digest,
            run_id=self.run_id,
            round_number=self.round_number,
            model_digest=self.model_digest,
            deadline_s=self.plan.round_timeout_s,
            ledger=self._heads.of(site) if self._heads else None,
        )

    @property
    def accepted(self) -> int:
        """How many good answers came so far."""
        return len(self._good)

    @property
    def is_enough(self) -> bool:
        """Whether the plan's smallest number of good answers has come."""
        return self.accepted >= self.plan.min_responses

    def receive(self, site: str, meta: object, update: object) -> str | None:
        """Judges one answer: None if it is taken, else the reason. A site's second answer never replaces its first."""
        if self._settled:
            return "the round is over"
        try:
            reason = self._judge(site, meta, update)
        except OSError as error:
            # To ask again could charge the sites again for answers that could not be kept either.
            reason = self._broken = f"the server cannot keep an answer: {error.strerror or type(error).__name__}"
        if reason is not None and site not in self._good:
            self.refuse(site, reason)
        return reason

    def refuse(self, site: str, reason: str) -> None:
        """Notes that a site gave no usable answer."""
        if site not in self._good:
            self._entries[site] = SiteEntry(answered=False, refused=reason)

    def _judge(self, site: str, meta: object, update: object) -> str | None:
        if site not in self.asked:
            return "site was not asked"
        if site in self._good:
            return "site has answered already"
        try:
            answer = parse_answer(meta) if self.plan.privacy is None else parse_private_answer(meta)
        except MessageError as error:
            return str(error)
        if reason := self._stale(answer) or self._not_the_plans(site, answer):
            return reason
        if not isinstance(update, Mapping):
            return f"update must be a mapping of tensors, got {type(update).__name__}"
        tensors = self._decoded(dict(update))
        if isinstance(tensors, str):
            return tensors
        received = sum(t.numel() * t.element_size() for t in update.values())
        if isinstance(answer, PrivateAnswer) and self._heads is not None:
            self._heads.note(site, answer.ledger)
        entry = _entry(answer, tensors, received)
        bound = self.plan.aggregation.max_update_norm
        if bound is not None and (entry.update_norm or 0.0) > bound:
            return f"update norm is more than the plan's aggregation.max_update_norm of {bound:g}"
        return self._keep(site, answer, entry, tensors)

    def _decoded(self, update: w.Weights) -> w.Weights | str:
        """The update as float32 from the form in which it travels, or why it is not taken."""
        precision = self.plan.update_precision
        if reasons := w.check_update(update, wire_form(self.state.weights, precision)):
            return "; ".join(reasons)
        tensors = decode({name: tensor.detach() for name, tensor in update.items()}, precision)
        # A scale can make finite values infinite; float32 was looked at as it came.
        reasons = w.check_update(tensors, self.state.weights) if precision != "fp32" else []
        return "; ".join(reasons) if reasons else tensors

    def _keep(self, site: str, answer: Answer | PrivateAnswer, entry: SiteEntry, tensors: w.Weights) -> str | None:
        self._updates.keep(site, tensors)
        self._good[site] = answer
        self._entries[site] = entry
        return None

    def settle(self) -> None:
        """To be called when nobody is waited for any more: judges what only all answers together can tell.

        Raises RunStoppedError where the server could not keep an answer.
        """
        self._settled = True
        if self._broken is not None:
            raise RunStoppedError(f"round {self.round_number + 1}: {self._broken}")
        norms = {site: self._entries[site].update_norm or 0.0 for site in self._good}
        for site, reason in aggregation.too_large(self.plan.aggregation, norms).items():
            del self._good[site]
            self._updates.drop(site)
            self.refuse(site, reason)

    def _not_the_plans(self, site: str, answer: Answer | PrivateAnswer) -> str | None:
        if isinstance(answer, Answer):
            return None
        try:
            wanted = w.public_weight(self.plan, site)
        except ValueError as error:
            return str(error)
        if answer.weight != wanted:
            return "its weight is not the plan's public one"
        asked = self.plan.privacy is not None and self.plan.privacy.loss is not None
        return None if (answer.loss is not None) is asked else "it has a loss and should not, or lacks one"

    def _stale(self, answer: Answer | PrivateAnswer) -> str | None:
        for field, got, wanted in (
            ("plan", answer.plan_digest, self.plan.digest),
            ("run", answer.run_id, self.run_id),
            ("round", answer.round_number, self.round_number),
            ("model", answer.model_digest, self.model_digest),
        ):
            if got != wanted:
                return f"stale answer: it belongs to another {field}"
        return None

    def finish(self) -> tuple[Checkpoint, RoundRecord]:
        """The new global state and the round's record. Raises ValueError below the plan's smallest number, and
        RunStoppedError where the sum overflows."""
        if not self.is_enough:
            raise ValueError(f"round {self.round_number} has {self.accepted} answers, needs {self.plan.min_responses}")
        shares = self._shares()
        try:
            with self._updates.reading() as tensor_of:
                weights = aggregation.combine(self.plan.aggregation, self.state.weights, shares, tensor_of)
        except OSError as error:
            raise RunStoppedError(f"round {self.round_number + 1}: {error}") from None
        self._updates.clear()
        if w.check_update(weights, weights):
            # Every update was finite; their sum need not be. The last good model must stay what it is.
            raise RunStoppedError(f"round {self.round_number + 1}: the new global model would not be finite")
        average = Ema(self.plan.ema.half_life_rounds)
        ema = average.update(self.state.ema, weights, self.state.ema_count)
        state = Checkpoint(self.round_number + 1, weights, ema, self.state.ema_count + 1)
        return state, self.record("round", shares, w.digest(weights))

    def _shares(self) -> dict[str, float]:
        return w.shares({site: self._weight(answer) for site, answer in self._good.items()})

    def _weight(self, answer: Answer | PrivateAnswer) -> float:
        if isinstance(answer, PrivateAnswer):
            return answer.weight
        return w.contribution_weight(self.plan, answer.examples, answer.patients)

    def asked_record(self) -> RoundRecord:
        """Who is about to be asked: under differential privacy each of them may charge the round from now on."""
        return RoundRecord(
            event="asked",
            time=now(),
            run_id=self.run_id,
            plan_digest=self.plan.digest,
            round=self.round_number,
            attempt=self.attempt,
            asked=self.asked,
        )

    def record(
        self,
        event: Event,
        shares: Mapping[str, float] | None = None,
        model_digest: str | None = None,
        reason: str | None = None,
    ) -> RoundRecord:
        """This try as a line of rounds.jsonl; asked sites that never spoke are NO_ANSWER."""
        shares = shares or {}
        silent = SiteEntry(answered=False, refused=NO_ANSWER)
        entries = {
            site: self._entries.get(site, silent).model_copy(update={"weight": shares.get(site)}) for site in self.asked
        }
        entries |= {site: entry for site, entry in self._entries.items() if site not in entries}
        losses = [
            shares[site] * answer.loss
            for site, answer in self._good.items()
            if site in shares and answer.loss is not None
        ]
        return RoundRecord(
            event=event,
            time=now(),
            run_id=self.run_id,
            plan_digest=self.plan.digest,
            round=self.round_number,
            attempt=self.attempt,
            asked=self.asked,
            sites=entries,
            loss=math.fsum(losses) if losses else None,
            seconds=round(time.monotonic() - self._started, 3),
            bytes_sent=len(self.asked) * sum(t.numel() * t.element_size() for t in self.state.weights.values()),
            model_digest=model_digest,
            reason=reason,
        )


def _entry(answer: Answer | PrivateAnswer, tensors: w.Weights, received: int) -> SiteEntry:
    """The record of a good answer. What the server computes of a private one is post-processing of what was released;
    what a site says of its data is in no private answer."""
    computed = SiteEntry(
        answered=True,
        bytes_received=received,
        update_norm=w.update_norm(tensors),
        update_digest=w.digest(tensors),
    )
    if isinstance(answer, PrivateAnswer):
        return computed.model_copy(update={"loss": answer.loss})
    said = answer.model_dump(include={"examples", "patients", "unit", "values", "field_mm", "steps", "loss", "seconds"})
    return computed.model_copy(update=said)


def now() -> str:
    """UTC time as records carry it."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")
