"""What the machine gives: the software that works together, space on the disks that the site writes to, and how a
running site was started."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import nvflare
import psutil

import fedscan
from fedscan.federation import site_processes, versions
from fedscan.federation.site_findings import Check, error, warning
from fedscan.federation.site_kit import Kit
from fedscan.privacy.site_file import Site

START_ERROR_S = 2.0
"""Of a process's start time: Linux counts it from the boot, whose own time it tells in whole seconds."""
NAMES = ("software", "disk", "process")
ERROR_FREE_GB = 0.5
WARN_FREE_GB = 5.0
_READ_AT_START = ("resources.json", "authorization.json", "comm_config.json", "log_config.json")
_RESTART = "restart the site (docs/hospital-it.md)"


def findings(kit: Kit, site: Site | None) -> Iterator[Check]:
    """Everything wrong with them. `site`: None while the kit is not installed."""
    yield from _software()
    yield from _disk({"the kit": kit.folder} | ({"the state": site.state, "the store": site.store} if site else {}))
    parents = site_processes.of_kit(kit.folder).parents
    if len(parents) > 1:
        text = f"this kit runs {len(parents)} times: the server keeps the name for one of them, and refuses the others"
        yield error("process", text, "stop all but one")
    for parent in parents:
        yield from _process(kit, parent)


def _software() -> Iterator[Check]:
    """Every job is refused while it does not fit."""
    unfit = versions.unfit()
    for reason in unfit:
        yield error("software", reason, "pip install it in this Python, then `fedscan site check` again")
    if not unfit:
        text = (
            f"Fedscan {fedscan.__version__} (protocol {versions.PROTOCOL}), tested with NVFlare {nvflare.__version__}"
        )
        yield Check("software", "ok", text)


def _disk(places: dict[str, Path]) -> Iterator[Check]:
    seen = set()
    for what, path in places.items():
        try:
            device, free_gb = path.stat().st_dev, shutil.disk_usage(path).free / 1e9
        except OSError:
            continue  # a missing store or state has a finding of its own
        if device in seen:
            continue
        seen.add(device)
        text = f"{free_gb:.1f} GB are free where {what} lies"
        fix = "make room; `fedscan site clean KIT` removes the folders of finished jobs"
        if free_gb < ERROR_FREE_GB:
            yield error("disk", f"{text}: less than a round needs", fix)
        elif free_gb < WARN_FREE_GB:
            yield warning("disk", text, fix)


def _process(kit: Kit, parent: psutil.Process) -> Iterator[Check]:
    """A site that was started by hand, or before its files were changed, does not do what they say."""
    try:
        environment, started = parent.environ(), parent.create_time()
        umask = _umask(parent.pid)
    except (psutil.Error, OSError):
        yield Check("process", "skipped", "the running site is another user's: check as that user")
        return
    if environment.get("NVFLARE_SECURE_LOGGING", "").lower() != "true":
        text = "the running site does not log securely: texts of exceptions go into its logs"
        yield error("process", text, f"start it by the kit's own script: {_RESTART}")
    if umask is not None and umask & 0o077 != 0o077:
        text = f"the running site has umask {umask:03o}, wanted 077: others could read what it writes"
        yield error("process", text, f"start it by the kit's own script: {_RESTART}")
    if ports := site_processes.listening_beyond_loopback(parent):
        text = f"the running site listens beyond loopback, at {', '.join(map(str, sorted(ports)))}"
        yield error("process", text, f"see the finding on the listener; then {_RESTART}")
    changed = [name for name in _READ_AT_START if _changed_s(kit.local / name) > started + START_ERROR_S]
    if changed:
        since = datetime.fromtimestamp(started, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
        yield warning("process", f"changed since the site was started ({since}): {', '.join(changed)}", _RESTART)


def _umask(pid: int) -> int | None:
    for line in Path(f"/proc/{pid}/status").read_text(encoding="utf-8").splitlines():
        if line.startswith("Umask:"):
            return int(line.split()[1], 8)
    return None


def _changed_s(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0
