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
from fedscan.cli import demo_facts, report, report_pictures
from fedscan.federation import records
from fedscan.federation.records import RoundRecord, SiteEntry
from fedscan.federation.wall import WallLog
from fedscan.plan import Plan
from fedscan.training.model_file import save_model
from fedscan.training.weights import initial_weights

SITES = ("north", "harbour", "valley")
PLAN = Plan.model_validate({"model": {"preset": "tiny"}, "rounds": 2})


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
        log = WallLog(state / "wall.jsonl")
        for round_number in range(2):
            log.tensors("in", round_number, shapes, 1000)
            log.tensors("out", round_number, shapes, 1100)
            log.message("server_command", "submit_update", 1150 + round_number)
            log.flush_messages()
    for round_number in range(2):
        record = RoundRecord(
            event="round",
            time="2030-01-01T00:00:00+00:00",
            run_id="0" * 32,
            plan_digest=PLAN.digest,
            round=round_number,
            asked=SITES,
            sites={site: SiteEntry(answered=True, loss=0.5 / (round_number + 1 + k)) for k, site in enumerate(SITES)},
            loss=0.2,
            seconds=3.0,
        )
        records.append(out / "run" / "rounds.jsonl", record)
    save_model(out / "run" / "model.safetensors", weights, PLAN, {"run_id": "0" * 32})
    (out / "synthetic").mkdir()
    parts = [chest_slices(np.random.default_rng(50 + k), 24, profile=p)[0] for k, p in enumerate(PROFILES)]
    np.savez(out / "synthetic" / "slices.npz", hu=np.concatenate(parts)[:64])
    return out


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
    for wall in facts.walls:
        assert (wall.received.messages, wall.received.size_bytes) == (2, 2000)
        assert (wall.sent.messages, wall.sent.size_bytes) == (2, 2200)
        assert wall.channels == {"server_command/submit_update": (2, 2301)}
        assert wall.all_sent_bytes == 2301
    assert facts.tensors_crossed == 3 * 4 * len(facts.parameters)
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
