"""An answer of random bytes at the server's job process: told with its sender's token, and the process lives."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from nvflare.fuel.f3.cellnet import cell
from nvflare.fuel.f3.cellnet.defs import CellChannel, Encoding
from nvflare.fuel.f3.streaming.blob_streamer import BlobHandler
from nvflare.fuel.f3.streaming.cacheable import ItemConsumer
from nvflare.fuel.f3.streaming.stream_const import StreamHeaderKey
from nvflare.fuel.f3.streaming.stream_types import BlobSizeError, StreamFuture
from nvflare.private.defs import CellMessageHeaderKeys

from fedscan.federation import unreadable_answers

MODEL_BYTES = 5_000_000


class Adapter(cell.Adapter):
    """A job's cell without connections."""

    def __init__(self) -> None:
        context = SimpleNamespace(decode_pass_through_channels=(), decode_pass_through_topics=(), get_fobs_context=dict)
        super().__init__(lambda request: None, SimpleNamespace(fqcn="server.a-job"), context)

    def take(self, topic: str, content: bytes) -> None:
        self.call(SimpleNamespace(headers=headers(topic), result=lambda: content))


def headers(topic: str) -> dict[str, str]:
    """Of a message from site B."""
    return {
        StreamHeaderKey.CHANNEL: CellChannel.SERVER_COMMAND,
        StreamHeaderKey.TOPIC: topic,
        StreamHeaderKey.PAYLOAD_ENCODING: Encoding.FOBS,
        CellMessageHeaderKeys.TOKEN: "token-of-b",
    }


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    monkeypatch.setattr(cell, "decode_payload", cell.decode_payload)
    monkeypatch.setattr(cell, "_is_server_job_cell", cell._is_server_job_cell)
    monkeypatch.setattr(ItemConsumer, "consume", ItemConsumer.consume)
    monkeypatch.setattr(BlobHandler, "_fail_and_notify", BlobHandler._fail_and_notify)
    found: list[str] = []
    unreadable_answers.outlive(found.append, lambda: MODEL_BYTES)
    return found


def test_random_bytes_for_an_answer_are_told_and_end_nothing(told: list[str]) -> None:
    with pytest.raises(Exception, match=r"."):
        Adapter().take("submit_update", os.urandom(1000))
    assert told == ["token-of-b"]


def test_random_bytes_elsewhere_are_none_of_an_answers(told: list[str]) -> None:
    with pytest.raises(Exception, match=r"."):
        Adapter().take("get_task", os.urandom(1000))
    assert told == []


def test_a_word_of_a_site_that_something_was_too_large_ends_nothing(told: list[str]) -> None:
    """NVFlare believes the error's name in a header that whoever sent it wrote."""
    assert not cell._is_server_job_cell(SimpleNamespace(fqcn="server.a-job"))
    assert told == []


class Items(ItemConsumer):
    def consume_items(self, items: list[bytes], result: Any) -> Any:
        return [*(result or []), *items]


def fetch(monkeypatch: pytest.MonkeyPatch, *sizes: int) -> Callable[[], None]:
    """One message that names so many objects of tensors, each of one item."""

    def decode(message: Any, *others: Any, **named: Any) -> None:
        for size in sizes:
            Items().consume("ref", {}, [bytes(size)])

    monkeypatch.setattr(unreadable_answers, "_decode", decode)
    return lambda: Adapter().take("submit_update", b"")


def test_no_more_tensors_are_fetched_than_the_model_has(told: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    whole = MODEL_BYTES + unreadable_answers.BESIDE_BYTES
    good = fetch(monkeypatch, 1000, whole - 1000)
    for _ in range(3):  # each message has its own count
        good()
    assert told == []
    for sizes in [(whole + 1,), (whole, 1), (1, whole)]:
        with pytest.raises(unreadable_answers.TooLargeError):
            fetch(monkeypatch, *sizes)()
    assert told == ["token-of-b"] * 3


@pytest.mark.parametrize(("topic", "tokens"), [("submit_update", ["token-of-b"]), ("get_task", [])])
def test_a_message_past_the_bound_is_told_before_it_is_taken_in(told: list[str], topic: str, tokens: list[str]) -> None:
    handler = BlobHandler(lambda future: None)
    handler.max_blob_size = 1000
    future = StreamFuture(1, headers(topic))
    handler.handle_blob_cb(future, SimpleNamespace(headers=headers(topic), get_size=lambda: 1001), False)
    assert isinstance(future.exception(timeout=5), BlobSizeError)
    assert told == tokens


def test_without_this_nvflare_ends_the_process(tmp_path: Path) -> None:
    """Else this module has no reason to be, and goes."""
    done = _in_a_process(outlive=False)
    assert done.returncode == 1
    assert "failed to decode streamed submit_update" in done.stderr
    assert "alive" not in done.stdout
    assert "alive" in _in_a_process(outlive=True).stdout


def _in_a_process(*, outlive: bool) -> Any:
    code = (
        "import contextlib, logging, os, runpy, sys\n"
        "logging.basicConfig(stream=sys.stderr)\n"
        f"module = runpy.run_path({__file__!r})\n"
        + ("module['unreadable_answers'].outlive(print, int)\n" if outlive else "")
        + "with contextlib.suppress(Exception): module['Adapter']().take('submit_update', b'x' * 1000)\n"
        "print('alive')\n"
    )
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
