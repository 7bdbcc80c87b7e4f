from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from fedscan.plan import Plan
from fedscan.training import trainer_protocol as protocol
from fedscan.training.trainer_protocol import Done, ProtocolError, Refused, Start, Train


def test_lines_come_back_as_they_were(make_plan: Callable[..., Plan]) -> None:
    start = Start(
        parent=1, store=Path("/a"), state_folder=Path("/b"), plan=make_plan(), site="a", run_id="r", threads=2
    )
    train = Train(round_number=3, weights=Path("/w"), out=Path("/o"))
    done = Done(
        round_number=3, loss=0.1, epoch_losses=(0.2, 0.1), examples=4, patients=2, unit="patient", steps=2,
        seconds=1.5, from_round=None, values="hu", field_mm=360.0,
    )  # fmt: skip
    for line in (start, train):
        assert protocol.encode(line).count(b"\n") == 1
        assert protocol.request(protocol.encode(line)) == line
    for reply in (done, Refused(reason="a\nb"), protocol.Progress(step=1, steps=2, loss=0.5)):
        assert protocol.encode(reply).count(b"\n") == 1
        assert protocol.reply(protocol.encode(reply)) == reply


@pytest.mark.parametrize(
    "line", [b"", b"Warning: x", b"{}", b'{"kind":"train"}', b'{"kind":"refused","reason":"x","y":1}']
)
def test_anything_else_is_an_error_that_shows_nothing_of_it(line: bytes) -> None:
    for parse in (protocol.request, protocol.reply):
        with pytest.raises(ProtocolError, match=f"a line of {len(line)} bytes"):
            parse(line)
