"""Decoding in a child process that may die or hang: the parent goes on, and knows which plane it was.

The child runs `ctslices.decoder_process`: a request is a line of JSON, the reply a line of JSON and then the values'
bytes. It stays warm from plane to plane.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import select
import subprocess
import sys
import time
from dataclasses import asdict

import numpy as np
from numpy.typing import NDArray

from ctslices.reject import Reason, Rejected
from ctslices.series import PlaneRef

_PIPE_BYTES = 1 << 20


class ChildDiedError(Exception):
    """The child ended before it had answered."""


class ChildTimeoutError(Exception):
    """The child did not answer in time and was ended."""


class Child:
    """A decoding process. Not for sharing between threads or across forks."""

    def __init__(self) -> None:
        their_requests, self._requests = os.pipe()
        self._replies, their_replies = os.pipe()
        self.owner = os.getpid()
        self._process = subprocess.Popen(  # nosec B603 # this Python, our own module, two numbers
            # -P: a module in the working folder, which may be the export, must not be imported
            [sys.executable, "-P", "-m", "ctslices.decoder_process", str(their_requests), str(their_replies)],
            pass_fds=(their_requests, their_replies),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,  # native decoders print there, and may quote what they decode
            stderr=subprocess.DEVNULL,
        )
        os.close(their_requests)
        os.close(their_replies)
        _widen(self._replies)

    def ask(self, plane: PlaneRef, timeout_s: float) -> NDArray[np.integer] | Rejected:
        """The plane's stored values, or why the child's decoders refuse it.

        :raises ChildDiedError: and :raises ChildTimeoutError: after both the child is gone.
        """
        assert plane.stored is not None
        request = json.dumps({"path": plane.path, "frame": plane.frame, "stored": asdict(plane.stored)})
        deadline = time.monotonic() + timeout_s
        try:
            os.write(self._requests, request.encode() + b"\n")
        except BrokenPipeError:
            self.end()
            raise ChildDiedError from None
        head, rest = self._line(deadline)
        reply = json.loads(head)
        if "reason" in reply:
            return Rejected(plane.relative_path, Reason(reply["reason"]), reply["detail"])
        dtype, shape = np.dtype(reply["dtype"]), tuple(reply["shape"])
        data = bytearray(rest)
        size = int(np.prod(shape)) * dtype.itemsize
        while len(data) < size:
            data += self._some(deadline)
        return np.frombuffer(data, dtype).reshape(shape)

    def end(self) -> None:
        """End the process now."""
        for descriptor in (self._requests, self._replies):
            with contextlib.suppress(OSError):
                os.close(descriptor)
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()

    def _line(self, deadline: float) -> tuple[bytes, bytes]:
        data = b""
        while b"\n" not in data:
            data += self._some(deadline)
        head, _, rest = data.partition(b"\n")
        return head, rest

    def _some(self, deadline: float) -> bytes:
        ready, _, _ = select.select([self._replies], [], [], max(0.0, deadline - time.monotonic()))
        if not ready:
            self.end()
            raise ChildTimeoutError
        data = os.read(self._replies, _PIPE_BYTES)
        if not data:
            self.end()
            raise ChildDiedError
        return data


_child: Child | None = None


def decode_apart(plane: PlaneRef, timeout_s: float) -> NDArray[np.integer] | Rejected:
    """One DICOM plane's stored values, integers [rows, columns], decoded in this process' child."""
    global _child  # noqa: PLW0603 - one warm child a process
    if _child is None or _child.owner != os.getpid():
        _child = Child()
    try:
        return _child.ask(plane, timeout_s)
    except ChildDiedError:
        _child = None
        return Rejected(plane.relative_path, Reason.DECODER_CRASHED, "the decoder ended its process")
    except ChildTimeoutError:
        _child = None
        return Rejected(plane.relative_path, Reason.DECODER_TIMEOUT, f"not decoded in {timeout_s:.0f} seconds")


@atexit.register
def _end_child() -> None:
    if _child is not None and _child.owner == os.getpid():
        _child.end()


def _widen(descriptor: int) -> None:
    """A pipe that holds a whole plane, where the system has such (Linux)."""
    try:
        import fcntl

        fcntl.fcntl(descriptor, fcntl.F_SETPIPE_SZ, _PIPE_BYTES)
    except (ImportError, AttributeError, OSError):
        return
