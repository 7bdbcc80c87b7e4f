"""At the server: whose run this is. A job that names another lead's run by its id gets nothing of it and leaves it be.

The id is no secret: whoever may look at jobs reads it in their meta, where it stands for `fedscan job resume`.
"""

from __future__ import annotations

from pathlib import Path

from ctslices.files import write_whole
from fedscan.federation.server_round import RunStoppedError
from fedscan.readable import readable

FILE = ".submitter"
_MOST = 1000


def claim(run_folder: Path, submitter: str | None) -> None:
    """The first one's name stays in the run's folder. Raises RunStoppedError for another one, OSError.

    To be asked before anything of the folder is read, told or written. `submitter`: None where nobody signed.
    """
    name = _cut(submitter)
    owner = _owner(run_folder)
    if owner is None:
        write_whole(run_folder / FILE, name.encode(), mode=0o600)
    elif owner != name:
        raise RunStoppedError(
            f"the run is another person's, not {readable(name) or 'nobody'}'s: make a job of your own"
        )


def is_of(run_folder: Path, submitter: str | None) -> bool:
    """Whether this person's jobs may get something of the run. Raises OSError."""
    return _owner(run_folder) in (None, _cut(submitter))


def _cut(submitter: str | None) -> str:
    return (submitter or "")[:_MOST]


def _owner(run_folder: Path) -> str | None:
    """None: nobody has begun it."""
    try:
        with (run_folder / FILE).open("rb") as file:
            return file.read(4 * _MOST).decode(errors="replace")
    except FileNotFoundError:
        return None
