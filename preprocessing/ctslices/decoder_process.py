"""The main of the process in which native decoders run: `python -m ctslices.decoder_process REQUESTS REPLIES`.

The arguments are two inherited file descriptors. See `ctslices.isolate` for the other end.
"""

from __future__ import annotations

import json
import os
import sys
from typing import Any

import numpy as np

from ctslices.codecs import UndecodableError, decode_frame
from ctslices.series import StoredPixels

MEMORY_LIMIT_BYTES = 6 << 30
"""Address space of this process: a frame that claims more is damage."""


def _limit() -> None:
    """No core dumps (they would hold pixels and headers), bounded memory, and an end with the parent."""
    import resource

    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    limit = MEMORY_LIMIT_BYTES if hard == resource.RLIM_INFINITY else min(MEMORY_LIMIT_BYTES, hard)
    resource.setrlimit(resource.RLIMIT_AS, (limit, hard))
    if sys.platform == "linux":
        import ctypes
        import signal

        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


def serve(requests: int, replies: int) -> None:
    """The child's main: answer until the parent closes the pipe."""
    _limit()
    with os.fdopen(requests, "rb") as incoming, os.fdopen(replies, "wb", buffering=0) as outgoing:
        for line in incoming:
            asked: dict[str, Any] = json.loads(line)
            pixels = stored_from(asked["stored"])
            try:
                values = np.ascontiguousarray(decode_frame(asked["path"], asked["frame"], pixels))
            except UndecodableError as refused:
                outgoing.write(json.dumps({"reason": refused.reason, "detail": refused.detail}).encode() + b"\n")
                continue
            head = json.dumps({"dtype": values.dtype.str, "shape": values.shape}).encode() + b"\n"
            _write_all(outgoing.fileno(), head + values.tobytes())


def stored_from(values: dict[str, Any]) -> StoredPixels:
    """StoredPixels from its JSON form."""
    rows, columns = values["shape"]
    padding = values["padding"]
    return StoredPixels(**{**values, "shape": (rows, columns), "padding": padding and (padding[0], padding[1])})


def _write_all(descriptor: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]


if __name__ == "__main__":
    serve(int(sys.argv[1]), int(sys.argv[2]))
