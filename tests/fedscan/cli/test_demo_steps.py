"""The demo's steps: what is skipped, what goes on, what is never removed."""

from __future__ import annotations

import dataclasses
import io
import shutil
from pathlib import Path

import pytest
from filelock import Timeout

from fedscan.cli import demo_hospitals, demo_steps, demo_story, demo_training
from fedscan.cli.demo_progress import StepProgress
from fedscan.cli.demo_steps import Demo, DemoError, Settings, State, Step
from fedscan.federation.local_run import RunError
from fedscan.plan import Plan
from fedscan.privacy.accounting import epsilon
from fedscan.privacy.event import run_event
from fedscan.privacy.policy import Policy
from fedscan.privacy.site_file import Site
from fedscan.training.model_file import load_model

SMALL = Settings(patients=(3, 2, 2), every_mm=30.0, start_steps=50, start_slices=16)


def _demo(out: Path, steps: list[Step], settings: Settings = SMALL) -> Demo:
    progress = StepProgress([s.title for s in steps], [s.usual_s for s in steps], io.StringIO())
    return Demo(out, settings, out, progress, State(out, settings))


def _step(key: str, done: list[str]) -> Step:
    def work(demo: Demo) -> str:
        done.append(key)
        (demo.out / key).write_text("whole")
        return "said"

    return Step(key, key, 1.0, key, work)


def test_a_done_step_is_skipped_and_a_removed_result_is_made_again(tmp_path: Path) -> None:
    done: list[str] = []
    steps = [_step("exports", done), _step("stores", done)]
    demo_steps.run_steps(_demo(tmp_path, steps), steps)
    demo_steps.run_steps(_demo(tmp_path, steps), steps)
    assert done == ["exports", "stores"]
    (tmp_path / "stores").unlink()
    demo_steps.run_steps(_demo(tmp_path, steps), steps)
    assert done == ["exports", "stores", "stores"]


def test_after_a_stop_the_same_step_is_done_again_and_its_time_adds_up(tmp_path: Path) -> None:
    done: list[str] = []

    def stopped(_: Demo) -> str:
        raise KeyboardInterrupt

    steps = [_step("exports", done), Step("stores", "stores", 1.0, "stores", stopped)]
    with pytest.raises(KeyboardInterrupt):
        demo_steps.run_steps(_demo(tmp_path, steps), steps)
    state = State(tmp_path, SMALL)
    assert state.is_done("exports")
    assert not state.is_done("stores")
    state.add("stores", 2.0, True)
    assert State(tmp_path, SMALL).seconds["stores"] >= 2.0
    assert State(tmp_path, SMALL).is_done("stores")


def test_other_settings_do_not_go_on_with_an_old_demo(tmp_path: Path) -> None:
    State(tmp_path, SMALL)
    with pytest.raises(DemoError, match="other settings: start anew with --fresh"):
        State(tmp_path, dataclasses.replace(SMALL, seed=99))


def test_fresh_removes_what_the_demo_wrote_and_nothing_else(tmp_path: Path) -> None:
    for name in (*demo_steps.OWN, "mine.txt"):
        (tmp_path / name).mkdir() if "." not in name else (tmp_path / name).write_text("x")
    demo_steps.clear(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["mine.txt"]


def test_fresh_does_not_follow_a_link(tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "kept").write_text("x")
    out = tmp_path / "demo"
    out.mkdir()
    (out / "stores").symlink_to(elsewhere)
    demo_steps.clear(out)
    assert (elsewhere / "kept").exists()
    assert not (out / "stores").is_symlink()


def test_a_folder_of_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.docx").write_text("x")
    with pytest.raises(DemoError, match="holds other things"):
        demo_steps.locked(tmp_path)


def test_one_demo_at_a_time(tmp_path: Path) -> None:
    with demo_steps.locked(tmp_path), pytest.raises(Timeout), demo_steps.locked(tmp_path):
        pass


def test_everything_before_training_is_made(tmp_path: Path, repository: Path) -> None:
    from ctslices.store import SliceStore
    from fedscan.federation import job_folder

    steps = [s for s in demo_story.STEPS if s.key in ("exports", "stores", "start", "sites", "job")]
    progress = StepProgress([s.title for s in steps], [s.usual_s for s in steps], io.StringIO())
    demo = Demo(tmp_path, SMALL, repository / "jobs" / "ct_fedavg", progress, State(tmp_path, SMALL))
    demo_steps.run_steps(demo, steps)
    stores = {name: SliceStore.open(path) for name, path in demo.stores.items()}
    assert list(stores) == ["north", "harbour", "valley"]
    assert [len(s.manifest.patients) for s in stores.values()] == [3, 2, 2]
    assert stores["north"].manifest.rejected["localizer"] == 1
    assert stores["north"].labels
    plan = job_folder.read_plan(tmp_path / "job")
    assert isinstance(plan, Plan)
    assert plan.name == "ct-fedavg-demo"
    private = job_folder.read_plan(tmp_path / "job-private")
    assert private.model == plan.model
    assert private.privacy is not None
    assert plan.privacy is None
    assert private.init_sha256 == plan.init_sha256 == load_model(tmp_path / demo_steps.START).sha256
    for name, folder in demo.sites.items():
        policy = Site.open(folder).policy()
        assert isinstance(policy, Policy)
        assert policy.require_dp
        assert epsilon([run_event(private, name)], policy.max_delta) <= private.privacy.target_epsilon
        assert private.privacy.target_epsilon < policy.max_epsilon


def test_ledgers_are_never_made_anew_under_a_run(tmp_path: Path) -> None:
    demo = _demo(tmp_path, [_step("exports", [])])
    demo_hospitals.make_sites(demo)
    ledger = (demo.sites["north"] / "ledger.jsonl").read_bytes()
    (demo.sites["valley"] / "site.json").unlink()
    demo_hospitals.make_sites(demo)
    assert (demo.sites["north"] / "ledger.jsonl").read_bytes() == ledger
    (tmp_path / "run-private").mkdir()
    shutil.rmtree(tmp_path / "sites")
    with pytest.raises(DemoError, match="is gone, and with it the ledgers"):
        demo_hospitals.make_sites(demo)


def test_a_stopped_private_run_says_what_it_costs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stopped(*_: object, **__: object) -> None:
        raise RunError("the run stopped")

    monkeypatch.setattr(demo_training, "_run", stopped)
    with pytest.raises(DemoError, match=r"charged again; what is left says `fedscan budget --site .*/sites/north`"):
        demo_training.train_privately(_demo(tmp_path, [_step("exports", [])]))
