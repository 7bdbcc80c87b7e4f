"""verdict.json: what a run came to by our own rules, whatever NVFlare's status says: one pure function."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from fedscan.federation import run_privacy
from fedscan.federation.records import RoundRecord
from fedscan.plan import Plan

FILE = "verdict.json"
_HALF = 0.5

Ending = Literal["finished", "stopped", "lost"]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class SiteShare(_Part):
    """One site over the whole run."""

    asked: int = Field(description="tries of rounds that asked it")
    answered: int = Field(description="rounds of the model that hold its answer")
    refusals: dict[str, int] = Field(description="why it gave none, or why its answer was not taken: how often")
    epsilon: float | None = Field(default=None, description="of this run, from the plan's public constants")


class RoundShare(_Part):
    """One round of the final model."""

    round: int = Field(description="0-based")
    tries: int = Field(description="times it was asked, repeats and those that a crash took included")
    weights: dict[str, float] = Field(description="share of each site that answered")
    refused: dict[str, str] = Field(description="sites without an answer in it, and why")
    loss: float | None = None
    seconds: float | None = None
    model_digest: str | None = None


class Rejection(_Part):
    """An answer that was not taken, or that did not come."""

    round: int
    attempt: int
    site: str
    reason: str


class Verdict(_Part):
    """What a run came to."""

    verdict_version: Literal[1] = 1
    name: str
    run_id: str | None
    plan_digest: str
    good: bool = Field(description="no failing")
    failings: tuple[str, ...] = Field(description="why the model is not what the plan asks for")
    reservations: tuple[str, ...] = Field(description="what to know of a model that is good all the same")
    ended: Ending = Field(description="lost: the server's process ended without a word")
    rounds_planned: int
    rounds_done: int
    sites: dict[str, SiteShare]
    rounds: tuple[RoundShare, ...]
    rejected: tuple[Rejection, ...]
    delta: float | None = Field(default=None, description="of every epsilon; private runs alone")
    model_sha256: str | None = Field(default=None, description="of the file model.safetensors")
    stamps: tuple[str, ...] = ()
    nvflare_status: str | None = Field(default=None, description="for comparison; it decides nothing")


def verdict(
    plan: Plan,
    records: Iterable[RoundRecord],
    *,
    named: Sequence[str] = (),
    model_sha256: str | None = None,
    refused_at_deployment: Mapping[str, str] | None = None,
    nvflare_status: str | None = None,
) -> Verdict:
    """Judges a run by its records.

    `named`: the sites that the job is for, so that one that never took part is seen. `model_sha256`: of the written
    model file, None where there is none. `refused_at_deployment`: sites that did not take the job, and their word.
    Records of another plan are a failing, and so is a private run that asked a site which the plan does not know.
    """
    read = list(records)
    own = [record for record in read if record.plan_digest == plan.digest]
    last = {record.round: record for record in own if record.event == "round" and record.round is not None}
    rounds = tuple(_round(own, last[number]) for number in sorted(last))
    sites = _sites(plan, own, last.values(), named, refused_at_deployment or {})
    ended = _ending(own)
    failings = [
        *_strangers(read, own),
        *_unknown(plan, own),
        *_incomplete(plan, own, rounds, ended),
        *_worthless(plan, last),
    ]
    if model_sha256 is None and ended == "finished":
        failings.append("the model file is not there")
    stamps = tuple(dict.fromkeys(stamp for record in own for stamp in record.stamps))
    rejected = tuple(_rejections(own))
    return Verdict(
        name=plan.name,
        run_id=own[0].run_id if own else None,
        plan_digest=plan.digest,
        good=not failings,
        failings=tuple(failings),
        reservations=tuple([*_absences(sites, len(rounds)), *_repeats(rounds), *_losses(rounds), *stamps]),
        ended=ended,
        rounds_planned=plan.rounds,
        rounds_done=len(rounds),
        sites=sites,
        rounds=rounds,
        rejected=rejected,
        delta=plan.privacy.delta if plan.privacy else None,
        model_sha256=model_sha256,
        stamps=stamps,
        nvflare_status=nvflare_status,
    )


def _ending(own: Sequence[RoundRecord]) -> Ending:
    last = next((record.event for record in reversed(own)), None)
    return "finished" if last == "finished" else "stopped" if last == "stopped" else "lost"


def _round(own: Sequence[RoundRecord], record: RoundRecord) -> RoundShare:
    tries = [one for one in own if one.round == record.round and one.event in ("round", "repeat")]
    return RoundShare(
        round=record.round or 0,
        tries=len(tries),
        weights={site: entry.weight or 0.0 for site, entry in sorted(record.sites.items()) if entry.answered},
        refused={s: e.refused or "no reason told" for s, e in sorted(record.sites.items()) if not e.answered},
        loss=record.loss,
        seconds=record.seconds,
        model_digest=record.model_digest,
    )


def _sites(
    plan: Plan,
    own: Sequence[RoundRecord],
    final: Iterable[RoundRecord],
    named: Sequence[str],
    refused_at_deployment: Mapping[str, str],
) -> dict[str, SiteShare]:
    tries = [record for record in own if record.event in ("round", "repeat")]
    asked = run_privacy.asked(own) if plan.privacy else Counter(site for one in tries for site in one.asked)
    answered = Counter(site for one in final for site, entry in one.sites.items() if entry.answered)
    refusals = {site: Counter({f"at deployment: {word}": 1}) for site, word in refused_at_deployment.items()}
    for rejection in _rejections(own):
        refusals.setdefault(rejection.site, Counter())[rejection.reason] += 1
    epsilons: Mapping[str, dict[str, float | None]] = (
        run_privacy.spent(plan, asked)["sites"] if plan.privacy and asked else {}
    )
    return {
        site: SiteShare(
            asked=asked[site],
            answered=answered[site],
            refusals=dict(refusals.get(site, {})),
            epsilon=epsilons.get(site, {}).get("epsilon"),
        )
        for site in sorted({*named, *asked, *answered, *refusals})
    }


def _rejections(own: Iterable[RoundRecord]) -> Iterator[Rejection]:
    for record in own:
        if record.event not in ("round", "repeat"):
            continue
        for site, entry in sorted(record.sites.items()):
            if not entry.answered:
                reason = entry.refused or "no reason told"
                yield Rejection(round=record.round or 0, attempt=record.attempt or 1, site=site, reason=reason)
            for reason in entry.also_refused or ():
                yield Rejection(round=record.round or 0, attempt=record.attempt or 1, site=site, reason=reason)


def _strangers(read: Sequence[RoundRecord], own: Sequence[RoundRecord]) -> Iterator[str]:
    if len(read) != len(own):
        yield f"{len(read) - len(own)} of {len(read)} records are of another plan"
    if len({record.run_id for record in own}) > 1:
        yield "the records are of more than one run"


def _unknown(plan: Plan, own: Iterable[RoundRecord]) -> Iterator[str]:
    if plan.privacy is None:
        return
    if unknown := sorted({site for record in own for site in record.asked} - set(plan.privacy.sites)):
        yield f"asked sites that the plan does not know: {', '.join(unknown[:5])}"


def _incomplete(plan: Plan, own: Sequence[RoundRecord], rounds: Sequence[RoundShare], ended: Ending) -> Iterator[str]:
    done = {share.round for share in rounds}
    if missing := sorted(set(range(plan.rounds)) - done):
        yield f"{len(done)} of {plan.rounds} rounds are done; the first missing one is round {missing[0] + 1}"
    if ended == "stopped":
        yield f"the run stopped: {own[-1].reason}"
    elif ended == "lost":
        yield "the run did not end by itself: the server's job was lost" if own else "no round was begun"
    for share in rounds:
        if len(share.weights) < plan.min_responses:
            yield f"round {share.round + 1} holds {len(share.weights)} answers, the plan needs {plan.min_responses}"


def _worthless(plan: Plan, last: Mapping[int, RoundRecord]) -> Iterator[str]:
    """Models that NVFlare would call COMPLETED."""
    still, unknown = [], []
    for number, record in sorted(last.items()):
        norms = [entry.update_norm for entry in record.sites.values() if entry.answered]
        if norms and all(norm == 0.0 for norm in norms):
            still.append(number + 1)
        shares = [entry.weight or 0.0 for entry in record.sites.values() if entry.answered]
        if not math.isclose(math.fsum(shares), 1.0, abs_tol=1e-6):
            unknown.append(number + 1)
    if still:
        yield f"no site changed the model in round {_numbers(still)}: every update was zero"
    if unknown:
        yield f"the shares of the answers do not add up to 1 in round {_numbers(unknown)}"
    digests = [record.model_digest for _, record in sorted(last.items())]
    if any(digest is None for digest in digests):
        yield "a round has no digest of its model"


def _absences(sites: Mapping[str, SiteShare], rounds: int) -> Iterator[str]:
    for site, share in sites.items():
        why = f" ({'; '.join(sorted(share.refusals))})" if share.refusals else ""
        if not share.answered:
            asked = "gave no answer in any round" if share.asked else "took no part"
            yield f"{site} {asked}: the model has learnt nothing from it{why}"
        elif share.asked and share.answered < _HALF * min(share.asked, rounds):
            yield f"{site} answered in {share.answered} of {rounds} rounds{why}"


def _repeats(rounds: Sequence[RoundShare]) -> Iterator[str]:
    if repeated := [share.round + 1 for share in rounds if share.tries > 1]:
        yield f"asked more than once: round {_numbers(repeated)}"


def _losses(rounds: Sequence[RoundShare]) -> Iterator[str]:
    losses = [share.loss for share in rounds if share.loss is not None]
    if len(losses) > 1 and losses[-1] >= losses[0]:
        yield f"the loss did not fall: {losses[0]:.4g} in the first round, {losses[-1]:.4g} in the last"


def _numbers(values: Sequence[int]) -> str:
    shown = ", ".join(str(value) for value in values[:5])
    return shown if len(values) <= 5 else f"{shown} and {len(values) - 5} more"


def lines(judged: Verdict) -> Iterator[str]:
    """The print-out."""
    word = "good" if judged.good else "NOT good"
    yield f"{judged.name}: {word}, {judged.rounds_done} of {judged.rounds_planned} rounds"
    for text in judged.failings:
        yield f"  failing: {text}"
    for text in judged.reservations:
        yield f"  note: {text}"
    for site, share in judged.sites.items():
        cost = "" if share.epsilon is None else f", epsilon at most {share.epsilon:.4g} at delta {judged.delta:g}"
        refused = "".join(f"; {times} x {reason}" for reason, times in sorted(share.refusals.items()))
        yield f"  {site}: in {share.answered} rounds, asked {share.asked} times{cost}{refused}"
    if judged.nvflare_status is not None:
        yield f"  (NVFlare's own status: {judged.nvflare_status})"


def read(path: Path) -> Verdict | None:
    """A verdict.json; None where there is none that can be read."""
    try:
        return Verdict.model_validate_json(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
