"""The demo's report: what it says follows from the files, and it loads nothing."""

from __future__ import annotations

import dataclasses
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from ctslices.phantom import PROFILES, chest_slices
from ctslices.store import write_store
from fedscan.cli import demo_facts, demo_privacy, report, report_pictures
from fedscan.cli.demo_privacy import Price
from fedscan.federation import records
from fedscan.federation.records import RoundRecord, SiteEntry
from fedscan.federation.wall import WallLog
from fedscan.plan import Plan
from fedscan.privacy.event import round_event
from fedscan.privacy.ledger import Charge
from fedscan.privacy.site_init import init, policy_with
from fedscan.training.model_file import save_model
from fedscan.training.weights import Weights, initial_weights

SITES = ("north", "harbour", "valley")
PLAN = Plan.model_validate({"model": {"preset": "tiny"}, "rounds": 2, "training": {"local_steps": 40}})
PRIVATE_PLAN = Plan.model_validate(
    {
        "model": {"preset": "tiny"},
        "rounds": 2,
        "training": {"local_steps": 3},
        "weighting": "uniform",
        "init_sha256": "d" * 64,
        "privacy": {
            "noise_multiplier": 1.4,
            "target_epsilon": 8.0,
            "delta": 1e-3,
            "sites": {site: {"sample_rate": 1.0, "expected_patients_per_step": 16.0} for site in SITES},
        },
    }
)
PRIVATE_RUN = "b" * 32


def _finished_demo(out: Path) -> Path:
    """What a demo leaves, by the writers that write it; the synthetic slices are phantoms of other patients."""
    weights = initial_weights(PLAN)
    shapes = {name: tuple(tensor.shape) for name, tensor in weights.items()}
    for number, (site, profile) in enumerate(zip(SITES, PROFILES, strict=True)):
        hu, label = chest_slices(np.random.default_rng(number), 56, profile=profile)
        (out / "stores").mkdir(parents=True, exist_ok=True)
        write_store(out / "stores" / site, hu, np.arange(56) // 8, label=label, labels=("disease", "healthy"))
        (out / "exports" / site).mkdir(parents=True)
        (out / "exports" / site / "IM1").write_bytes(b"x" * 1000)
        state = out / "run" / "sites" / site
        state.mkdir(parents=True)
        _walk_through(state, shapes)
    _rounds(out / "run", PLAN, "0" * 32, {site: 0.5 / (1 + k) for k, site in enumerate(SITES)})
    save_model(out / "run" / "model.safetensors", weights, PLAN, {"run_id": "0" * 32})
    _private_run(out, weights, shapes)
    for number, folder in enumerate(("synthetic", "synthetic-private", "synthetic-start")):
        (out / folder).mkdir()
        seeds = [np.random.default_rng(50 + 3 * number + k) for k in range(len(PROFILES))]
        hu = np.concatenate([chest_slices(rng, 24, profile=p)[0] for rng, p in zip(seeds, PROFILES, strict=True)])[:64]
        np.savez(out / folder / "slices.npz", hu=(hu + 80 * number).astype(np.int16))
    return out


def _private_run(out: Path, weights: Weights, shapes: dict[str, tuple[int, ...]]) -> None:
    (out / "start").mkdir()
    save_model(out / "start" / "model.safetensors", weights, PLAN, {"steps": 100, "slices": 50})
    (out / "run-private").mkdir()
    provenance = {"run_id": PRIVATE_RUN}
    save_model(out / "run-private" / "model.safetensors", weights, PRIVATE_PLAN, provenance)
    _rounds(out / "run-private", PRIVATE_PLAN, PRIVATE_RUN, dict.fromkeys(SITES))
    for site in SITES:
        policy = policy_with(["max_epsilon=12", "max_delta=0.001", "min_patients=5"])
        made = init(out / "sites" / site, name=site, store=out / "stores" / site, policy=policy).site
        _walk_through(made.state, shapes)
        ledger = made.open_ledger()
        for round_number in range(2):
            event, people = round_event(PRIVATE_PLAN, site), frozenset({"0123456789abcdef" * 2})
            ledger.reserve(Charge(PRIVATE_RUN, PRIVATE_PLAN.digest, round_number, "2" * 64, event, people))


def _walk_through(state: Path, shapes: dict[str, tuple[int, ...]]) -> None:
    log = WallLog(state / "wall.jsonl")
    for round_number in range(2):
        log.tensors("in", round_number, shapes, 1000)
        log.tensors("out", round_number, shapes, 1100)
        log.message("server_command", "submit_update", 1150 + round_number)
        log.flush_messages()


def _rounds(run: Path, plan: Plan, run_id: str, losses: dict[str, float | None]) -> None:
    for number in range(2):
        sites = {
            site: SiteEntry(answered=True, loss=None if loss is None else loss / (1 + number))
            for site, loss in losses.items()
        }
        record = RoundRecord(
            event="round",
            time="2030-01-01T00:00:00+00:00",
            run_id=run_id,
            plan_digest=plan.digest,
            round=number,
            asked=SITES,
            sites=sites,
            seconds=3.0,
        )
        records.append(run / "rounds.jsonl", record)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _finished_demo(tmp_path_factory.mktemp("demo"))


@pytest.fixture(scope="module")
def facts(finished: Path) -> demo_facts.Facts:
    return demo_facts.gather(finished, SITES, {"exports": 8.0, "run": 200.0})


@pytest.fixture(scope="module")
def page(facts: demo_facts.Facts) -> str:
    return report.render(facts)


class _Tags(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.loads: list[str] = []
        self.open: list[str] = []
        self.names: set[str] = set()
        self.links: set[str] = set()
        self.ids: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.names.add(tag)
        if tag not in ("meta", "img", "br", "link", "use", "path"):
            self.open.append(tag)
        for name, value in attrs:
            if name in ("src", "srcset", "data", "poster") or (name.endswith("href") and tag not in ("a", "use")):
                self.loads.append(value or "")
            if name == "href" and tag == "a":
                self.links.add((value or "").removeprefix("#"))
            if name == "id":
                self.ids.add(value or "")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.names.add(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag in self.open:
            while self.open.pop() != tag:
                pass


def test_the_page_is_one_file_that_loads_nothing(page: str) -> None:
    tags = _Tags()
    tags.feed(page)
    assert tags.loads
    assert all(load.startswith("data:image/png;base64,") for load in tags.loads)
    assert tags.names & {"script", "link", "iframe", "object"} == set()
    assert "default-src 'none'" in page
    assert re.search(r"url\((?!#)", page) is None
    assert "@import" not in page
    assert tags.open == []
    assert tags.links <= tags.ids


def test_pages_do_not_differ_between_runs(facts: demo_facts.Facts, page: str) -> None:
    assert report.render(facts) == page


def test_walls_are_exact_sums_of_what_the_sites_noted(facts: demo_facts.Facts, page: str) -> None:
    for wall in facts.every_wall:
        assert (wall.received.messages, wall.received.size_bytes) == (2, 2000)
        assert (wall.sent.messages, wall.sent.size_bytes) == (2, 2200)
        assert wall.channels == {"server_command/submit_update": (2, 2301)}
        assert wall.all_sent_bytes == 2301
    assert facts.tensors_crossed == 2 * 3 * 4 * len(facts.parameters)
    assert facts.strange_tensors == []
    assert "2\u202f301" in page
    assert "0 images" in page
    for name in facts.parameters:
        assert name in page


@pytest.mark.parametrize("name", ["hu", "net.out.2.conv.bias"], ids=["unknown name", "known name, shape of a slice"])
def test_a_tensor_that_is_no_parameter_is_called_out(tmp_path: Path, facts: demo_facts.Facts, name: str) -> None:
    log = WallLog(tmp_path / "wall.jsonl")
    log.tensors("out", 0, dict(facts.parameters) | {name: (64, 64)}, 1000)
    log.tensors("out", 1, dict(facts.parameters), 1000)
    told = dataclasses.replace(facts, walls=(demo_facts.read_wall(tmp_path / "wall.jsonl", "north"),))
    assert told.strange_tensors == [name]
    page = report.render(told)
    assert "0 images" not in page
    assert f"Tensors crossed that are no parameters of the network: {name}." in page


def test_a_site_that_noted_nothing_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="what crossed its wall is not known"):
        demo_facts.read_wall(tmp_path / "wall.jsonl", "north")


def test_chests_pass_and_spoilt_ones_fail(facts: demo_facts.Facts, page: str) -> None:
    assert facts.chest.two_lungs_share > 0.75
    for _, check in facts.controls.values():
        assert check.two_lungs_share < 0.3
        assert not check.is_chest
    assert "Blurred" in page
    assert "Shuffled" in page


def test_controls_keep_what_they_should() -> None:
    hu = np.random.default_rng(0).integers(-1000, 1000, (3, 64, 64)).astype(np.int16)
    spoilt = demo_facts.controls(hu)
    assert np.array_equal(np.sort(spoilt["shuffled"], axis=None), np.sort(hu, axis=None))
    assert not np.array_equal(spoilt["shuffled"], hu)
    assert spoilt["blurred"].std() < 0.5 * hu.std()


def test_plan_and_distance_are_told_with_their_counts(facts: demo_facts.Facts, page: str) -> None:
    assert PLAN.digest in page
    assert facts.distance.n_a == 64
    assert f"n = {facts.distance.n_a}" in page
    assert f"{facts.distance.floor.value:.1f}" in page


def test_three_results_stand_side_by_side_with_what_training_added(facts: demo_facts.Facts, page: str) -> None:
    start, private, plain = facts.private.results
    assert (start.steps, private.steps, plain.steps) == (0, 6, 80)
    assert len({result.distance.value for result in facts.private.results}) == 3
    assert plain.distance == facts.distance
    for title, result in zip(report.TITLES.values(), facts.private.results, strict=True):
        assert f"<h3>{title}</h3>" in page
        assert f"{result.distance.value:.1f}</td>" in page
    assert f"{start.distance.value - private.distance.value:+.1f}" in page
    assert facts.private.price.verdict in page


@pytest.mark.parametrize(
    ("private", "plain", "verdict"),
    [
        (295.0, 100.0, "nothing that this measure can tell from chance"),
        (350.0, 100.0, "less than nothing"),
        (200.0, 100.0, "50% of what"),
        (200.0, 295.0, "something, though"),
    ],
)
def test_the_price_is_told_as_it_is(private: float, plain: float, verdict: str) -> None:
    assert Price(300.0, private, plain, spread=10.0).verdict.startswith(verdict)


def test_budgets_are_what_the_hospitals_ledgers_say(facts: demo_facts.Facts, page: str) -> None:
    from fedscan.privacy.accounting import epsilon

    spent = epsilon([round_event(PRIVATE_PLAN, "north")] * 2, 1e-3)
    for budget in facts.private.budgets:
        assert budget.spent == pytest.approx(spent)
        assert budget.left == pytest.approx(12.0 - spent)
        assert (budget.rounds_charged, budget.steps) == (2, 6)
    assert f"{spent:.3f}</td>" in page
    assert page.count('class="plot"') == 3


def test_a_ledger_that_did_not_pay_for_the_run_is_an_error(tmp_path: Path) -> None:
    init(tmp_path / "north", name="north", store=tmp_path / "store", policy=policy_with([]))
    with pytest.raises(ValueError, match="the ledger of north did not pay for the private run"):
        demo_privacy.read_budget(tmp_path / "north", PRIVATE_RUN)


def test_the_curve_takes_the_pages_colours_and_names_each_site(facts: demo_facts.Facts) -> None:
    svg = report_pictures.loss_svg(facts.rounds, SITES)
    assert svg.startswith("<svg ")
    assert "currentColor" in svg
    assert all(f"var(--site-{k})" in svg for k in (1, 2, 3))
    assert all(site in svg for site in SITES)
    assert "#0a01" not in svg
    assert "<metadata" not in svg


def test_every_reason_has_words() -> None:
    from ctslices.reject import Reason

    assert set(report.REASONS) == {str(reason) for reason in Reason}


def test_a_grid_shows_slices_row_by_row() -> None:
    hu = np.stack([np.full((4, 4), value, np.int16) for value in (-1000, 400, -300)])
    picture = report_pictures.grid(hu, columns=2, zoom=1, gap=1)
    assert picture.shape == (9, 9)
    assert picture[0, 0] == 0
    assert picture[0, 8] == 255
    assert picture[8, 0] == 127


@pytest.mark.parametrize(
    ("value", "text"), [(999, "999 bytes"), (1_000, "1.0 kB"), (12_345_678, "12.3 MB"), (2e9, "2.0 GB")]
)
def test_sizes(value: float, text: str) -> None:
    assert report.size_text(value) == text


def test_a_report_appears_whole(tmp_path: Path, facts: demo_facts.Facts, page: str) -> None:
    report.write_report(facts, tmp_path / "report.html")
    assert (tmp_path / "report.html").read_text(encoding="utf-8") == page
    assert [p.name for p in tmp_path.iterdir()] == ["report.html"]
