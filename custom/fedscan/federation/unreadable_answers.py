"""An answer whose bytes cannot be read costs the site its answer. NVFlare 2.9 ends the server's job process over it.

It does so in `Adapter.call` of fuel/f3/cellnet/cell.py, and at two messages on streams that a site can send at will:
one site could end every run. Here the site's message fails alone; the site hears nothing, and sends it again or not.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from nvflare.apis.fl_constant import ServerCommandNames
from nvflare.fuel.f3.cellnet import cell
from nvflare.fuel.f3.cellnet.defs import CellChannel
from nvflare.fuel.f3.message import Message
from nvflare.fuel.f3.streaming.stream_const import StreamHeaderKey
from nvflare.private.defs import CellMessageHeaderKeys

REASON = "its answer cannot be read"
NO_UPDATE = "its answer is no update"
_decode = cell.decode_payload


def outlive(tell: Callable[[str], None]) -> None:
    """From now on in this job process of a server: `tell` is called with the token of who sent such an answer."""

    def decode_payload(message: Message, *others: Any, **named: Any) -> None:
        try:
            _decode(message, *others, **named)
        except Exception:
            if _is_answer(message):
                tell(str(message.get_header(CellMessageHeaderKeys.TOKEN)))
            raise

    cell.decode_payload = decode_payload
    cell._is_server_job_cell = lambda _info: False


def _is_answer(message: Message) -> bool:
    where = (message.get_header(StreamHeaderKey.CHANNEL), message.get_header(StreamHeaderKey.TOPIC))
    return where == (CellChannel.SERVER_COMMAND, ServerCommandNames.SUBMIT_UPDATE)
