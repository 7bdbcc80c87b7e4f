"""TLS handshakes that this process, as the one that is called, refuses: Python's TLS drops them without a word."""

from __future__ import annotations

import ssl
from collections.abc import Callable
from typing import Any

Note = Callable[[str], None]
_note: list[Note] = []


def note_refused_handshakes(note: Note) -> None:
    """From now on `note` gets a line for each, of connections that Python's own TLS carries (not gRPC's)."""
    _note[:] = [note]
    ssl.SSLContext.sslobject_class = _NotedObject
    ssl.SSLContext.sslsocket_class = _NotedSocket


def _refused(error: ssl.SSLError, server_side: bool) -> None:
    if isinstance(error, ssl.SSLWantReadError | ssl.SSLWantWriteError | ssl.SSLZeroReturnError) or not server_side:
        return
    why = error.verify_message if isinstance(error, ssl.SSLCertVerificationError) else ""
    for note in _note:
        note(f"a connection, in its TLS handshake: {' '.join(filter(None, (error.reason or 'closed', why)))}")


class _NotedObject(ssl.SSLObject):
    def do_handshake(self) -> None:
        try:
            super().do_handshake()
        except ssl.SSLError as error:
            _refused(error, bool(self.server_side))
            raise


class _NotedSocket(ssl.SSLSocket):
    def do_handshake(self, *arguments: Any, **named: Any) -> None:
        try:
            super().do_handshake(*arguments, **named)
        except ssl.SSLError as error:
            _refused(error, bool(self.server_side))
            raise
