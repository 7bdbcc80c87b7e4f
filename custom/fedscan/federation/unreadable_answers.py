"""An answer whose bytes cannot be read costs the site its answer. NVFlare 2.9 ends the server's job process over it.

It does so in `Adapter.call` of fuel/f3/cellnet/cell.py, and at two messages on streams that a site can send at will:
one site could end every run. Here the site's message fails alone; the site hears nothing, and sends it again or not.

Its tensors do not come with the message: they are fetched while it is decoded, as many as it says, before anybody can
judge it. More bytes than an answer can have are not fetched. The message itself is bounded by the kit's settings.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from typing import Any

from nvflare.apis.fl_constant import ServerCommandNames
from nvflare.fuel.f3.cellnet import cell
from nvflare.fuel.f3.cellnet.defs import CellChannel
from nvflare.fuel.f3.message import Message
from nvflare.fuel.f3.streaming.blob_streamer import BlobHandler
from nvflare.fuel.f3.streaming.cacheable import ItemConsumer
from nvflare.fuel.f3.streaming.stream_const import StreamHeaderKey
from nvflare.private.defs import CellMessageHeaderKeys

REASON = "its answer cannot be read"
NO_UPDATE = "its answer is no update"
BESIDE_BYTES = 2**20
"""For names and shapes beside the values."""
_decode = cell.decode_payload
_consume = ItemConsumer.consume
_fail_and_notify = BlobHandler._fail_and_notify
_fetched = threading.local()
"""`size`: bytes that the message which this thread is decoding has fetched."""


class TooLargeError(Exception):
    """A message has more tensors than any answer has."""


def outlive(tell: Callable[[str], None], model_bytes: Callable[[], int]) -> None:
    """From now on in this job process of a server: `tell` is called with the token of who sent such an answer.

    An answer has no more bytes of tensors than the model: `model_bytes` says how many these are by then.
    """

    def consume(self: ItemConsumer, ref_id: str, state: dict[str, Any], data: Any) -> Any:
        _fetched.size = getattr(_fetched, "size", 0) + sum(map(len, data))
        if _fetched.size > model_bytes() + BESIDE_BYTES:
            raise TooLargeError("more tensors than an answer has")
        return _consume(self, ref_id, state, data)

    def fail_and_notify(self: BlobHandler, stream: Any, future: Any, *others: Any) -> None:
        _tell_of(future.headers, tell)
        _fail_and_notify(self, stream, future, *others)

    def decode_payload(message: Message, *others: Any, **named: Any) -> None:
        _fetched.size = 0
        try:
            _decode(message, *others, **named)
        except Exception:
            _tell_of(message.headers, tell)
            raise

    ItemConsumer.consume = consume
    BlobHandler._fail_and_notify = fail_and_notify
    cell.decode_payload = decode_payload
    cell._is_server_job_cell = lambda _info: False


def _tell_of(headers: Mapping[str, Any], tell: Callable[[str], None]) -> None:
    """If it is an answer at all."""
    where = (headers.get(StreamHeaderKey.CHANNEL), headers.get(StreamHeaderKey.TOPIC))
    if where == (CellChannel.SERVER_COMMAND, ServerCommandNames.SUBMIT_UPDATE):
        tell(str(headers.get(CellMessageHeaderKeys.TOKEN)))
