"""Which ended connections in a site's logs are between its own processes: each job opens two and ends them with itself.

NVFlare's lines on an ended connection tell neither its other end nor whether it was the site's to the server.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

_CREATED = re.compile(r"Connection \[(CN\d+) \S+ (=>|<=) \S+ SSL (.{1,200})\] is created: PID: (\d+)")
_CLOSED = re.compile(r"Connection \[(CN\d+) Not Connected\] is closed PID: (\d+)")


class OwnConnections:
    """Of all logs of the site `site`, in whatever order: the log that tells of the opening may have been rotated."""

    def __init__(self, site: str, lines: Iterable[str]) -> None:
        self._accepted: set[tuple[str, str]] = set()
        self._jobs: set[str] = set()
        for line in lines:
            created = _CREATED.search(line)
            if created is None:
                continue
            number, direction, peer, pid = created.groups()
            if direction == "<=":
                self._accepted.add((number, pid))
            elif peer == site:  # a process that dials the site's own port is a job's
                self._jobs.add(pid)

    def closes(self, line: str) -> bool:
        """Whether this line tells of the end of such a connection, or of any that a job's process had."""
        closed = _CLOSED.search(line)
        if closed is None:
            return False
        number, pid = closed.groups()
        return pid in self._jobs or (number, pid) in self._accepted
