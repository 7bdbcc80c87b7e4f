"""The judge says yes to one good case, and never yes once any single condition is violated."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import cache
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedscan.plan import Plan, Submission, TrainingPlan
from fedscan.privacy.accounting import epsilon, rounds_that_fit
from fedscan.privacy.event import Event, round_event
from fedscan.privacy.facts import AnswerFacts, LedgerFacts, NonceUse, Paid, Submitter, TensorForm
from fedscan.privacy.judge import judge
from fedscan.privacy.limits import Limits
from fedscan.privacy.policy import Policy, Unreadable
from fedscan.privacy.store_facts import StoreFacts
from fedscan.privacy_plan import PrivacyPlan, SiteSampling

NOW = datetime(2026, 11, 24, 12, 0, tzinfo=UTC)
RUN = "a" * 32
MODEL = "b" * 64
ME = Submitter("lead@consortium", "c" * 64)
PATIENTS = frozenset(f"{number:032x}" for number in range(400))


def plan_with(changes: dict[str, Any] | None = None, **fields: Any) -> Plan:
    private = PrivacyPlan(
        noise_multiplier=1.0,
        delta=1e-4,
        sites={"a": SiteSampling(sample_rate=0.1, expected_patients_per_step=40.0)},
    )
    private = PrivacyPlan.model_validate({**private.model_dump(), **(changes or {})})
    return Plan.model_validate(
        {
            **Plan(
                training=TrainingPlan(local_steps=10),
                rounds=20,
                weighting="uniform",
                init_sha256="d" * 64,
                privacy=private,
            ).model_dump(),
            **fields,
        }
    )


PLAN = plan_with()
POLICY = Policy(
    policy_version=1,
    max_epsilon=8.0,
    max_delta=1e-3,
    min_patients=200,
    min_noise_multiplier=0.5,
    max_rounds=50,
    allowed_submitters=(ME.name,),
    approval="by_digest",
)


def submission_for(start_round: int = 3) -> Submission:
    return Submission(
        run_id=RUN, nonce="e" * 32, expires=(NOW + timedelta(days=3)).isoformat(), start_round=start_round
    )


class Task:
    def __init__(self, **fields: Any) -> None:
        self.plan_digest: str = fields.get("plan_digest", PLAN.digest)
        self.run_id: str = fields.get("run_id", RUN)
        self.round_number: int = fields.get("round_number", 5)
        self.model_digest: str = fields.get("model_digest", MODEL)


STORE = StoreFacts(unit="patient", trained=PATIENTS, held_out=frozenset({"f" * 32}), units=len(PATIENTS))
LEDGER = LedgerFacts(spent=(round_event(PLAN, "a"),) * 3, patients=frozenset(list(PATIENTS)[:300]))
FORM = {
    name: TensorForm(shape, "torch.float32", True)
    for name, shape in (("conv.weight", (4, 1, 3, 3)), ("conv.bias", (4,)))
}
TENSORS = dict(FORM)
ANSWER = AnswerFacts(PLAN.digest, RUN, 5, MODEL, "1" * 64, TENSORS)
PAID = Paid(PLAN.digest, RUN, 5, MODEL, "1" * 64)

Case = dict[str, Any]
Mutation = Callable[[Case], None]


def good(phase: str) -> Case:
    case: Case = {
        "phase": phase,
        "plan": PLAN,
        "policy": POLICY,
        "site": "a",
        "ledger": LEDGER,
        "store": STORE,
        "now": NOW,
        "limits": Limits(quiet_hours=("18:00-07:00",)),
        "submission": submission_for(),
        "submitter": ME,
        "approved": frozenset({PLAN.digest}),
    }
    if phase == "round":
        case |= {"nonce": NonceUse(PLAN.digest, RUN, 3), "task": Task()}
    if phase == "door":
        case |= {"paid": PAID, "answer": ANSWER, "form": FORM}
    return case


@cache
def known_epsilon(spent: tuple[Event, ...], delta: float, event: Event) -> float:
    return epsilon((*spent, event), delta)


def ask(case: Case) -> tuple[str, ...]:
    """The reasons, with epsilon from a cache: there are few different ledgers here."""
    case = dict(case)
    ledger = case["ledger"]
    if isinstance(ledger, LedgerFacts) and ledger.epsilon_with is None:
        case["ledger"] = replace(ledger, epsilon_with=lambda delta, event: known_epsilon(ledger.spent, delta, event))
    return judge(case.pop("phase"), case.pop("plan"), case.pop("policy"), **case).reasons


def sets(**fields: Any) -> Mutation:
    return lambda case: case.update(fields)


def policy(**fields: Any) -> Mutation:
    """Stricter than the plan in one field."""

    def mutate(case: Case) -> None:
        case["policy"] = Policy.model_validate({**case["policy"].model_dump(), **fields})

    return mutate


def changed(name: str, **fields: Any) -> Mutation:
    return lambda case: case.update({name: replace(case[name], **fields)})


def approve_it(case: Case, plan: Plan) -> None:
    """A changed plan that is otherwise consistent: approved, and known by its own digest."""
    case |= {"plan": plan, "approved": frozenset({plan.digest})}
    if "nonce" in case:
        case["nonce"] = replace(case["nonce"], plan_digest=plan.digest)
        case["task"] = Task(plan_digest=plan.digest)
    if "answer" in case:
        case["answer"] = replace(case["answer"], plan_digest=plan.digest)
        case["paid"] = replace(case["paid"], plan_digest=plan.digest)


def privacy(**fields: Any) -> Mutation:
    return lambda case: approve_it(case, plan_with(fields))


def plan_fields(**fields: Any) -> Mutation:
    return lambda case: approve_it(case, plan_with(**fields))


def tensor(name: str, **fields: Any) -> Mutation:
    def mutate(case: Case) -> None:
        tensors = {**case["answer"].tensors, name: replace(case["answer"].tensors[name], **fields)}
        case["answer"] = replace(case["answer"], tensors=tensors)

    return mutate


def tensors(names: set[str]) -> Mutation:
    one = TensorForm((4,), "torch.float32", True)
    return lambda case: case.update(
        answer=replace(case["answer"], tensors={name: TENSORS.get(name, one) for name in names})
    )


NOT_PRIVATE = {"privacy": None, "weighting": "patients"}
PLAN_AND_POLICY: dict[str, Mutation] = {
    "policy missing": sets(policy=Unreadable(("policy cannot be read",))),
    "policy unreadable, no word why": sets(policy=Unreadable(())),
    "plan not understood": sets(plan=Unreadable(("plan: unknown field",))),
    "policy.require_dp": plan_fields(**NOT_PRIVATE),
    "policy.max_rounds": policy(max_rounds=19),
    "policy.max_delta": policy(max_delta=9e-5),
    "policy.min_noise_multiplier": policy(min_noise_multiplier=1.01),
    "policy.answers": policy(answers=()),
    "policy.answers, the loss alone": policy(answers=("loss",)),
    "privacy.loss": privacy(loss={"noise_multiplier": 20.0}),
    "policy.allow_reproducible_noise": sets(reproducible_noise=True),
    "privacy.noise_multiplier": privacy(noise_multiplier=0.49),
    "privacy.delta": privacy(delta=1.1e-3),
    "privacy.sites": privacy(sites={"b": {"sample_rate": 0.1, "expected_patients_per_step": 40.0}}),
    "privacy.unit": privacy(unit="image"),
}
SENDER_AND_TIME: dict[str, Mutation] = {
    "policy.allowed_submitters": policy(allowed_submitters=("another",)),
    "policy.allowed_submitters, nobody": policy(allowed_submitters=()),
    "no verified submitter": sets(submitter=None),
    "a name of another case": sets(submitter=Submitter("Lead@consortium", "c" * 64)),
    "policy.approval": sets(approved=frozenset()),
    "another plan approved": sets(approved=frozenset({"0" * 64})),
    "no submission": sets(submission=None),
    "submission expired": sets(now=NOW + timedelta(days=4)),
    "no time": sets(now=None),
    "time without a zone": sets(now=NOW.replace(tzinfo=None)),
    "quiet hours": sets(now=NOW.replace(hour=18, minute=0)),
    "quiet hours after midnight": sets(now=NOW.replace(hour=6, minute=59)),
}
STORE_AND_BUDGET: dict[str, Mutation] = {
    "store not known": sets(store=None),
    "store unreadable": sets(store=Unreadable(("store: no manifest",))),
    "ledger not known": sets(ledger=None),
    "ledger unreadable": sets(ledger=Unreadable(("ledger: entry 7 was edited",))),
    "policy.min_patients": policy(min_patients=401),
    "too few patients": changed("store", units=199),
    "policy.allow_image_unit": changed("store", unit="image"),
    "delta against patients": changed("store", units=10_000),
    "the budget's delta against patients": changed("store", units=1001),
    "policy.max_epsilon": policy(max_epsilon=0.5),
    "spent": lambda case: case.update(ledger=replace(case["ledger"], spent=case["ledger"].spent * 400)),
    "spent with another unit": lambda case: case.update(
        ledger=replace(case["ledger"], spent=tuple(e.model_copy(update={"unit": "image"}) for e in LEDGER.spent))
    ),
    "rolled back": changed("ledger", lacks_recorded_head=True),
    "store shrank": lambda case: case.update(
        store=replace(case["store"], trained=case["store"].trained - LEDGER.patients)
    ),
    "one patient gone": lambda case: case.update(
        store=replace(case["store"], trained=case["store"].trained - {sorted(LEDGER.patients)[0]})
    ),
    "a removed patient is back": changed("ledger", removed=frozenset({sorted(PATIENTS)[-1]})),
    "a removed patient is back in the holdout": changed("ledger", removed=STORE.held_out),
}
DEPLOY: dict[str, Mutation] = {
    "nonce used": sets(nonce=NonceUse(PLAN.digest, RUN, 3)),
    "starts after the last round": sets(submission=submission_for(20)),
}
ROUND: dict[str, Mutation] = {
    "nonce never taken": sets(nonce=None),
    "nonce taken for another plan": changed("nonce", plan_digest="0" * 64),
    "nonce taken for another run": changed("nonce", run_id="0" * 32),
    "nonce taken for another start": changed("nonce", start_round=2),
    "no task": sets(task=None),
    "task of another plan": sets(task=Task(plan_digest="0" * 64)),
    "task of another run": sets(task=Task(run_id="0" * 32)),
    "task before the start round": sets(task=Task(round_number=2)),
    "task after the last round": sets(task=Task(round_number=20)),
    "task of a negative round": sets(task=Task(round_number=-1)),
    "task without a model": sets(task=Task(model_digest="")),
    "the ledger's own epsilon": changed("ledger", epsilon_with=lambda delta, event: 8.1),
    "no number": changed("ledger", epsilon_with=lambda delta, event: float("nan")),
}
DOOR: dict[str, Mutation] = {
    "no answer": sets(answer=None),
    "no entry paid": sets(paid=None),
    "form not known": sets(form=None),
    "no submission at the door": sets(submission=None),
    "answer of another run": changed("answer", run_id="0" * 32),
    "answer of another plan": changed("answer", plan_digest="0" * 64),
    "answer of another round": changed("answer", round_number=6),
    "answer of another model": changed("answer", model_digest="0" * 64),
    "paid for another plan": changed("paid", plan_digest="7" * 64),
    "paid for another run": changed("paid", run_id="7" * 32),
    "paid for another round": changed("paid", round_number=7),
    "paid for another model": changed("paid", model_digest="7" * 64),
    "no answer noted": changed("paid", answer_sha256=None),
    "another answer noted": changed("paid", answer_sha256="7" * 64),
    "other bytes": changed("answer", sha256="2" * 64),
    "a tensor too many": tensors({*FORM, "patient_count"}),
    "a tensor too few": tensors({"conv.bias"}),
    "no tensor": tensors(set()),
    "another shape": tensor("conv.bias", shape=(5,)),
    "a shape of one more axis": tensor("conv.bias", shape=(4, 1)),
    "another dtype": tensor("conv.bias", dtype="torch.float64"),
    "an integer": tensor("conv.weight", dtype="torch.int64"),
    "not finite": tensor("conv.weight", finite=False),
    "a loss that was not asked for": changed("answer", loss=0.5),
}
MUTATIONS: dict[str, dict[str, Mutation]] = {
    "deploy": PLAN_AND_POLICY | SENDER_AND_TIME | STORE_AND_BUDGET | DEPLOY,
    "round": PLAN_AND_POLICY | SENDER_AND_TIME | STORE_AND_BUDGET | ROUND,
    "door": PLAN_AND_POLICY | DOOR,
}
EVERY_ONE = [(phase, name) for phase, found in MUTATIONS.items() for name in found]


@pytest.mark.parametrize("phase", ["deploy", "round", "door"])
def test_the_good_case_is_allowed(phase: str) -> None:
    assert ask(good(phase)) == ()


@pytest.mark.parametrize(("phase", "name"), EVERY_ONE)
def test_one_violation_is_a_refusal(phase: str, name: str) -> None:
    case = good(phase)
    MUTATIONS[phase][name](case)
    assert ask(case)


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_no_mixture_of_violations_is_allowed(data: st.DataObject) -> None:
    phase = data.draw(st.sampled_from(sorted(MUTATIONS)))
    names = data.draw(st.lists(st.sampled_from(sorted(MUTATIONS[phase])), min_size=1, max_size=4, unique=True))
    case = good(phase)
    for name in names:
        try:
            MUTATIONS[phase][name](case)
        except (AttributeError, TypeError, KeyError):
            continue  # an earlier mutation took away what this one would change
    assert ask(case)


@pytest.mark.parametrize(
    ("loss", "answers", "floor", "answered", "allowed"),
    [
        (20.0, ("update", "loss"), 0.5, 0.3, True),
        (20.0, ("update", "loss"), 0.5, None, False),
        (20.0, ("update",), 0.5, 0.3, False),
        (1.0, ("update", "loss"), 0.8, 0.3, False),
        (1.0, ("update", "loss"), 0.7, 0.3, True),
    ],
)
def test_a_noised_loss_leaves_where_plan_and_policy_say_so_and_counts_in_the_noise(
    loss: float, answers: tuple[str, ...], floor: float, answered: float | None, allowed: bool
) -> None:
    """Under noise 1 for each, gradients and loss together have 0.707."""
    case = good("door")
    privacy(loss={"noise_multiplier": loss})(case)
    policy(answers=answers, min_noise_multiplier=floor)(case)
    case["answer"] = replace(case["answer"], loss=answered)
    assert (ask(case) == ()) is allowed


def test_every_field_of_the_policy_is_violated_by_a_case() -> None:
    named = {
        name.split(",")[0].removeprefix("policy.") for name in PLAN_AND_POLICY | SENDER_AND_TIME | STORE_AND_BUDGET
    }
    assert set(Policy.model_fields) - {"policy_version"} <= named


BEARS_ON_PRIVACY = {"unit", "loss", "noise_multiplier", "delta", "sites"}
"""Of PrivacyPlan. The others change what is learnt, not what a round costs: the guarantee does not depend on them."""
OTHERS: dict[str, Any] = {
    "target_epsilon": 0.001,
    "max_grad_norm": 1e6,
    "slices_per_patient": 64,
    "noise_draws_per_slice": 16,
    "trainable": "attention_norm_bias",
    "from_scratch": True,
    "answer_after_s": 5.0,
}


def test_every_field_of_a_private_plan_is_a_violation_or_bears_on_nothing() -> None:
    assert set(PrivacyPlan.model_fields) == BEARS_ON_PRIVACY | set(OTHERS)
    violated = {name.removeprefix("privacy.") for name in PLAN_AND_POLICY if name.startswith("privacy.")}
    assert violated == BEARS_ON_PRIVACY
    for name, value in OTHERS.items():
        case = good("deploy")
        privacy(**{name: value})(case)
        assert ask(case) == ()
        case["approved"] = frozenset({PLAN.digest})
        assert ask(case), f"{name} is part of what was approved"


def test_all_reasons_come_at_once() -> None:
    case = good("round")
    for name in ("policy.max_rounds", "policy.approval", "quiet hours", "task of another run", "too few patients"):
        MUTATIONS["round"][name](case)
    text = "\n".join(ask(case))
    for word in ("rounds:", "approval:", "quiet_hours:", "task:", "store:"):
        assert word in text
    assert len(ask(case)) == 5


def test_a_reason_names_no_patient() -> None:
    case = good("deploy")
    for name in ("store shrank", "a removed patient is back in the holdout"):
        STORE_AND_BUDGET[name](case)
    text = "\n".join(ask(case))
    assert "gone without a removal record" in text
    assert not any(one in text for one in PATIENTS | STORE.held_out)


def test_a_removal_record_excuses_who_is_gone() -> None:
    case = good("deploy")
    gone = frozenset(sorted(LEDGER.patients)[:2])
    case["store"] = replace(STORE, trained=STORE.trained - gone)
    assert ask(case)
    case["ledger"] = replace(LEDGER, removed=gone)
    assert ask(case) == ()


def test_who_moved_to_the_holdout_is_not_gone() -> None:
    case = good("deploy")
    moved = frozenset(sorted(LEDGER.patients)[:2])
    case["store"] = replace(STORE, trained=STORE.trained - moved, held_out=STORE.held_out | moved)
    assert ask(case) == ()


def test_the_last_round_that_fits_is_allowed_and_the_next_is_not() -> None:
    one = round_event(PLAN, "a")
    fits = rounds_that_fit(LEDGER.spent, one, POLICY.max_delta, POLICY.max_epsilon)
    case = good("round")
    del case["phase"], case["plan"], case["policy"]
    case["ledger"] = replace(LEDGER, spent=LEDGER.spent + (one,) * (fits - 1))
    assert judge("round", PLAN, POLICY, **case).ok
    case["ledger"] = replace(LEDGER, spent=LEDGER.spent + (one,) * fits)
    assert [reason[:7] for reason in judge("round", PLAN, POLICY, **case).reasons] == ["budget:"]


def test_a_submitter_is_known_by_name_or_fingerprint() -> None:
    case = good("deploy")
    policy(allowed_submitters=(ME.fingerprint,))(case)
    assert ask(case) == ()
    policy(allowed_submitters="any")(case)
    case["submitter"] = Submitter("somebody", "9" * 64)
    assert ask(case) == ()


def test_a_name_is_not_taken_for_the_fingerprint_that_it_looks_like() -> None:
    case = good("deploy")
    policy(allowed_submitters=(ME.fingerprint,))(case)
    case["submitter"] = Submitter(ME.fingerprint, "9" * 64)
    assert [reason[:10] for reason in ask(case)] == ["submitter:"]


def test_a_policy_that_does_not_demand_dp_takes_a_plan_without() -> None:
    for phase in MUTATIONS:
        case = good(phase)
        plan_fields(**NOT_PRIVATE)(case)
        policy(require_dp=False)(case)
        case["paid" if phase == "door" else "ledger"] = None
        assert ask(case) == ()


def test_without_dp_pictures_and_answers_of_another_plan_are_refused_all_the_same() -> None:
    case = good("deploy")
    plan_fields(**NOT_PRIVATE)(case)
    policy(require_dp=False)(case)
    case["store"] = replace(STORE, unit="image")
    case["ledger"] = None
    assert [reason[:25] for reason in ask(case)] == ["store: its unit is the im"]
    case = good("door")
    plan_fields(**NOT_PRIVATE)(case)
    policy(require_dp=False)(case)
    case["paid"] = None
    for fields in ({"plan_digest": "0" * 64}, {"run_id": "0" * 32}):
        assert len(ask(case | {"answer": replace(case["answer"], **fields)})) == 1
    assert ask(case | {"answer": None}) != ()


def test_a_plan_for_patients_is_refused_on_pictures_though_these_are_allowed() -> None:
    case = good("deploy")
    policy(allow_image_unit=True)(case)
    case["store"] = replace(STORE, unit="image")
    assert [reason[:13] for reason in ask(case)] == ["privacy.unit:"]
    case = good("deploy")
    policy(allow_image_unit=True)(case)
    privacy(unit="image")(case)
    case["ledger"] = LedgerFacts(spent=())
    assert [reason[:13] for reason in ask(case)] == ["privacy.unit:"]


def test_pictures_are_taken_where_policy_says_so() -> None:
    case = good("deploy")
    privacy(unit="image")(case)
    policy(allow_image_unit=True)(case)
    assert ask(case) != ()
    case["store"] = replace(STORE, unit="image")
    case["ledger"] = LedgerFacts(spent=())
    assert ask(case) == ()


def test_an_unknown_phase_is_refused() -> None:
    case = good("deploy") | {"phase": "anything"}
    assert ask(case)
