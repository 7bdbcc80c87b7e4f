"""A message of NVFlare may carry files: whoever receives one writes it, as it comes, to a folder below /tmp that any
user of the machine may have made first, with links in it. Nothing of ours is sent so; here such a message is not read.
"""

from __future__ import annotations

from typing import NoReturn

from nvflare.fuel.utils.fobs import lobs


class FileInMessageError(RuntimeError):
    """The message is not read."""


def refuse() -> None:
    """From now on in this process."""
    lobs.get_datum_dir = _refuse


def _refuse() -> NoReturn:
    raise FileInMessageError("the message carries a file: it is not read")
