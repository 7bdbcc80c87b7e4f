"""`make federation`, really run: kits, installation, a private job through separate processes, nothing left over."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from fedscan.federation import federation_file, processes, records
from fedscan.federation.verdict import Verdict
from fedscan.training import model_file

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]

LIMIT_S = 900.0


class Place:
    """Where the command runs: its folder, and everything else that it could write into."""

    def __init__(self, folder: Path) -> None:
        self.out = folder / "federation"
        self.others = {name: folder / name for name in ("cwd", "home", "tmp")}
        for path in self.others.values():
            path.mkdir()

    def start(self) -> subprocess.Popen[str]:
        env = {
            "PATH": os.environ["PATH"],
            "HOME": str(self.others["home"]),
            "TMPDIR": str(self.others["tmp"]),
            "OMP_NUM_THREADS": "1",
        }
        return subprocess.Popen(
            [sys.executable, "-m", "fedscan", "federation", "demo", "--out", str(self.out)],
            cwd=self.others["cwd"],
            env=env,
            stdout=subprocess.PIPE,
            stderr=(self.out.parent / "said.txt").open("a"),
            text=True,
        )

    def finish(self) -> str:
        """The command from where it stands to its end: its standard output."""
        process = self.start()
        try:
            out, _ = process.communicate(timeout=LIMIT_S)
        finally:
            process.kill()
            processes.stop_all(self.out)
        assert process.returncode == 0, self.said()[-3000:]
        return out

    def said(self) -> str:
        return (self.out.parent / "said.txt").read_text()


@pytest.fixture(scope="module")
def interrupted(tmp_path_factory: pytest.TempPathFactory) -> tuple[Place, list[int]]:
    """Interrupted by a signal when the first round is done, and begun again; how many processes the signal left."""
    place = Place(tmp_path_factory.mktemp("provisioned"))
    process = place.start()
    left = []
    try:
        deadline = time.monotonic() + LIMIT_S
        while "round 1/3" not in (place.said() if (place.out.parent / "said.txt").exists() else ""):
            assert process.poll() is None, place.said()[-3000:]
            assert time.monotonic() < deadline
            time.sleep(0.5)
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=120)
        left.append(len(processes.belonging_to(place.out)))
    finally:
        process.kill()
        processes.stop_all(place.out)
    assert process.returncode == 1
    assert "stopped by you. Go on with: fedscan federation demo" in place.said()
    began = time.monotonic()
    assert place.finish().strip() == str(place.out / "run" / "model.safetensors")
    print(f"gone on and finished in {time.monotonic() - began:.0f} s", place.said())
    left.append(len(processes.belonging_to(place.out)))
    return place, left


def test_no_process_is_left_by_a_signal_nor_at_the_end(interrupted: tuple[Place, list[int]]) -> None:
    assert interrupted[1] == [0, 0]


def test_nothing_is_written_outside_of_its_folder(interrupted: tuple[Place, list[int]]) -> None:
    place, _ = interrupted
    written = {name: sorted(path.rglob("*")) for name, path in place.others.items()}
    assert written == {"cwd": [], "home": [], "tmp": []}


def test_the_run_went_on_and_its_model_is_good(interrupted: tuple[Place, list[int]]) -> None:
    run = interrupted[0].out / "run"
    judged = Verdict.model_validate(json.loads((run / "verdict.json").read_text()))
    assert judged.good
    assert judged.rounds_done == 3
    file = federation_file.read(run)
    assert file is not None
    assert len(file.jobs) == 2  # one before the signal, one after it
    assert [r.round for r in records.effective_rounds(run / "rounds.jsonl")] == [0, 1, 2]
    assert model_file.load_model(run / "model.safetensors").plan.privacy is not None
    assert len(list((interrupted[0].out / "synthetic").glob("slice-*.png"))) == 4


def test_every_file_of_the_consortium_is_its_owners_alone(interrupted: tuple[Place, list[int]]) -> None:
    out = interrupted[0].out
    for folder in ("consortium", "sites", "run"):
        paths = [path for path in (out / folder).rglob("*") if not path.is_symlink()]
        assert len(paths) > 3
        assert [path for path in paths if path.stat().st_mode & 0o077] == []


def test_what_is_done_is_not_done_again(interrupted: tuple[Place, list[int]]) -> None:
    place, _ = interrupted
    before = (place.out / "run" / "model.safetensors").stat().st_mtime_ns
    place.finish()
    assert (place.out / "run" / "model.safetensors").stat().st_mtime_ns == before
    assert place.said().rstrip().endswith("synthetic slices: done already")
