"""The house rules that no linter holds."""

from __future__ import annotations

import json
import re
import resource
import runpy
import statistics
import subprocess
import sys
from pathlib import Path

import pytest

HEAVY = ("torch", "monai", "nvflare", "pydicom", "nibabel", "matplotlib", "scipy")
COMMANDS = [
    [],
    ["prepare"],
    ["inspect"],
    ["job"],
    ["job", "new"],
    ["job", "run"],
    ["generate"],
    ["demo"],
    ["budget"],
    ["site"],
    ["audit"],
]


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_help_explains_itself_without_loading_what_is_heavy(command: list[str]) -> None:
    code = (
        "import sys, json\n"
        "from fedscan.cli.main import app\n"
        f"try: app({[*command, '--help']!r})\n"
        "except SystemExit: pass\n"
        f"print('LOADED', json.dumps([m for m in {HEAVY!r} if m in sys.modules]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    text, _, loaded = done.stdout.rpartition("LOADED ")
    assert json.loads(loaded) == []
    assert "Usage" in text
    assert len(text) > 200


def test_help_starts_quickly_beside_a_bare_interpreter_with_its_two_libraries() -> None:
    """Well under half a second on a quiet machine; here as a ratio of CPU times, since the machine is shared."""

    def cpu_s(code: list[str]) -> float:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([sys.executable, *code], capture_output=True, check=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    bare, helped = [], []
    for _ in range(5):
        bare.append(cpu_s(["-c", "import typer, rich.markdown, rich.panel, rich.table"]))
        helped.append(cpu_s(["-m", "fedscan", "--help"]))
    assert statistics.median(helped) < 2.5 * statistics.median(bare)


def test_all_tests_run_in_parts_of_test_all(repository: Path) -> None:
    parts = runpy.run_path(str(repository / "tests" / "run_all.py"))["PARTS"]
    named = [word for part in parts.values() if "slow" in part for word in part if word.startswith("tests")]
    for path in (repository / "tests").rglob("test_*.py"):
        if "mark.slow" in path.read_text(encoding="utf-8") and path.name != Path(__file__).name:
            within = [name for name in named if path.is_relative_to(repository / name)]
            assert len(within) == 1, f"{path.name} is in {len(within)} parts of test-all"
    assert all((repository / name).exists() for name in named)


def test_no_custom_folder_below_jobs(repository: Path) -> None:
    """NVFlare would take it for shipped code and switch its allow-list off."""
    assert list((repository / "jobs").rglob("custom")) == []


def test_the_plan_page_is_the_plans(repository: Path) -> None:
    from fedscan.cli import plan_fields

    assert (repository / "docs" / "plan.md").read_text(encoding="utf-8") == plan_fields.markdown()


def test_every_module_is_named_by_a_test_or_serves_one_that_is(repository: Path) -> None:
    """A test imports it, or a module of its own room that a test imports does: nothing lies outside of all tests."""
    tests = "\n".join(p.read_text(encoding="utf-8") for p in (repository / "tests").rglob("*.py"))
    texts = {
        path: path.read_text(encoding="utf-8")
        for root in ("custom/fedscan", "preprocessing/ctslices")
        for path in (repository / root).rglob("*.py")
        if not path.name.startswith("__")
    }

    def names(text: str, path: Path) -> bool:
        return re.search(rf"import .*\b{path.stem}\b|\.{path.stem} import|\n    {path.stem},", text) is not None

    named = {path for path in texts if names(tests, path)}
    grown = True
    while grown:
        new = {p for p in texts.keys() - named if any(names(texts[n], p) for n in named)}
        grown = bool(new)
        named |= new
    outside = sorted(str(p.relative_to(repository)) for p in texts.keys() - named)
    assert not outside, "\n".join(outside)
