"""The connection's protocol without socket and clock: events and times in, frames and ends out."""

from __future__ import annotations

import itertools
import struct
from typing import Any, Final, NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ringcast import Config
from ringcast.broker.connection import (
    ABNORMAL,
    GOING_AWAY,
    NORMAL,
    Disconnect,
    Protocol,
)
from ringcast.broker.connection.protocol import NO_CODE, PONG_BACKLOG_MAX, close_payload

TEXT: Final = 1
BINARY: Final = 2
CLOSE: Final = 8
PING: Final = 9
PONG: Final = 10
MASKED: Final = 0x80

INTERVAL: Final = 20.0
PONG_WAIT: Final = 10.0
CLOSE_WAIT: Final = 3.0
BEGAN: Final = 1000.0
"""What the clock shows when the connection opens."""


class Frame(NamedTuple):
    """A frame of the client's, unmasked."""

    opcode: int
    payload: bytes


def frames_of(data: bytes | bytearray) -> tuple[list[Frame], list[bytes]]:
    """The whole frames of a client's bytes, each final and masked, and their masks."""
    frames, masks, at = [], [], 0
    while at < len(data):
        first, second = data[at : at + 2]
        assert first & 0xF0 == 0x80, f"a frame begins with {first:#x}"
        assert second & MASKED, "a client's frame is not masked"
        extra = {126: 2, 127: 8}.get(second & 0x7F, 0)
        at += 2
        length = int.from_bytes(data[at : at + extra], "big") if extra else second & 0x7F
        at += extra
        mask = bytes(data[at : at + 4])
        at += 4
        payload = data[at : at + length]
        assert len(payload) == length, "the last frame is not whole"
        at += length
        frames.append(Frame(first & 0x0F, bytes(b ^ mask[i & 3] for i, b in enumerate(payload))))
        masks.append(mask)
    return frames, masks


class Client:
    """A protocol and the transport around it, which takes everything unless a test says otherwise.

    Attributes:
        controls: pings and pongs that were reported.
    """

    def __init__(self, **options: Any) -> None:
        plan = {
            "ping_interval": INTERVAL,
            "ping_timeout": PONG_WAIT,
            "close_timeout": CLOSE_WAIT,
            "idle_timeout": None,
        }
        config = Config(name="x", url="ws://x/", **(plan | options))
        self.controls = 0
        self.protocol = Protocol(config, BEGAN, self._control_frame_sent)

    def _control_frame_sent(self) -> None:
        self.controls += 1

    def says(self) -> list[Frame]:
        """What the client sends, all of which the socket takes."""
        frames, _ = frames_of(self.protocol.outgoing)
        self.protocol.taken(len(self.protocol.outgoing))
        self.protocol.handed_over()
        return frames

    def advance(self, seconds: float, **found: bool) -> list[Frame]:
        """Have it so many seconds after the beginning; what it sends then."""
        self.protocol.advance(BEGAN + seconds, **found)
        return self.says()

    @property
    def deadline(self) -> float:
        """Seconds after the beginning."""
        return self.protocol.deadline - BEGAN

    @property
    def error(self) -> str | None:
        """Why it is lost; it must be."""
        assert self.protocol.lost is not None
        return self.protocol.lost.error


def close_frame(code: int, reason: str = "") -> Frame:
    return Frame(CLOSE, struct.pack("!H", code) + reason.encode())


# ---- messages ------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [0, 1, 125, 126, 65_535, 65_536, 70_000])
@pytest.mark.parametrize("text", [True, False])
def test_messages_are_framed_whatever_their_size(size: int, text: bool) -> None:
    client = Client()
    payload = bytes(i % 128 for i in range(size))
    client.protocol.send(payload, text=text)
    assert client.says() == [Frame(TEXT if text else BINARY, payload)]


def test_each_frame_has_a_mask_of_its_own() -> None:
    client = Client()
    for _ in range(50):
        client.protocol.send(b"same", text=True)
        client.protocol.ping_received(b"same")
    client.protocol.close(NORMAL, "same", BEGAN)
    frames, masks = frames_of(client.protocol.outgoing)
    assert len(frames) == len(set(masks)) == 101


@given(
    sizes=st.lists(st.integers(0, 300), max_size=20), steps=st.lists(st.integers(1, 500)), tls=...
)
def test_a_message_counts_as_sent_when_its_last_byte_was_handed_over(
    sizes: list[int], steps: list[int], tls: bool
) -> None:
    client = Client()
    protocol = client.protocol
    ends = []
    for number, size in enumerate(sizes):
        protocol.send(bytes(size), text=False)
        ends.append(len(protocol.outgoing))
        if number % 3 == 0:
            protocol.ping_received(b"between")  # is no message
    total, taken = len(protocol.outgoing), 0
    for step in itertools.chain(steps, [total]):
        count = min(step, total - taken)
        protocol.taken(count)
        taken += count
        assert len(protocol.outgoing) == total - taken
        if tls and taken < total:  # encrypted, and not with the socket
            assert protocol.sent == 0
        else:
            protocol.handed_over()
            assert protocol.sent == sum(end <= taken for end in ends)
    assert protocol.sent == len(sizes)


# ---- pings and pongs -----------------------------------------------------------------------


@pytest.mark.parametrize("payload", [b"", b"?", bytes(125)])
def test_a_ping_is_answered_with_its_payload(payload: bytes) -> None:
    client = Client()
    client.protocol.ping_received(payload)
    assert client.says() == [Frame(PONG, payload)]
    assert client.controls == 1


def test_pongs_that_the_server_does_not_read_fill_no_memory() -> None:
    client = Client()
    payload = bytes(125)
    for _ in range(2 * PONG_BACKLOG_MAX // len(payload)):
        client.protocol.ping_received(payload)
    pongs = len(client.says())
    assert PONG_BACKLOG_MAX // 2 < pongs * len(payload) <= PONG_BACKLOG_MAX
    assert client.controls == pongs
    client.protocol.ping_received(b"it reads again")
    assert client.says() == [Frame(PONG, b"it reads again")]


def test_pings_go_out_at_their_interval_and_measure_the_round_trip() -> None:
    client = Client()
    assert client.deadline == INTERVAL
    assert client.advance(INTERVAL - 0.001) == []
    (ping,) = client.advance(INTERVAL)
    assert ping.opcode == PING
    assert client.controls == 1
    assert client.deadline == INTERVAL + PONG_WAIT
    assert client.protocol.rtt_ns is None
    client.protocol.pong_received(ping.payload, BEGAN + INTERVAL + 0.25)
    assert client.protocol.rtt_ns == pytest.approx(0.25e9, rel=1e-6)
    assert client.deadline == 2 * INTERVAL
    (following,) = client.advance(2 * INTERVAL)
    assert following.opcode == PING
    assert following.payload != ping.payload


def test_a_pong_that_nobody_asked_for_is_ignored() -> None:
    client = Client()
    client.protocol.pong_received(b"", BEGAN)
    (ping,) = client.advance(INTERVAL)
    client.protocol.pong_received(ping.payload + b"!", BEGAN + INTERVAL)
    assert client.protocol.rtt_ns is None
    client.advance(INTERVAL + PONG_WAIT)
    assert client.error == "no pong within 10 s"


def test_without_an_interval_there_are_no_pings() -> None:
    client = Client(ping_interval=None)
    assert client.protocol.deadline == float("inf")
    assert client.advance(1e6) == []
    assert client.protocol.lost is None


def test_a_ping_without_an_answer_ends_the_connection() -> None:
    client = Client()
    client.advance(INTERVAL)
    assert client.advance(INTERVAL + PONG_WAIT - 0.001, received=True) == []
    assert client.protocol.lost is None
    said = client.advance(INTERVAL + PONG_WAIT)
    assert said == [close_frame(GOING_AWAY, "no pong within 10 s")]
    assert client.protocol.lost == Disconnect("no pong within 10 s", ABNORMAL)


def test_no_second_ping_while_one_is_not_answered() -> None:
    client = Client(ping_interval=1.0)
    assert [frame.opcode for frame in client.advance(1.0)] == [PING]
    for second in range(2, 10):
        assert client.advance(second) == []
    assert client.controls == 1


def test_a_pong_can_not_come_inside_a_message() -> None:
    client = Client()
    client.advance(INTERVAL)
    for seconds in range(5, 100, 5):
        assert client.advance(INTERVAL + seconds, received=True, partial=True) == []
    last = INTERVAL + 95
    assert client.protocol.lost is None
    assert client.advance(last + PONG_WAIT - 0.001) == []
    client.advance(last + PONG_WAIT)
    assert client.error == "no pong within 10 s"


# ---- silence -------------------------------------------------------------------------------


def test_silence_ends_the_connection() -> None:
    client = Client(ping_interval=None, idle_timeout=5.0)
    assert client.deadline == 5.0
    assert client.advance(4.0, received=True) == []
    assert client.deadline == 9.0
    assert client.advance(8.999) == []
    said = client.advance(9.0)
    assert said == [close_frame(GOING_AWAY, "the server said nothing for 5 s")]
    assert client.error == "the server said nothing for 5 s"


@pytest.mark.parametrize("limit", [{"idle_timeout": 5.0}, {}], ids=["silence", "no pong"])
def test_nothing_is_overdue_while_there_is_more_to_read(limit: dict[str, float]) -> None:
    """As while the ring is full: what is missed may lie in the socket."""
    client = Client(**limit)
    if not limit:
        client.advance(INTERVAL)
    for seconds in (INTERVAL + 1, 500.0, 1000.0):
        client.advance(seconds, unread=True)
        assert client.protocol.lost is None
    wait = limit.get("idle_timeout", PONG_WAIT)
    client.advance(1000.0 + wait - 0.001)
    assert client.protocol.lost is None
    client.advance(1000.0 + wait)
    assert client.protocol.lost is not None


# ---- closing -------------------------------------------------------------------------------


def test_the_client_closes() -> None:
    client = Client()
    client.protocol.close(GOING_AWAY, "the manager stops", BEGAN)
    assert client.says() == [close_frame(GOING_AWAY, "the manager stops")]
    assert client.protocol.closing is not None
    assert client.protocol.lost is None
    assert client.deadline == CLOSE_WAIT
    client.protocol.stream_ended()
    assert client.protocol.lost == Disconnect(None, GOING_AWAY, "the manager stops")


@pytest.mark.parametrize(
    ("code", "reason", "error"),
    [
        (NORMAL, "", None),
        (GOING_AWAY, "maintenance", None),
        (NO_CODE, "", None),
        (1008, "policy", "the server closed with code 1008: policy"),
        (4000, "", "the server closed with code 4000: no reason given"),
    ],
)
def test_the_server_closes(code: int, reason: str, error: str | None) -> None:
    client = Client()
    client.protocol.close_received(code, reason, BEGAN)
    assert client.says() == [Frame(CLOSE, b"") if code == NO_CODE else close_frame(code)]
    assert client.protocol.closing == Disconnect(error, code, reason)
    assert client.protocol.lost is None
    client.protocol.stream_ended()
    assert client.protocol.lost == Disconnect(error, code, reason)


@pytest.mark.parametrize(("code", "reason"), [(1002, "a reserved bit is set"), (1009, "too long")])
def test_a_fault_closes_with_the_code_that_the_rfc_asks_for(code: int, reason: str) -> None:
    client = Client()
    client.protocol.fault_found(code, reason, BEGAN)
    assert client.says() == [close_frame(code, reason)]
    client.protocol.stream_ended()
    expected = Disconnect(f"the server broke the protocol: {reason}", ABNORMAL)
    assert client.protocol.lost == expected


def test_a_server_that_does_not_close_its_socket_is_not_waited_for() -> None:
    client = Client()
    client.protocol.close_received(1008, "policy", BEGAN)
    client.says()
    assert client.advance(CLOSE_WAIT - 0.001, unread=True) == []
    assert client.protocol.lost is None
    client.advance(CLOSE_WAIT, unread=True)
    assert client.error == "the server closed with code 1008: policy"


def test_nothing_follows_a_close_frame() -> None:
    client = Client(idle_timeout=1.0, close_timeout=1000.0)
    client.protocol.close(NORMAL, "first", BEGAN)
    client.protocol.close(1002, "second", BEGAN)
    client.protocol.close_received(1008, "theirs", BEGAN)
    client.protocol.fault_found(1002, "wrong", BEGAN)
    client.protocol.ping_received(b"?")
    client.protocol.advance(BEGAN + 2 * INTERVAL)
    assert client.says() == [close_frame(NORMAL, "first")]
    assert client.controls == 0
    client.protocol.stream_ended()
    assert client.protocol.lost == Disconnect(None, NORMAL, "first")


def test_the_stream_ends_without_a_close_frame() -> None:
    client = Client()
    client.protocol.stream_ended()
    assert client.error == "the server closed the socket without a close frame"
    assert client.protocol.lost is not None
    assert client.protocol.lost.code == ABNORMAL
    assert client.says() == []


def test_a_socket_that_fails_is_an_end_and_a_close_before_it_says_why() -> None:
    client = Client()
    client.protocol.socket_failed("receiving failed: Connection reset by peer")
    assert client.error == "receiving failed: Connection reset by peer"
    client = Client()
    client.protocol.close_received(GOING_AWAY, "maintenance", BEGAN)
    client.protocol.socket_failed("receiving failed: Connection reset by peer")
    assert client.protocol.lost == Disconnect(None, GOING_AWAY, "maintenance")


def test_the_first_end_counts_and_nothing_is_done_after_it() -> None:
    client = Client(idle_timeout=1.0)
    client.protocol.socket_failed("sending failed: Broken pipe")
    client.protocol.stream_ended()
    client.protocol.close(NORMAL, "", BEGAN)
    assert client.advance(1000.0) == []
    assert client.error == "sending failed: Broken pipe"
    assert client.protocol.closing is None


def test_secrets_stand_in_no_end() -> None:
    secret = "s3cret-token"  # noqa: S105
    client = Client(headers={"Authorization": f"Bearer {secret}"})
    client.protocol.close_received(4001, f"not with {secret}", BEGAN)
    client.protocol.stream_ended()
    assert client.protocol.lost is not None
    assert secret not in repr(client.protocol.lost)
    assert client.error == "the server closed with code 4001: not with ***"


@pytest.mark.parametrize(
    ("reason", "kept"),
    [("x" * 200, "x" * 123), ("é" * 100, "é" * 61), ("€" * 41, "€" * 41), ("", "")],
)
def test_a_reason_is_cut_to_what_a_control_frame_holds(reason: str, kept: str) -> None:
    payload = close_payload(NORMAL, reason)
    assert payload == struct.pack("!H", NORMAL) + kept.encode()
    assert len(payload) <= 125
