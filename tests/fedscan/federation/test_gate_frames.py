"""Messages in parts are held until they are whole, and judged before any of them goes."""

from __future__ import annotations

import pytest

from fedscan.federation.gate_frames import MAX_HELD_BYTES, BlockedError, Frame, Parts, frame_bytes, pack, unpack


def part(number: int, data: bytes, *, last: bool = False, stream: int = 1, reliable: bool = False) -> Frame:
    headers = {
        "cn__topic": "sm__DATA",
        "cn__destination": "server.j",
        "sm__dt": 2 if last else 1,
        "sm__sq": number,
        "sm__id": stream,
        "sm__rs": reliable,
    }
    return Frame("data", "a.j", "server", "CN1", headers, data)


def test_nothing_goes_before_the_whole_was_judged() -> None:
    seen: list[bytes] = []

    def judge(frames: list[Frame]) -> list[Frame]:
        seen.append(b"".join(frame.payload for frame in frames))
        return frames

    parts = Parts()
    assert parts.add(part(0, b"ab"), judge) == []
    assert parts.add(part(0, b"xy", stream=2), judge) == []
    assert seen == []
    sent = parts.add(part(1, b"cd", last=True), judge)
    assert [frame.payload for frame in sent] == [b"ab", b"cd"]
    assert seen == [b"abcd"]


def test_a_message_that_is_refused_leaves_no_part_behind() -> None:
    def refuse(frames: list[Frame]) -> list[Frame]:
        raise BlockedError("no")

    parts = Parts()
    parts.add(part(0, b"ab"), refuse)
    with pytest.raises(BlockedError):
        parts.add(part(1, b"cd", last=True), refuse)
    with pytest.raises(BlockedError, match="not complete"):
        parts.add(part(1, b"cd", last=True), lambda frames: frames)


def test_a_part_that_is_sent_again_goes_as_it_was_judged() -> None:
    parts = Parts()
    parts.add(part(0, b"ab", reliable=True), list)
    parts.add(part(1, b"cd", last=True, reliable=True), list)
    assert [frame.payload for frame in parts.add(part(0, b"XX", reliable=True), list)] == [b"ab"]
    assert parts.add(part(2, b"more", reliable=True), list) == []


@pytest.mark.parametrize("numbers", [[1], [0, 2], [None], ["0"]])
def test_parts_that_are_missing_or_without_number_are_refused(numbers: list[object]) -> None:
    parts = Parts()
    with pytest.raises(BlockedError):
        for number in numbers[:-1]:
            parts.add(part(number, b"x"), list)  # type: ignore[arg-type]
        parts.add(part(numbers[-1], b"x", last=True), list)  # type: ignore[arg-type]


def test_no_message_is_longer_than_nvflare_sends_without_an_acknowledgement() -> None:
    parts = Parts()
    half = bytes(MAX_HELD_BYTES // 2 + 1)
    parts.add(part(0, half), list)
    with pytest.raises(BlockedError, match="more than"):
        parts.add(part(1, half), list)
    assert MAX_HELD_BYTES < 64 * 2**20


def test_packing_is_the_reverse_of_unpacking() -> None:
    main, behind = {"a": [1, b"x", None, {"b": 2.5}]}, [(101, 6, b"i" * 16, b"{}"), (102, 0, b"j" * 16, b"yz")]
    assert unpack(pack(main, behind)) == (main, behind)


def test_a_frame_is_counted_as_nvflare_writes_it() -> None:
    from nvflare.fuel.f3.endpoint import Endpoint
    from nvflare.fuel.f3.sfm.prefix import Prefix
    from nvflare.fuel.f3.sfm.sfm_conn import SfmConnection

    written: list[bytes] = []

    class Connection:
        name = "CN1"

        def send_frame(self, frame: bytes) -> None:
            written.append(bytes(frame))

    connection = SfmConnection(Connection(), Endpoint("a"))
    for headers, payload in (({"x": 1, "y": ["z"]}, b"abc"), (None, b""), ({"x": "ä"}, b"")):
        connection.send_frame(Prefix(0, 0, 1, 0, 0, 0, 0, 0), headers, payload)
        assert frame_bytes(Frame("data", "a", "b", "CN1", headers or {}, payload)) == len(written[-1])
