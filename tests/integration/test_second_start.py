"""Two processes with one site's name: the first stays, and a restarted site gets back in."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import pytest

from fedscan.federation import admin, consortium, consortium_run, kits, processes
from fedscan.federation.audit_log import AuditLog
from fedscan.federation.consortium import Consortium

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

HERE = Path(__file__).parent
SITE = "hosp-a"
SITES = (SITE, "hosp-b", "hosp-c")
BACK_WITHIN_S = 30.0
"""From the start of a site's process, or from the moment when the first one is gone."""
ADMITTED = "Successfully registered"


@dataclass
class World:
    """A consortium at work, of which hosp-a is started, stopped and copied by each test."""

    ours: Consortium
    folder: Path
    started: list[subprocess.Popen[bytes]] = field(default_factory=list)

    @property
    def kit(self) -> Path:
        return self.ours.kit(SITE)

    def copy(self, name: str) -> Path:
        """The same kit in another folder, as on another machine."""
        kit = self.folder / name / SITE
        for part in ("startup", "local"):
            shutil.copytree(self.kit / part, kit / part, symlinks=True)
        return kit

    def start(self, kit: Path) -> None:
        """As its supervisor would."""
        (kit / "console.log").unlink(missing_ok=True)
        self.started.append(processes.start_by_script(kit))

    def parent(self, kit: Path) -> psutil.Process:
        """NVFlare's process in this kit."""
        (found,) = self.working_in(kit)
        return found

    def working_in(self, kit: Path) -> list[psutil.Process]:
        """NVFlare's processes."""
        name = str(kit.resolve())
        return [p for p in processes.belonging_to(kit.parent) if name in p.cmdline()]

    def kill(self, kit: Path) -> None:
        """With all that belongs to it, by kill -9."""
        for process in self.working_in(kit):
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()

    def refusals(self) -> list[str]:
        """Of second starts."""
        return [text for text in self.all_refusals() if f"second start of {SITE}" in text]

    def all_refusals(self) -> list[str]:
        """In the server's audit log, which must be whole."""
        verified = AuditLog(self.ours.kit(self.ours.server)).verify()
        assert verified.ok, verified
        return [e.text for e in verified.events if e.what == "refused"]

    def heard(self) -> float:
        """The last heartbeat that the server got under hosp-a's login."""
        lead = self.ours.lead
        with admin.session(self.ours.kit(lead), lead) as session:
            return {c.name: c.last_connect_time for c in session.get_system_info().client_info}.get(SITE, 0.0)


def admitted(kit: Path) -> int:
    """How often this process was let in."""
    console = kit / "console.log"
    return console.read_text(errors="replace").count(ADMITTED) if console.exists() else 0


def seconds_until(condition: Callable[[], bool], limit_s: float = 120.0) -> float:
    started = time.monotonic()
    while not condition():
        assert time.monotonic() - started < limit_s
        time.sleep(0.2)
    return time.monotonic() - started


@pytest.fixture(scope="module")
def consortium_at_work(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Consortium]:
    project = consortium.read_project(repository / "site_configs" / "project.yml")
    copied = consortium.loopback_copy(project, SITES, kits.free_ports(1)[0])
    ours = consortium.provision(tmp_path_factory.mktemp("second") / "ours", copied)
    with consortium_run.running(ours):
        yield ours


@pytest.fixture
def world(consortium_at_work: Consortium, tmp_path: Path) -> Iterator[World]:
    made = World(consortium_at_work, tmp_path)
    if not made.working_in(made.kit):
        made.start(made.kit)
        seconds_until(lambda: admitted(made.kit) == 1)
    yield made
    for process in processes.belonging_to(tmp_path):
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()


def test_a_second_start_does_not_disturb_the_first(world: World) -> None:
    """For a minute of trying; and it takes the name as soon as the first is gone."""
    second = world.copy("elsewhere")
    lines = len((world.kit / "console.log").read_text(errors="replace").splitlines())
    world.start(second)
    seconds_until(lambda: bool(world.refusals()), 60.0)
    time.sleep(60.0)
    assert admitted(second) == 0
    said = (world.kit / "console.log").read_text(errors="replace").splitlines()[lines:]
    assert [line for line in said if "losed" in line or "Failed" in line or "ERROR" in line] == []
    assert time.time() - world.heard() < 15.0
    assert "the first one is connected and was heard" in world.refusals()[0]

    world.kill(world.kit)
    took = seconds_until(lambda: admitted(second) == 1)
    print(f"the second start is let in {took:.0f} s after the first was killed")
    assert took < BACK_WITHIN_S
    world.start(world.kit)  # and now the first is the second
    time.sleep(25.0)
    assert admitted(world.kit) == 0
    world.kill(second)
    assert seconds_until(lambda: admitted(world.kit) == 1) < BACK_WITHIN_S


def test_a_killed_site_gets_back_in(world: World) -> None:
    """Killed a moment after a heartbeat, which is then as young as can be."""
    last = world.heard()
    seconds_until(lambda: world.heard() > last, 30.0)
    world.kill(world.kit)
    world.start(world.kit)
    took = seconds_until(lambda: admitted(world.kit) == 1)
    print(f"a killed site is let in {took:.0f} s after its start")
    assert took < BACK_WITHIN_S


def test_a_frozen_one_gives_way(world: World) -> None:
    """Its connection is open, and nobody is there: a machine that hangs, or lost its power, and came back elsewhere."""
    frozen = world.parent(world.kit)
    second = world.copy("replacement")
    frozen.send_signal(signal.SIGSTOP)
    try:
        world.start(second)
        took = seconds_until(lambda: admitted(second) == 1)
    finally:
        frozen.send_signal(signal.SIGCONT)
    print(f"the name of a frozen site is given {took:.0f} s after the second start")
    assert took < BACK_WITHIN_S
    world.kill(second)
    world.kill(world.kit)


@pytest.mark.parametrize(("by", "job"), [(SITE, "0000"), ("hosp-b", "0000")])
def test_no_login_beside_the_connection(world: World, by: str, job: str) -> None:
    """With a stolen kit's certificate, as one of the site's jobs, which have connections of their own, and with another
    site's. At no time: right after the site came back, too, before its first heartbeat over the new connection."""
    before = len(world.refusals())
    world.kill(world.kit)
    world.start(world.kit)
    seconds_until(lambda: admitted(world.kit) == 1)
    command = [sys.executable, str(HERE / "second" / "child_login.py"), str(world.ours.kit(by)), job, SITE]
    done = subprocess.run(command, capture_output=True, text=True, timeout=90, check=False, env=dict(os.environ))
    assert done.stdout.splitlines()[-1].startswith("refused"), done.stdout + done.stderr
    assert len(world.refusals()) == before, "nobody started the site's kit twice"
    assert any(
        f"a login as {SITE} over the connection of {by}.{job} was refused" in text for text in world.all_refusals()
    )
    last = time.time()
    seconds_until(lambda: world.heard() > last, 30.0)  # the first one's login is still good
