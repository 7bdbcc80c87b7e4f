"""A federation with one site in a network namespace of its own, whose cable can be cut."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import yaml

from fedscan.federation import kits, processes
from fedscan.federation.places import SERVER_FILE, ServerPlaces, SitePlaces
from fedscan.privacy.site_file import Site

SERVER = "fedscan.test"
LINK_DOWN, SILENT = "link down", "silent"
_ADDRESSES = ("10.77.0.1", "10.77.0.2")
_NOBODY = "02:00:00:00:00:99"


def why_not() -> str | None:
    """Why this machine cannot cut a network; None: it can."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    if shutil.which("ip") is None:
        return "no `ip`: make setup-system installs iproute2"
    name = f"fs{os.getpid()}try"
    made = subprocess.run(["ip", "netns", "add", name], capture_output=True, text=True, check=False)
    if made.returncode:
        return f"network namespaces are not permitted here: {made.stderr.strip()}"
    _ip("netns", "del", name)
    return None


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)


@dataclass(frozen=True)
class Cable:
    """Between the namespaces `ends[0]` (the server's) and `ends[1]` (the cut site's)."""

    ends: tuple[str, str]

    def cut(self, how: str) -> None:
        """`link down` as a pulled plug; `silent` as a firewall that drops: every frame goes to nobody's address."""
        if how == LINK_DOWN:
            _ip("-n", self.ends[0], "link", "set", "wire", "down")
            return
        for end, there in zip(self.ends, reversed(_ADDRESSES), strict=True):
            _ip("-n", end, "neigh", "replace", there, "lladdr", _NOBODY, "nud", "permanent", "dev", "wire")

    def mend(self) -> None:
        """As before the cut."""
        _ip("-n", self.ends[0], "link", "set", "wire", "up")
        for end, there in zip(self.ends, reversed(_ADDRESSES), strict=True):
            with suppress(subprocess.CalledProcessError):
                _ip("-n", end, "neigh", "del", there, "dev", "wire")


@contextmanager
def cable() -> Iterator[Cable]:
    """Two namespaces with a wire; in both, the server's name is known."""
    ends = (f"fs{os.getpid()}a", f"fs{os.getpid()}b")
    with ExitStack() as stack:
        for end in ends:
            _ip("netns", "add", end)
            stack.callback(_ip, "netns", "del", end)
            hosts = Path("/etc/netns") / end  # `ip netns exec` lays what is there over /etc
            hosts.mkdir(parents=True)
            stack.callback(shutil.rmtree, hosts)
            (hosts / "hosts").write_text(f"127.0.0.1 localhost\n{_ADDRESSES[0]} {SERVER}\n")
        _ip("-n", ends[0], "link", "add", "wire", "type", "veth", "peer", "name", "wire", "netns", ends[1])
        for end, address in zip(ends, _ADDRESSES, strict=True):
            _ip("-n", end, "addr", "add", f"{address}/24", "dev", "wire")
            for device in ("lo", "wire"):
                _ip("-n", end, "link", "set", device, "up")
        yield Cable(ends)


class CutFederation:
    """Server, hosp-a and the lead at one end of the cable, hosp-b at the other; each process by its kit's script."""

    def __init__(self, folder: Path, sites: dict[str, Path], wire: Cable) -> None:
        self.folder, self.sites, self.wire = folder, sites, wire
        description = kits.project(tuple(sites), [8102, 8103])
        description["participants"][0]["name"] = SERVER
        old = os.umask(0o077)
        try:
            folder.mkdir()
            (folder / "project.yml").write_text(yaml.safe_dump(description))
            kits.run_provisioner(folder)
            self.federation = kits.Federation(folder, tuple(sites))
            places = ServerPlaces(run_folder=str(folder / "runs" / "{run_id}"), shelf=folder / "shelf")
            (self.kit(SERVER) / "local" / SERVER_FILE).write_text(places.model_dump_json())
            for name, path in sites.items():
                kits._set_up_site(self.federation, name, SitePlaces(site_file=path))
        finally:
            os.umask(old)

    def kit(self, name: str) -> Path:
        return self.federation.kit(name)

    def start(self, name: str) -> subprocess.Popen[bytes]:
        """The parent process of the server or a site, where it belongs."""
        kit = self.kit(name).resolve()
        script = [str(kit / "startup" / "sub_start.sh"), "--once"]
        env = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
        return processes._spawn(kit, [*self._inside(name), *script], env)

    def command(self, *words: str) -> subprocess.Popen[str]:
        """A command of the lead's, beside the server."""
        command = [*self._inside(SERVER), sys.executable, "-m", "fedscan", *words]
        return subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            preexec_fn=processes._die_with_parent,  # noqa: PLW1509 - it calls prctl alone
        )

    def _inside(self, name: str) -> list[str]:
        return ["ip", "netns", "exec", self.wire.ends[name == "hosp-b"]]

    def site(self, name: str) -> Site:
        return Site.open(self.sites[name])

    def steps_charged(self, name: str) -> int:
        return sum(event.steps for event in self.site(name).open_ledger().events())


@contextmanager
def running(folder: Path, sites: dict[str, Path]) -> Iterator[CutFederation]:
    """Started, and ended for sure."""
    with cable() as wire, ExitStack() as stack:
        made = CutFederation(folder, sites, wire)
        stack.callback(processes.stop_all, folder)
        for name in (SERVER, *sites):
            made.start(name)
        yield made
